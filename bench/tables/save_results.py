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


def _int8_cpu(rows: Sequence[Row]) -> list[Row]:
    """Both precisions on onnxruntime's CPU provider, with the fidelity of the same file."""
    model = next((row["student"] for row in _of(rows, kind="run")), "student")
    scores = {row["sha256"]: row for row in _of(rows, kind="accuracy") if "fp32_cosine_mean" in row}
    out = []
    for row in _of(rows, kind="latency", device="cpu", backend="ort-cpu"):
        if score := scores.get(row["sha256"]):
            out.append({"model": model, **row, "cosine_mean": score["fp32_cosine_mean"],
                        "cosine_p1": score["fp32_cosine_p1"],
                        "delta1_vs_fp32": score.get("delta1_vs_fp32")})
    return out


_SELECTIONS: dict[str, Callable[[Sequence[Row]], list[Row]]] = {
    "latency_cpu": partial(_of, kind="latency", device="cpu"),
    "rooms_accuracy": partial(_of, kind="accuracy"), "int8_cpu": _int8_cpu,
    "crosscheck_cpu": partial(_of, kind="crosscheck", backend="ort-cpu")}
