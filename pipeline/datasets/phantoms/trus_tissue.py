"""Tissues of the male pelvis: what T2-weighted MR shows of them, and what sound meets in them.

Impedance and attenuation follow the usual tables of soft tissue (Szabo, Diagnostic Ultrasound Imaging, appendix B: fat 1.38, muscle 1.7, bone
about 6 MRayl); grey values of MR (0 to 1000), echo levels and all that is told about prostate zones are ours, set by eye.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np


class Tissue(IntEnum):
    """What a point of the pelvis is made of; the numbers index the tables."""

    FAT = 0
    MUSCLE = 1
    CORTEX = 2
    MARROW = 3
    URINE = 4
    BLADDER_WALL = 5
    RECTAL_WALL = 6
    MUCOSA = 7
    STOOL = 8
    GAS = 9
    GEL = 10
    PERIPHERAL = 11
    TRANSITION = 12
    CENTRAL = 13
    STROMA = 14
    SURGICAL_CAPSULE = 15
    CAPSULE = 16
    URETHRAL_MUSCLE = 17
    URETHRA = 18
    VESICLE = 19
    VESICLE_WALL = 20
    LESION = 21
    CALCIFICATION = 22
    VEIN = 23
    CARTILAGE = 24
    NODULE_RIM = 25
    NODULE_BRIGHT = 26
    NODULE_MIXED = 27
    NODULE_GREY = 28
    NODULE_DARK = 29
    NODULE_CYSTIC = 30


NODULES = (Tissue.NODULE_BRIGHT, Tissue.NODULE_MIXED, Tissue.NODULE_GREY, Tissue.NODULE_DARK, Tissue.NODULE_CYSTIC)


@dataclass(frozen=True)
class Properties:
    """`t2`: grey of T2-weighted MR, 0 to 1000; `texture`: its relative spread. `echo_db`: backscatter against the peripheral zone; `patchy_db`: its
    spread at a few mm; `impedance` in MRayl; `attenuation` in dB/cm/MHz, one way."""

    t2: float
    texture: float
    echo_db: float
    patchy_db: float
    impedance: float
    attenuation: float


TABLE = {
    Tissue.FAT: Properties(600, 0.08, 1, 4, 1.40, 0.55),
    Tissue.MUSCLE: Properties(125, 0.18, -8, 2.5, 1.68, 0.70),
    Tissue.CORTEX: Properties(20, 0.2, 4, 0, 6.0, 12.0),
    Tissue.MARROW: Properties(390, 0.14, -6, 0, 1.9, 8.0),
    Tissue.URINE: Properties(960, 0.02, -50, 0, 1.55, 0.01),
    Tissue.BLADDER_WALL: Properties(190, 0.12, -4, 1.0, 1.66, 0.55),
    Tissue.RECTAL_WALL: Properties(210, 0.15, -9, 1.0, 1.67, 0.55),
    Tissue.MUCOSA: Properties(470, 0.20, -1, 1.5, 1.62, 0.5),
    Tissue.STOOL: Properties(300, 0.30, -4, 3.0, 1.6, 1.0),
    Tissue.GAS: Properties(6, 0.0, 6, 2.0, 0.1, 14.0),
    Tissue.GEL: Properties(900, 0.0, -26, 0, 1.58, 0.05),
    Tissue.PERIPHERAL: Properties(740, 0.13, 0, 1.2, 1.63, 0.50),
    Tissue.TRANSITION: Properties(330, 0.22, -7, 2.5, 1.645, 0.52),
    Tissue.CENTRAL: Properties(270, 0.15, -2, 1.5, 1.64, 0.52),
    Tissue.STROMA: Properties(115, 0.15, -11, 1.5, 1.67, 0.60),
    Tissue.SURGICAL_CAPSULE: Properties(170, 0.15, -1, 1.5, 1.68, 0.60),
    Tissue.CAPSULE: Properties(190, 0.10, 1, 1.0, 1.69, 0.60),
    Tissue.URETHRAL_MUSCLE: Properties(200, 0.12, -11, 1.0, 1.66, 0.55),
    Tissue.URETHRA: Properties(680, 0.10, -5, 1.0, 1.61, 0.45),
    Tissue.VESICLE: Properties(880, 0.08, -15, 1.0, 1.57, 0.15),
    Tissue.VESICLE_WALL: Properties(230, 0.12, -4, 1.0, 1.65, 0.5),
    Tissue.LESION: Properties(235, 0.12, -9, 1.0, 1.66, 0.55),
    Tissue.CALCIFICATION: Properties(30, 0.1, 16, 0, 3.5, 14.0),
    Tissue.VEIN: Properties(800, 0.12, -18, 1.0, 1.61, 0.2),
    Tissue.CARTILAGE: Properties(260, 0.2, -4, 1.0, 1.8, 2.0),
    Tissue.NODULE_RIM: Properties(150, 0.12, -9, 0.5, 1.67, 0.6),
    Tissue.NODULE_BRIGHT: Properties(640, 0.18, -3, 1.8, 1.63, 0.45),
    Tissue.NODULE_MIXED: Properties(470, 0.24, -6, 2.2, 1.64, 0.5),
    Tissue.NODULE_GREY: Properties(340, 0.16, -5, 1.5, 1.65, 0.52),
    Tissue.NODULE_DARK: Properties(190, 0.14, -11, 1.5, 1.66, 0.58),
    Tissue.NODULE_CYSTIC: Properties(900, 0.06, -20, 0.5, 1.58, 0.1),
}


def column(name: str) -> np.ndarray:
    """One property of all tissues, float32 `(tissue,)`: index it with an array of tissues."""
    return np.array([getattr(TABLE[tissue], name) for tissue in Tissue], dtype=np.float32)
