"""The phantom's ultrasound, in the domain of the beams: attenuation, reflection, shadow, speckle, log compression.

Every sample of a beam scatters with a random complex amplitude, as strong as its tissue's backscatter, and interfaces reflect by the jump of impedance
and the angle of incidence; what arrives is weakened by all that lies in front. The point-spread function smooths this complex field, whose
magnitude, the envelope, is then Rayleigh-distributed in even tissue (Wagner et al., IEEE Trans Sonics Ultrason 1983). Refraction bends no beam, and
multiple echoes exist only as rings at the probe. Strengths without a source are ours, set by eye.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from pipeline.datasets.phantoms.trus_probe import Beams, Probe
from pipeline.datasets.phantoms.trus_tissue import column

NEPER_DB = 20 / np.log(10)
SPREAD = (0.75, 1.0)
"""Standard deviations of the point spread in planes and in beams: at a depth of 40 mm about 1 mm."""
AXIAL_SPREAD_MM = 0.32
SPECULAR = 10.0
"""Echo of a whole mirror that is hit head-on, relative to the speckle of the peripheral zone."""
SUBJECT_DB = 3.5
"""Standard deviation of a tissue's backscatter over subjects."""
CLOUD_DB = 3.5
"""Standard deviation of the gain that wanders over about a centimetre: layers of fat and wall that bend and weaken the beams."""
KNOB_DB = 4.5
"""Standard deviation of the gain over depth: knobs that the examiner turns."""
ROUGH = 0.4
"""Relative spread of a reflection from place to place."""
LOBE = 3.0
"""Power of the cosine with which a reflection fades as the beam leaves the interface's normal."""
SIDELOBES = 0.012
"""Share of the mean echo over a third of the fan that leaks into every beam: a haze beside what is bright."""
GREY_DB = -26.0
"""Where the peripheral zone lies below the brightest grey, dB."""


@dataclass(frozen=True)
class Scanner:
    """`tgc` is the time-gain compensation in dB/cm/MHz (one way); `floor_db` the electronic noise before it, against the peripheral zone at the probe."""

    frequency_mhz: float = 6.5
    tgc: float = 0.5
    floor_db: float = -66.0
    range_db: float = 56.0


@dataclass(frozen=True, eq=False)
class Medium:
    """What the beams meet, each `(plane, beam, depth)` float32: amplitude of backscatter, impedance in MRayl, attenuation in dB/cm/MHz."""

    scatter: np.ndarray
    impedance: np.ndarray
    attenuation: np.ndarray

    @classmethod
    def of(cls, tissue: np.ndarray, beams: Beams, rng: np.random.Generator) -> Medium:
        """The medium of tissues `(plane, beam, depth)`; backscatter is patchy at a few mm, and each subject's tissues scatter otherwise."""
        echo_db = column("echo_db") + rng.normal(0, SUBJECT_DB, len(column("echo_db"))).astype(np.float32)
        patches = ndimage.gaussian_filter(rng.standard_normal(tissue.shape, dtype=np.float32), (1.2, 2.2, 1.3 / beams.step_mm), truncate=3)
        patches /= patches.std()
        scatter = np.exp((echo_db[tissue] + column("patchy_db")[tissue] * patches) / np.float32(NEPER_DB))
        return cls(scatter, column("impedance")[tissue], column("attenuation")[tissue])


def envelope(medium: Medium, probe: Probe, beams: Beams, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """Magnitude of the echoes `(plane, beam, depth)`, float32; in even tissue with the peripheral zone's backscatter its mean square at the probe is 1."""
    gain = np.exp(-_loss_db(medium, probe, beams, scanner) / np.float32(NEPER_DB))
    field = _complex_noise(beams.shape, rng)
    field *= medium.scatter
    field += reflections(medium.impedance, probe, beams) * (1 + np.float32(ROUGH) * rng.standard_normal(beams.shape, dtype=np.float32))
    field *= gain
    boost_db = np.float32(scanner.floor_db) + np.float32(0.2 * scanner.frequency_mhz * scanner.tgc) * beams.depths_mm
    echoes = np.abs(_blurred(field, beams) + np.exp(boost_db / np.float32(NEPER_DB)) * _complex_noise(beams.shape, rng))
    echoes += np.float32(SIDELOBES) * ndimage.uniform_filter1d(echoes, 2 * (beams.shape[1] // 6) + 1, axis=1)
    return echoes


def reflections(impedance: np.ndarray, probe: Probe, beams: Beams) -> np.ndarray:
    """Amplitude of the specular echo `(plane, beam, depth)`: the reflection coefficient of what changes over a millimetre, times a power of the cosine."""
    slope = _log_slopes(impedance, probe, beams)
    steepness = np.sqrt(sum(part**2 for part in slope)) + np.float32(1e-6)
    return np.float32(SPECULAR) * np.tanh(steepness / 2) * (np.abs(slope[2]) / steepness) ** np.float32(LOBE)


def _log_slopes(impedance: np.ndarray, probe: Probe, beams: Beams) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient of the logarithm of impedance per mm, across planes, across beams and along the beam; slightly smoothed."""
    smooth = ndimage.gaussian_filter(np.log(impedance), (0.6, 0.6, 0.25 / beams.step_mm), truncate=3)
    far = beams.depths_mm + np.float32(probe.radius_mm + probe.apex_mm)
    axis_mm = np.maximum(far * np.cos(beams.fans)[:, None] - np.float32(probe.apex_mm), 1)
    across = np.gradient(smooth, axis=0) / (axis_mm * np.gradient(beams.planes)[:, None, None])
    return across, np.gradient(smooth, axis=1) / (far * (beams.fans[1] - beams.fans[0])), np.gradient(smooth, beams.step_mm, axis=2)


def _loss_db(medium: Medium, probe: Probe, beams: Beams, scanner: Scanner) -> np.ndarray:
    """What is missing from an echo, dB: attenuation on both ways and what interfaces reflected, less the gain that compensates for depth."""
    path = np.cumsum(medium.attenuation, axis=2, dtype=np.float32)
    path -= medium.attenuation / 2
    path -= np.float32(scanner.tgc) * (np.arange(beams.shape[2], dtype=np.float32) + np.float32(0.5))
    path *= np.float32(2 * scanner.frequency_mhz * beams.step_mm / 10)
    jump = np.tanh(np.diff(np.log(medium.impedance), axis=2, prepend=np.log(medium.impedance[..., :1])) / 2)
    path -= np.cumsum(np.float32(NEPER_DB) * np.log1p(-(jump**2)), axis=2, dtype=np.float32)
    return ndimage.gaussian_filter1d(path, 0.8, axis=1, truncate=3)


def _complex_noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Circular complex Gaussian noise of mean square 1, complex64."""
    parts = rng.standard_normal((*shape, 2), dtype=np.float32)
    parts *= np.float32(np.sqrt(0.5))
    return parts.view(np.complex64)[..., 0]


def _blurred(field: np.ndarray, beams: Beams) -> np.ndarray:
    """Convolution with the point-spread function, scaled so that white noise keeps its mean square."""
    sigmas = (*SPREAD, AXIAL_SPREAD_MM / beams.step_mm)
    return np.float32(_noise_gain(sigmas)) * ndimage.gaussian_filter(field, sigmas, truncate=3)


def _noise_gain(sigmas: tuple[float, ...]) -> float:
    """One over the standard deviation that smoothing leaves of white noise, from the kernels themselves."""
    gain = 1.0
    for sigma in sigmas:
        radius = int(3 * sigma + 0.5)
        kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
        gain *= kernel.sum() / np.linalg.norm(kernel)
    return gain


def contact_db(beams: Beams, rng: np.random.Generator) -> np.ndarray:
    """Gain of each beam `(plane, beam, 1)` in dB, float32: planes differ a little, and it drops where the probe touches badly or gas is caught before it."""
    lattice = beams.shape[:2]
    patches, stripes = (ndimage.gaussian_filter(rng.standard_normal(lattice, dtype=np.float32), sigma, truncate=3) for sigma in ((6, 9), (2.5, 2.5)))
    ends = np.abs(np.linspace(-1, 1, lattice[1], dtype=np.float32)) ** 4
    poor = np.clip(patches / patches.std() - 1.3 + 1.2 * ends, 0, 1.5) + 0.6 * np.clip(stripes / stripes.std() - 1.5, 0, 1)
    return (rng.normal(0, 0.5, (lattice[0], 1)).astype(np.float32) - 10 * poor)[..., None]


def tuning_db(beams: Beams, rng: np.random.Generator) -> np.ndarray:
    """What the gain is off at each depth `(depth,)` and, more slowly, everywhere `(plane, beam, depth)`: dB, float32, the sum of both."""
    knobs = np.interp(beams.depths_mm, np.arange(0, 140, 14), rng.normal(0, KNOB_DB, 10))
    fall = rng.uniform(0, 0.15) * beams.depths_mm
    coarse = [max(2, n // k) for n, k in zip(beams.shape, (6, 8, round(8 / beams.step_mm)), strict=True)]
    cloud = ndimage.zoom(rng.standard_normal(coarse), np.divide(beams.shape, coarse), order=1, output=np.float32, grid_mode=True, mode="nearest")
    return cloud * np.float32(CLOUD_DB / cloud.std()) + (knobs - fall).astype(np.float32)


def compressed(envelope: np.ndarray, scanner: Scanner) -> np.ndarray:
    """Grey values 0 to 255 of an envelope, float32: `range_db` decibels, the peripheral zone `GREY_DB` below the brightest."""
    decibel = NEPER_DB * np.log(np.maximum(envelope, 1e-6)).astype(np.float32)
    return np.clip(255 * (1 + (decibel + np.float32(GREY_DB)) / np.float32(scanner.range_db)), 0, 255)


def probe_rings(beams: Beams, rng: np.random.Generator) -> np.ndarray:
    """Amplitude `(depth,)` of the rings at the probe: echoes between its surface and the rectal wall, gone after a few mm."""
    spacing = rng.uniform(0.9, 1.4)
    return (6 * np.exp(-beams.depths_mm / 1.3) * (0.55 + 0.45 * np.cos(2 * np.pi * beams.depths_mm / spacing))).astype(np.float32)


def grey_of(tissue: np.ndarray, probe: Probe, beams: Beams, scanner: Scanner, rng: np.random.Generator) -> np.ndarray:
    """From the tissues `(plane, beam, depth)` under the beams to grey values 0 to 255 of the same shape, float32."""
    echoes = envelope(Medium.of(tissue, beams, rng), probe, beams, scanner, rng)
    echoes *= np.exp((contact_db(beams, rng) + tuning_db(beams, rng)) / np.float32(NEPER_DB))
    return compressed(echoes + probe_rings(beams, rng), scanner)
