"""How a table is declared in config.yaml, and how each measure is shown."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

TestName = Literal["paired-t", "one-sided-t", "wilcoxon", "sample-paired-t", "sample-one-sided-t", "mixed-model"]
TEST_LABELS: dict[str, str] = {
    "paired-t": "paired t-test",
    "one-sided-t": "one-sided paired t-test (better than the reference)",
    "wilcoxon": "Wilcoxon signed-rank test",
    "sample-paired-t": "paired t-test over registrations (not independent; as papers test)",
    "sample-one-sided-t": "one-sided paired t-test over registrations (not independent; as papers test)",
    "mixed-model": "mixed model over registrations with a random intercept a subject",
}
Statistic = Literal["mean ± SD", "mean (variance)", "median [IQR]", "median"]
STATISTIC_LABELS: dict[str, str] = {
    "mean ± SD": "mean ± standard deviation",
    "mean (variance)": "mean (variance)",
    "median [IQR]": "median [first to third quartile]",
    "median": "median",
}
# head of the column, factor, decimals (ours)
STYLES: dict[str, tuple[str, float, int]] = {
    "dice": ("Dice", 1, 3),
    "jaccard": ("Jaccard", 1, 3),
    "hd95_mm": ("HD95 (mm)", 1, 2),
    "surface_distance_mm": ("Surface distance (mm)", 1, 2),
    "hd95_learn2reg_vx": ("HD95, Learn2Reg (voxel)", 1, 2),
    "fixed_volume_ml": ("Volume, fixed labels (ml)", 1, 1),
    "moving_volume_ml": ("Volume, moving labels (ml)", 1, 1),
    "warped_volume_ml": ("Volume, warped labels (ml)", 1, 1),
    "displacement_error_mm": ("Displacement error (mm)", 1, 2),
    "tre_mm": ("TRE (mm)", 1, 2),
    "sre_mm": ("SRE (mm)", 1, 2),
    "translation_error_mm": ("Translation error (mm)", 1, 2),
    "rotation_error_deg": ("Rotation error (°)", 1, 2),
    "folding": ("Folding (%)", 100, 3),
    "folding_any_scheme": ("Folding, any scheme (%)", 100, 3),
    "sdlogj": ("SDlogJ", 1, 3),
    "sdlogj_learn2reg": ("SDlogJ, Learn2Reg", 1, 3),
    "uiqi": ("UIQI", 1, 3),
    "ssim": ("SSIM", 1, 3),
    "psnr_db": ("PSNR (dB)", 1, 1),
    "mse": ("MSE", 1, 4),
    "counterpart_mse_percent": ("MSE of the warped counterpart (%)", 1, 3),
    "translation_psnr_db": ("PSNR of the translation (dB)", 1, 2),
    "translation_ssim": ("SSIM of the translation", 1, 3),
    "seconds": ("Time (s)", 1, 1),
    "iteration_ms": ("Iteration (ms)", 1, 0),
    "peak_memory_mib": ("Peak memory (MiB)", 1, 0),
    "inference_ms": ("Inference (ms a stage)", 1, 1),
    "parameters": ("Parameters a stage", 1, 0),
    "spread_mm": ("Spread of predictions (mm)", 1, 2),
    "inverse_error_mm": ("Inverse consistency (mm)", 1, 3),
}


def split_key(key: str) -> tuple[str, str]:
    """Measure and start of `measure@start`; an empty start stands for all."""
    measure, _, start = key.partition("@")
    return measure, start


def measure_label(key: str) -> tuple[str, float, int]:
    """Head with unit, factor and decimals of a measure or `measure@start`; one without a style of its own is shown as it is."""
    metric, start = split_key(key)
    label, factor, digits = STYLES.get(metric, (metric.replace("_", " "), 1, 3))
    return f"{label}, from {start}" if start else label, factor, digits


class ColumnSettings(BaseModel):
    """A column: a measure, and how it is shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str = Field(description="measure")
    label: str = Field("", description="head of the column; empty: the measure's usual name and unit")
    structure: str = Field("", description="value of one structure only; empty: mean over structures. Tests are made over all structures")
    group: str = Field("", description="cases of this group (diagnosis, site, …) only; empty: all. Tests are made over all groups")
    level: Literal["", "base", "mid", "apex"] = Field("", description="slices of this third of the stack only; empty: all. Tests are made over all")
    start: str = Field("", description="registrations from this start only; empty: from all. a test of this column is that of measure@start")
    statistic: Statistic | None = Field(None, description="what its cells show; null: what the table says")
    better: Literal["higher", "lower", "neither"] | None = Field(None, description="which way is better; null: as the measure says")
    digits: int | None = Field(None, ge=0, le=8, description="decimals; null: the measure's usual number")
    factor: float | None = Field(None, gt=0, description="values are multiplied by this, 100 for percent; null: the measure's usual factor")

    @property
    def key(self) -> str:
        """What the column is called under `published`: the measure, measure:structure, measure/group, measure/level, measure@start."""
        parts = (self.structure and f":{self.structure}", self.group and f"/{self.group}", self.level and f"/{self.level}")
        return "".join((self.metric, *parts, self.start and f"@{self.start}"))

    @property
    def part(self) -> dict[str, str]:
        """Which registrations, by the columns of the scores (and of the cases) that choose them; empty: all."""
        return {name: value for name in ("group", "level", "start") if (value := getattr(self, name))}

    @property
    def whole(self) -> bool:
        """Whether tests are made of what it shows: of all structures, groups and levels."""
        return not (self.structure or self.group or self.level)

    @property
    def shown(self) -> tuple[str, float, int]:
        """Head, factor and decimals, defaults filled in."""
        label, factor, digits = measure_label(self.metric)
        group, level = self.group and f"group {self.group}", self.level
        parts = [label, self.structure and f"structure {self.structure}", group, level, self.start and f"from {self.start}"]
        label = self.label or ", ".join(part for part in parts if part)
        return label, self.factor or factor, digits if self.digits is None else self.digits

    @property
    def direction(self) -> str:
        """`higher`, `lower` or `neither`."""
        from pipeline.measures import MEASURES

        return self.better or (MEASURES[self.metric].better if self.metric in MEASURES else "neither")


class TableSettings(BaseModel):
    """A table of a study: a row a method, a column a measure."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    title: str = Field(description="heading of the table")
    rows: tuple[str, ...] = Field(min_length=1, description="methods, in this order; one that only has published figures may be among them")
    columns: tuple[str | ColumnSettings, ...] = Field(
        min_length=1, description="measures, or a mapping {metric, label, structure, group, level, start, statistic, better, digits, factor}"
    )
    labels: dict[str, str] = Field(default_factory=dict, description="what a row is called, where not by the method's name")
    unranked: tuple[str, ...] = Field(("identity",), description="rows that cannot be best: bold marks the best of the others")
    reference: str = Field("", description="method that the tests compare with; empty: no marks")
    test: TestName = Field("wilcoxon", description="test whose corrected p decides on the marks")
    alpha: float = Field(0.05, gt=0, lt=1, description="a corrected p below this is marked")
    statistic: Statistic = Field("mean ± SD", description="what a cell shows, over registrations, where its column says nothing else")
    published: dict[str, dict[str, str]] = Field(default_factory=dict, description="row: {measure: figure as printed in the paper}")
    source: str = Field("", description="where the published figures are printed")
    note: str = Field("", description="added to the caption")

    @model_validator(mode="after")
    def _published_belongs(self) -> TableSettings:
        keys = {column.key for column in self.all_columns}
        for row, figures in self.published.items():
            unknown = [key for key in figures if key not in keys] if row in self.rows else [row]
            if unknown:
                raise ValueError(f"published.{row}: {unknown[0]!r} is in no {'column' if row in self.rows else 'row'} of the table")
        return self

    @property
    def all_columns(self) -> tuple[ColumnSettings, ...]:
        """Columns with their settings, the statistic filled in."""
        columns = (ColumnSettings(metric=column) if isinstance(column, str) else column for column in self.columns)
        return tuple(column.model_copy(update={"statistic": column.statistic or self.statistic}) for column in columns)
