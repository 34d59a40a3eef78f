"""Which measured rows make which committed file of bench/results, under the field names its table
reads."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from records.results import Row, measured, save

NAMES = ("latency_cpu", "rooms_accuracy", "int8_cpu", "crosscheck_cpu")


def commit_rows(name: str, rows: Sequence[Row], env: dict[str, Any], folder: Path) -> Path:
    """Writes folder/NAME.json from the rows of a bench. Raises ValueError for another name, or no
    such rows."""
    if name not in NAMES:
        raise ValueError(f"--save {name}: no such result file; there are: {', '.join(NAMES)}")
    chosen = {"latency_cpu": _latency_cpu, "rooms_accuracy": _rooms_accuracy, "int8_cpu": _int8_cpu,
              "crosscheck_cpu": _crosscheck_cpu}[name](rows)
    if not chosen:
        needed = " --crosscheck (pip install polygraphy)" if name == "crosscheck_cpu" else ""
        raise ValueError(
            f"--save {name}: this bench measured no such rows; run: vega3d bench --save "
            f"{name}{needed}"
        )
    path = folder / f"{name}.json"
    save(measured(name, [{k: v
                          for k, v in row.items() if k != "kind"} for row in chosen], env), path)
    return path


def _latency_cpu(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "latency" and row["device"] == "cpu"]


def _rooms_accuracy(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "accuracy"]


def _crosscheck_cpu(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["kind"] == "crosscheck" and row["backend"] == "ort-cpu"]


def _int8_cpu(rows: Sequence[Row]) -> list[Row]:
    """Both precisions on onnxruntime's CPU provider, each with the fidelity of the very file (by
    SHA-256)."""
    model = next((row["student"] for row in rows if row["kind"] == "run"), "student")
    scores = {
        row["sha256"]: row
        for row in rows if row["kind"] == "accuracy" and "fp32_cosine_mean" in row
    }
    timed = [
        row for row in _latency_cpu(rows) if row["backend"] == "ort-cpu" and row["sha256"] in scores
    ]
    return [{"model": model, **row, "cosine_mean": scores[row["sha256"]]["fp32_cosine_mean"],
             "cosine_p1": scores[row["sha256"]]["fp32_cosine_p1"],
             "delta1_vs_fp32": scores[row["sha256"]].get("delta1_vs_fp32")} for row in timed]
