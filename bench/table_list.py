"""What each result file shows as a table: which rows, in which order, under which columns."""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bench.columns import Column, over_seeds
from bench.intervals import METRICS
from bench.verdicts import gain_is_real
from records.results import Row


@dataclass(frozen=True)
class Table:
    columns: tuple[Column, ...]
    rows: Callable[[list[Row]], list[Row]] = list


def plain_table(fields: Sequence[str]) -> Table:
    """Fields under their own names, in the rows that have them all."""
    columns = tuple(Column(field.replace("_", " "), field, None) for field in fields)
    return Table(columns, lambda rows: [row for row in rows if all(row.get(field) is not None for field in fields)])


def _probes(rows: list[Row]) -> list[Row]:
    """The best of each control, then the best generator row of each mode and number of noise draws."""
    def strength(row: Row) -> float:
        return (row["depth_r2_mlp"] or 0) + (row["normal_cos"] or 0)

    def best(group: Sequence[Row]) -> Row:
        return max(group, key=strength)

    generator = [row for row in rows if row["features"].startswith("generator")]
    controls = [row for row in rows if row not in generator]
    names = dict.fromkeys(row["features"] for row in controls)
    shown = [best([row for row in controls if row["features"] == name]) for name in names]
    taps = sorted({(row["seeds"], row["mode"]) for row in generator})
    return shown + [best([row for row in generator if (row["seeds"], row["mode"]) == tap]) for tap in taps]


def _rooms(rows: list[Row]) -> list[Row]:
    """Mean and spread over seeds; rows of one seed only (exported files) as they are.

    A share of the generator's gain is shown unless that gain was measured and may be zero.
    """
    measured = any("delta1_vs_semantic_low" in row for row in rows)
    if measured and not all(gain_is_real(rows, metric) for metric in METRICS):
        rows = [{key: value for key, value in row.items() if key != "recovery"} for row in rows]
    return over_seeds(rows, ("features", "head"))


def _timed(rows: list[Row]) -> list[Row]:
    """As graphs, and launched call by call where a lone frame's latency is the question."""
    return [row for row in rows if row.get("kind") == "latency" and (row.get("launch") == "graph" or row["batch"] == 1)]


_NANO_PROBE = Table((
    Column("features", "features"), Column("frames", "mode"), Column("noise t", "t", 2), Column("block", "block", 0),
    Column("noise draws", "seeds", 0), Column("depth R², ridge", "depth_r2_ridge"),
    Column("depth R², MLP", "depth_r2_mlp"), Column("depth δ<1.25", "delta1"), Column("normal cosine", "normal_cos"),
    Column("match, exact", "match_exact", 2), Column("match, within 1 token", "match_1", 2)), _probes)

_ROOMS_ACCURACY = Table((
    Column("features", "features"), Column("head", "head"), Column("seeds", "seeds", 0),
    Column("depth δ<1.25", "delta1"), Column("depth AbsRel", "abs_rel"), Column("normal error, °", "normal_deg", 1),
    Column("mIoU", "miou"), Column("cosine to teacher", "cosine_mean"), Column("recovery of the gain", "recovery", 2)),
    _rooms)

_LATENCY_CPU = Table((
    Column("file", "artefact"), Column("stage", "stage"), Column("runs on", "backend"),
    Column("precision", "precision"), Column("batch", "batch", 0), Column("median, ms", "latency_ms", 1),
    Column("p90, ms", "p90_ms", 1), Column("p99, ms", "p99_ms", 1), Column("size, MB", "size_mb", 1),
    Column("peak memory, MB", "memory_mb", 0), Column("faster than the generator", "speedup", 1, suffix="x")))

_INT8_CPU = Table((
    Column("model", "model"), Column("precision", "precision"), Column("runs on", "backend"),
    Column("batch", "batch", 0), Column("median, ms", "latency_ms", 1),
    Column("faster than FP32", "vs_fp32", 2, suffix="x"), Column("faster than FP16", "vs_fp16", 2, suffix="x"),
    Column("cosine to FP32, mean", "cosine_mean", 5), Column("1st percentile", "cosine_p1", 5),
    Column("size, MB", "size_mb", 1)))

_LATENCY_H200 = Table((
    Column("file", "artefact"), Column("stage", "stage"), Column("runs on", "backend"), Column("launch", "launch"),
    Column("precision", "precision"), Column("batch", "batch", 0), Column("GPU median, ms", "latency_ms", 3),
    Column("p90, ms", "p90_ms", 3), Column("p99, ms", "p99_ms", 3), Column("host to host, ms", "host_ms", 3),
    Column("frames/s", "frames_per_s", 0), Column("mJ a frame", "energy_mj_per_frame", 1),
    Column("memory, MB", "memory_mb", 0), Column("faster than the generator", "speedup", 1, suffix="x")), _timed)

_TIMER = Table((
    Column("work of a known length", "work"), Column("on", "device"), Column("truth, ms", "truth_ms", 4),
    Column("measured, ms", "latency_ms", 4), Column("off by, %", "error_percent", 2)),
    lambda rows: [row for row in rows if row["kind"] == "timer"])

_RENDERING = Table((
    Column("processes", "workers", 0), Column("frames", "frames", 0), Column("px", "size_px", 0),
    Column("frames/s, all in", "frames_per_s", 0), Column("frames/s once all are at work", "steady_frames_per_s", 0),
    Column("MB/s written", "mb_per_s", 0)), lambda rows: [row for row in rows if "workers" in row])

_TRIALS = Table((
    Column("trials", "trials", 0), Column("same file called equal", "equal", 0),
    Column("10 % slower: trials", "slower_10_trials", 0), Column("called slower", "slower_10_seen", 0),
    Column("20 % slower: trials", "slower_20_trials", 0), Column("called slower", "slower_20_seen", 0),
    Column("30 % slower: trials", "slower_30_trials", 0), Column("called slower", "slower_30_seen", 0)),
    lambda rows: [row for row in rows if row["what"] == "tally"])

TABLES = {"nano_probe": _NANO_PROBE, "rooms_accuracy": _ROOMS_ACCURACY, "latency_cpu": _LATENCY_CPU,
          "int8_cpu": _INT8_CPU, "latency_h200": _LATENCY_H200, "timer_h200": _TIMER, "timer_cpu": _TIMER,
          "rendering_h200": _RENDERING, "compare_trials": _TRIALS}
