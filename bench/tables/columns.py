"""Columns of a table, and rows of several seeds as one row with their spread."""
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from records.results import Row

NONE = "–"
TEXT = {  # fields whose cells are aligned to the left
    "features", "head", "mode", "model", "backend", "precision", "artefact", "stage", "label",
    "device", "timer", "launch", "work", "what", "tool", "unit", "task", "metric", "tune", "path",
    "outcome", "variant", "weights", "gate", "training", "name", "file", "runtime", "ran_on",
    "frames_from", "minus", "vae", "arm", "part", "recording"
}


@dataclass(frozen=True)
class Column:
    """A header with its unit, and the field below it. Numbers get `digits` decimals after `scale`
    (None: four significant digits); text stays."""
    header: str
    field: str
    digits: int | None = 3
    scale: float = 1.0
    suffix: str = ""

    def cell(self, row: Row) -> str:
        """As text, with ± and the spread over seeds where the row has one; a dash without value."""
        value = row.get(self.field)
        if value is None or value == "":
            return NONE
        if isinstance(value, bool | str):
            return str(value)
        value *= self.scale
        text = f"{value:.4g}" if self.digits is None else f"{value:.{self.digits}f}"
        if float(text) == 0:
            text = text.removeprefix("-")
        spread = row.get(f"{self.field}_std")
        if spread is not None:
            text += f" ± {spread * self.scale:.{3 if self.digits is None else self.digits}f}"
        return text + self.suffix

    @property
    def numeric(self) -> bool:
        """Whether its cells are aligned to the right."""
        return self.field not in TEXT


def columns(*specs: tuple) -> tuple[Column, ...]:
    """Columns from the arguments of each."""
    return tuple(Column(*spec) for spec in specs)


def filled_columns(columns: Sequence[Column], rows: Sequence[Row]) -> list[Column]:
    """Those that have a value in any row."""
    filled = {field for row in rows for field, value in row.items() if value not in (None, "")}
    return [column for column in columns if column.field in filled]


def over_seeds(rows: Sequence[Row], by: Sequence[str]) -> list[Row]:
    """One row for each combination of `by`, in order of appearance: numbers become their mean over
    seeds, beside FIELD_std, their sample standard deviation; text is the first seed's; `seeds`
    counts them."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.get(key) for key in by), []).append(row)
    return [_merged(group, by) for group in groups.values()]


def _merged(group: list[Row], by: Sequence[str]) -> Row:
    merged: Row = {"seeds": len({row.get("seed") for row in group})}
    for key in dict.fromkeys(key for row in group for key in row):
        values = [row[key] for row in group if row.get(key) is not None]
        if key in by or key == "seed" or not values or isinstance(values[0], str | bool):
            merged.setdefault(key, values[0] if values else None)
            continue
        merged[key] = statistics.fmean(values)
        if len(values) > 1:
            merged[f"{key}_std"] = statistics.stdev(values)
    return merged


def mean_difference(values: Sequence[float], scale: float = 100.0) -> str:
    """The mean of differences of trainings, times `scale` (shares: in points), with its 95 %
    t-interval; of one value without."""
    from scipy.special import stdtrit

    mean, degrees = statistics.fmean(values), len(values) - 1
    if not degrees:
        return with_interval(mean, None, None, scale)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(stdtrit(degrees, 0.975)) * error
    return with_interval(mean, mean - half, mean + half, scale)


def with_interval(value: float, low: float | None, high: float | None,
                  scale: float = 100.0) -> str:
    """Such as +1.2 (+0.4 … +2.0), times `scale` (shares: in points); without bounds if None."""
    if low is None or high is None:
        return signed(value, scale)
    return f"{signed(value, scale)} ({signed(low, scale)} … {signed(high, scale)})"


def signed(value: float, scale: float = 100.0) -> str:
    return f"{round(scale * value, 1) + 0.0:+.1f}"  # + 0.0: no -0.0
