"""Clinical read-outs of a cine study: volumes of the left ventricle at end-systole and its ejection fraction, as a cardiologist checks them.

The end-diastolic label map, warped to end-systole by a method's transform, is measured beside the label map of end-systole
itself. Volumes of slices are measures like others (`label_volumes_ml`); here they are summed over a subject's slices, and the
two are compared as Bland and Altman do (Lancet 1986; Stat Methods Med Res 1999): bias and limits of agreement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.cases import Case
from pipeline.errors import ConcordError, choices
from pipeline.files import write_text
from pipeline.table_formats import DASH, Cell, Grid, Heading, number, to_html, to_latex, to_markdown

if TYPE_CHECKING:
    import pandas as pd

    from pipeline.measures import Scored
    from pipeline.tables import TableContext

VOLUMES = ("fixed_volume_ml", "moving_volume_ml", "warped_volume_ml")
"""The measures that the read-outs are made of."""
LIMITS = 1.96
"""Standard deviations from the bias to a limit of agreement: 95 % of a normal distribution."""
STACK = ["subject", "start"]


class Quantity(NamedTuple):
    """What a read-out is called, in short and in words, and its unit."""

    short: str
    name: str
    unit: str


QUANTITIES = {
    "esv_ml": Quantity("ESV", "Left ventricle at ES", "ml"),
    "ef_percent": Quantity("EF", "Ejection fraction", "%"),
    "myocardium_ml": Quantity("Myocardium", "Myocardium at ES", "ml"),
}


class ClinicalSettings(BaseModel):
    """Volumes at end-systole and ejection fraction by warped labels, beside those of the labels themselves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    title: str = Field(description="heading of the table and the figure")
    methods: tuple[str, ...] = Field(min_length=1, description="methods, a row each")
    drawn: tuple[str, ...] = Field((), description="methods of the Bland-Altman plot, a column each; empty: all of the table")
    labels: dict[str, str] = Field(default_factory=dict, description="what a method is called, where not by its name")
    unranked: tuple[str, ...] = Field(("identity",), description="methods that cannot be best: bold marks the smallest error of the others")
    cavity: int = Field(3, ge=1, description="label of the left-ventricular cavity")
    myocardium: int = Field(2, ge=1, description="label of the myocardium")
    caption: str = Field("", description="added to the captions")

    @model_validator(mode="after")
    def _drawn_stand_in_the_table(self) -> ClinicalSettings:
        for name in self.drawn:
            if name not in self.methods:
                raise ValueError(f"drawn: no {name!r}{choices(name, self.methods)}")
        return self


class ReadOuts(NamedTuple):
    """Values of every method and subject, and which subjects a method has not.

    `values`: columns method, subject, start, slices, edv_ml, quantity, unit, reference, found. `left_out`: method and subject with its reason.
    """

    values: pd.DataFrame
    left_out: tuple[tuple[str, str], ...]


def label_volumes_ml(scored: Scored, which: Literal["fixed", "moving", "warped"]) -> dict[int, float]:
    """Volume in ml of every structure of either label map (0 where it is in the other one only); of a slice, its area times the slices' distance.

    Empty for a 2-D case whose `slice_spacing_mm` is not known.
    """
    fixed, moving = scored.fixed_labels, scored.moving_labels
    thickness_mm = 1.0 if fixed.dimension == 3 else scored.case.slice_spacing_mm
    if thickness_mm is None:
        return {}
    geometry = (moving if which == "moving" else fixed).geometry
    array = {"fixed": fixed.array, "moving": moving.array}[which] if which != "warped" else scored.warped_labels
    voxel_ml = math.prod(geometry.spacing_mm) * thickness_mm / 1000
    labels = np.union1d(fixed.array, moving.array)
    return {int(label): voxel_ml * int(np.count_nonzero(array == label)) for label in labels[labels != 0]}


def read_outs(settings: ClinicalSettings, scores: pd.DataFrame, cases: Iterable[Case]) -> ReadOuts:
    """End-systolic volumes and ejection fractions of every method and subject, from test cases with end-systole fixed and end-diastole moving.

    A subject counts for a method that has all its slices. Raises `ConcordError` where there are no such cases, no volumes, or
    no method has a whole subject.
    """
    stacks = _stacks(cases)
    volumes = _slice_volumes(settings, scores, stacks)
    grouped = volumes.groupby(["method", *STACK])
    summed, counted = grouped.sum(), grouped.size()
    wanted = stacks.groupby(STACK).size()
    whole = counted.to_numpy() == wanted.reindex(counted.index.droplevel("method")).to_numpy()
    ready = summed[whole & (summed[("moving_volume_ml", str(settings.cavity))] > 0).to_numpy()]
    if ready.empty:
        raise ConcordError(
            f"clinical {settings.title!r}: no method has all slices of a subject and label {settings.cavity} in them; expected the cavity's label as `cavity`"
        )
    return ReadOuts(_quantities(settings, ready, wanted), tuple(_left_out(settings, set(ready.index), counted.to_dict(), wanted.to_dict())))


def agreement(values: pd.DataFrame) -> pd.DataFrame:
    """Bias, SD, limits of agreement and mean absolute error of every method and quantity: warped minus own labels, over subjects.

    SD has n - 1, so it and the limits are nan for a single subject.
    """
    import pandas as pd

    rows = []
    for (method, quantity), mine in values.groupby(["method", "quantity"], sort=False):
        error = (mine["found"] - mine["reference"]).to_numpy()
        bias, sd = float(error.mean()), float(error.std(ddof=1)) if error.size > 1 else math.nan
        head = {"method": method, "quantity": quantity, "unit": QUANTITIES[quantity].unit, "n": error.size}
        truth = {"reference_mean": mine["reference"].mean(), "reference_sd": mine["reference"].std(ddof=1)}
        limits = {"lower": bias - LIMITS * sd, "upper": bias + LIMITS * sd}
        rows.append({**head, **truth, "bias": bias, "sd": sd, **limits, "mean_absolute_error": float(np.abs(error).mean())})
    return pd.DataFrame(rows)


def write_read_outs(settings: ClinicalSettings, found: ReadOuts, context: TableContext, stem: Path | str) -> None:
    """Write stem.csv (a row a method and quantity), stem-subjects.csv (a row a method, subject and quantity), and stem.md, .tex, .html."""
    compared = agreement(found.values)
    for column, name in enumerate(("study", "dataset", "scale")):
        compared.insert(column, name, getattr(context, name))
    grid = clinical_grid(settings, found, context)
    write_text(f"{stem}.csv", compared.to_csv(index=False))
    write_text(f"{stem}-subjects.csv", found.values.to_csv(index=False))
    write_text(f"{stem}.md", to_markdown(grid))
    write_text(f"{stem}.tex", to_latex(grid, f"{context.study}-{Path(stem).name}"))
    write_text(f"{stem}.html", to_html(grid))


def clinical_grid(settings: ClinicalSettings, found: ReadOuts, context: TableContext) -> Grid:
    """The table: a row a method, of every quantity bias ± SD, limits of agreement, and mean absolute error, the smallest in bold."""
    compared = {(row["method"], row["quantity"]): row for row in agreement(found.values).to_dict("records")}
    shown = {key: number(row["mean_absolute_error"], 1) for key, row in compared.items() if key[0] not in settings.unranked}
    best = {name: min((text for key, text in shown.items() if key[1] == name), key=float, default="") for name in QUANTITIES}
    heads = [Heading("Method", "text"), Heading("n")]
    for short, _, unit in QUANTITIES.values():
        heads += [Heading(f"{short}: {what} ({unit})") for what in ("bias ± SD", "limits of agreement", "mean absolute error")]
    rows = []
    for method in settings.methods:
        mine = [compared.get((method, name)) for name in QUANTITIES]
        cells = [Cell(settings.labels.get(method, method)), Cell(str(int(mine[0]["n"])) if mine[0] else "0")]
        for name, row in zip(QUANTITIES, mine, strict=True):
            cells += _cells(row, bold=row is not None and shown.get((method, name)) == best[name]) if row else [Cell(DASH)] * 3
        rows.append(tuple(cells))
    return Grid(settings.title, tuple(heads), tuple(rows), tuple(_caption(settings, found, context)))


def _cells(row: dict[str, float], *, bold: bool) -> list[Cell]:
    bias, sd, lower, upper, error = (number(row[name], 1) for name in ("bias", "sd", "lower", "upper", "mean_absolute_error"))
    limits = DASH if lower == DASH else f"{lower} to {upper}"
    return [Cell(bias if sd == DASH else f"{bias} ± {sd}"), Cell(limits), Cell(error, bold)]


def _caption(settings: ClinicalSettings, found: ReadOuts, context: TableContext) -> Iterator[str]:
    """The sentences below the table."""
    own = found.values.drop_duplicates([*STACK, "quantity"])
    slices = int(own.drop_duplicates(STACK)["slices"].sum())
    yield f"Dataset {context.dataset}, study {context.study}, scale {context.scale}: {slices} slices of {own['subject'].nunique()} subjects."
    yield (
        "ED label maps, warped to ES by each method's transform, against the label maps of ES themselves: volume of the left ventricle's cavity (ESV), "
        "ejection fraction (EF), (EDV - ESV) / EDV with the EDV of the ED label map, and volume of the myocardium, all at ES."
    )
    yield (
        "Volumes are those of the slices that were registered (labelled in both phases), their areas times the distance of slices, "
        "counted in the pixels in which they were registered: not of the whole ventricle."
    )
    yield (
        "Bias: mean over subjects of warped minus own labels; limits of agreement: bias ± 1.96 SD (Bland and Altman), each with a standard error of "
        "about √(3 / n) SD; differences of EF are in percentage points."
    )
    means = own.groupby("quantity", sort=False)["reference"].agg(["mean", "std"])
    named = (f"{QUANTITIES[name].short} {_spread(row['mean'], row['std'])} {QUANTITIES[name].unit}" for name, row in means.iterrows())
    yield f"The ES labels themselves: {', '.join(named)} (mean ± SD)."
    unranked = [settings.labels.get(name, name) for name in settings.unranked if name in settings.methods]
    yield f"Bold: smallest mean absolute error{' but for ' + ', '.join(unranked) if unranked else ''}, with ties as printed."
    if found.left_out:
        yield f"Left out: {'; '.join(f'{settings.labels.get(method, method)} {reason}' for method, reason in found.left_out)}."
    if settings.caption:
        yield settings.caption


def _spread(mean: float, sd: float) -> str:
    return number(mean, 1) if math.isnan(sd) else f"{number(mean, 1)} ± {number(sd, 1)}"


def _stacks(cases: Iterable[Case]) -> pd.DataFrame:
    """Name, subject and start of the test cases that bring end-diastole to end-systole."""
    import pandas as pd

    cases = [case for case in cases if case.split == "test"]
    chosen = [(case.case, case.subject, case.start) for case in cases if (case.fixed_phase, case.moving_phase) == ("ES", "ED")]
    if not chosen:
        raise ConcordError(
            f"clinical: none of {len(cases)} test cases has fixed_phase ES and moving_phase ED; "
            "expected a dataset with `direction: es-ed` or `both`, or these columns in the table of cases"
        )
    return pd.DataFrame(chosen, columns=["case", *STACK])


def _slice_volumes(settings: ClinicalSettings, scores: pd.DataFrame, stacks: pd.DataFrame) -> pd.DataFrame:
    """Volumes by method, subject, start and case (rows), and by measure and structure (columns); a structure that a case has not is 0."""
    import pandas as pd

    mine = scores["method"].isin(settings.methods) & scores["case"].isin(stacks["case"])
    rows = scores[mine & scores["metric"].isin(VOLUMES) & scores["value"].notna()]
    if absent := [name for name in VOLUMES if name not in set(rows["metric"])]:
        raise ConcordError(
            f"clinical {settings.title!r}: no scores of {', '.join(absent)}; expected them among the study's measures, "
            "and of 2-D cases `slice_spacing_mm` in the table of cases, which prepare.slices writes"
        )
    # subject and start from the cases: the scores name them, too, but it is there that they are counted
    rows = rows[["method", "case", "metric", "structure", "value"]].merge(stacks, on="case")
    table = rows.pivot_table(index=["method", *STACK, "case"], columns=["metric", "structure"], values="value")
    measured = np.all([table[name].notna().any(axis=1) for name in VOLUMES], axis=0)
    wanted = pd.MultiIndex.from_product([VOLUMES, [str(settings.cavity), str(settings.myocardium)]])
    return table[measured].reindex(columns=wanted).fillna(0.0)


def _quantities(settings: ClinicalSettings, volumes: pd.DataFrame, slices: pd.Series) -> pd.DataFrame:
    """The read-outs of summed volumes, a row a method, subject and quantity, methods in their order."""
    import pandas as pd

    cavity, myocardium = str(settings.cavity), str(settings.myocardium)
    edv = volumes[("moving_volume_ml", cavity)]
    pairs = {}
    for kind, metric in (("reference", "fixed_volume_ml"), ("found", "warped_volume_ml")):
        esv = volumes[(metric, cavity)]
        pairs[kind] = {"esv_ml": esv, "ef_percent": 100 * (edv - esv) / edv, "myocardium_ml": volumes[(metric, myocardium)]}
    count = slices.reindex(volumes.index.droplevel("method")).to_numpy()
    head = pd.DataFrame({"slices": count, "edv_ml": edv})
    tables = [
        head.assign(quantity=name, unit=QUANTITIES[name].unit, reference=pairs["reference"][name], found=pairs["found"][name]) for name in QUANTITIES
    ]
    order = {
        "method": {name: place for place, name in enumerate(settings.methods)},
        "quantity": {name: place for place, name in enumerate(QUANTITIES)},
    }
    every = pd.concat(tables).reset_index()
    return every.sort_values(["method", "quantity", *STACK], key=lambda column: column.map(order[column.name]) if column.name in order else column)


def _left_out(
    settings: ClinicalSettings, ready: set[tuple[str, ...]], counted: dict[tuple[str, ...], int], wanted: dict[tuple[str, ...], int]
) -> Iterator[tuple[str, str]]:
    """Every method's subjects that are not among its read-outs, with how many of their slices have volumes."""
    for method in settings.methods:
        lacking = [stack for stack in wanted if (method, *stack) not in ready]
        told = [f"{' from '.join(filter(None, stack))} ({counted.get((method, *stack), 0)} of {wanted[stack]} slices)" for stack in lacking]
        if told:
            yield method, ", ".join(told)


def drawn_methods(settings: ClinicalSettings, values: pd.DataFrame) -> Sequence[str]:
    """The methods of the plot that have read-outs, in their order."""
    known = set(values["method"])
    return [name for name in settings.drawn or settings.methods if name in known]
