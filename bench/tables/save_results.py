"""Which rows of a bench make which file of bench/results, under the field names its table reads."""
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from records.results import Row, measured, save


def save_result_file(name: str, rows: Sequence[Row], env: dict[str, Any], folder: Path) -> Path:
    """Writes folder/NAME.json. Raises ValueError for another name, or if there are no such rows."""
    if name not in _SELECTIONS:
        raise ValueError(f"--save {name}: no such result file; there are: {', '.join(_SELECTIONS)}")
    selected = _SELECTIONS[name](rows)
    if not selected:
        needed = " --crosscheck (pip install polygraphy)" if name == "crosscheck_cpu" else ""
        raise ValueError(f"--save {name}: this bench measured no such rows; run: vega3d bench "
                         f"--save {name}{needed}")
    path = folder / f"{name}.json"
    rows = [{key: value for key, value in row.items() if key != "kind"} for row in selected]
    save(measured(name, rows, env), path)
    return path


def _of(rows: Sequence[Row], **wanted: str) -> list[Row]:
    return [row for row in rows if wanted.items() <= row.items()]


_SELECTIONS: dict[str, Callable[[Sequence[Row]], list[Row]]] = {
    "latency_cpu": partial(_of, kind="latency", device="cpu"),
    "rooms_accuracy": partial(_of, kind="accuracy"),
    "crosscheck_cpu": partial(_of, kind="crosscheck", backend="ort-cpu")}
