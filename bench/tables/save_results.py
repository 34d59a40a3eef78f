"""Which rows of a bench make which file of bench/results, under the field names its table reads."""
from collections.abc import Sequence
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
    save(measured(name, [_without_kind(row) for row in selected], env), path)
    return path


def _without_kind(row: Row) -> Row:
    return {key: value for key, value in row.items() if key != "kind"}


def _latency_cpu(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "latency" and row["device"] == "cpu"]


def _rooms_accuracy(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "accuracy"]


def _int8_cpu(rows: Sequence[Row]) -> list[Row]:
    """Both precisions on onnxruntime's CPU provider, with the fidelity of the same file."""
    model = next((row["student"] for row in rows if row["kind"] == "run"), "student")
    scores = {row["sha256"]: row for row in _rooms_accuracy(rows) if "fp32_cosine_mean" in row}
    out = []
    for row in _latency_cpu(rows):
        if row["backend"] == "ort-cpu" and row["sha256"] in scores:
            score = scores[row["sha256"]]
            out.append({"model": model, **row, "cosine_mean": score["fp32_cosine_mean"],
                        "cosine_p1": score["fp32_cosine_p1"],
                        "delta1_vs_fp32": score.get("delta1_vs_fp32")})
    return out


def _crosscheck_cpu(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "crosscheck" and row["backend"] == "ort-cpu"]


_SELECTIONS = {"latency_cpu": _latency_cpu, "rooms_accuracy": _rooms_accuracy,
               "int8_cpu": _int8_cpu, "crosscheck_cpu": _crosscheck_cpu}
