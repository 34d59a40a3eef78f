"""The README's result tables, generated from the committed result files: no number there without a file behind it.

A table stands between <!-- results:NAME --> and <!-- /results:NAME --> and comes from bench/results/NAME.json.
"""
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.columns import Column, over_seeds
from bench.intervals import METRICS
from bench.verdicts import gain_is_real
from records.files import beside
from records.results import Results, Row, load

_BLOCK = re.compile(r"<!-- results:(?P<name>[\w.-]+) -->\n(?P<table>.*?)<!-- /results:(?P=name) -->", re.DOTALL)
_MARKER = re.compile(r"<!-- (/?)results:([\w.-]+) -->")


@dataclass(frozen=True)
class Table:
    """What a result file shows: which rows, in which order, under which columns."""
    columns: tuple[Column, ...]
    rows: Callable[[list[Row]], list[Row]] = list


def fill(text: str, folder: Path) -> str:
    """`text` with every table between markers replaced by the one its result file gives.

    Raises ValueError for an unknown name, a missing or foreign file, or a marker without its partner.
    """
    blocks = [match["name"] for match in _BLOCK.finditer(text)]
    markers = [name for _, name in _MARKER.findall(text)]
    if broken := [name for name in markers if markers.count(name) != 2 or blocks.count(name) != 1]:
        raise ValueError(f"results:{broken[0]}: got a marker without its partner, or twice; expected one "
                         "<!-- results:NAME --> and below it one <!-- /results:NAME -->, each on its own line")
    return _BLOCK.sub(lambda match: _block(match["name"], folder), text)


def table(name: str, folder: Path) -> str:
    """The Markdown table of one result file, and where it was measured. A column that no row fills is left out."""
    if name not in TABLES:
        raise ValueError(f"results:{name}: no such table; there are: {', '.join(TABLES)}")
    results = load(folder / f"{name}.json")
    rows = TABLES[name].rows(results.rows)
    columns = [column for column in TABLES[name].columns if any(row.get(column.field) is not None for row in rows)]
    head = [column.header for column in columns]
    rule = ["---:" if column.numeric else "---" for column in columns]
    body = [[column.cell(row) for column in columns] for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]
    return "\n".join([*lines, "", _source(results), ""])


def update(readme: Path, folder: Path, check: bool = False) -> bool:
    """Rewrites the README's tables; returns whether they changed. Raises ValueError if `check` and they would."""
    if not readme.is_file():
        raise ValueError(f"{readme}: no such file; give the README with --readme")
    before = readme.read_text()
    after = fill(before, folder)
    if before == after:
        return False
    if check:
        stale = [m["name"] for m, n in zip(_BLOCK.finditer(before), _BLOCK.finditer(after), strict=True)
                 if m["table"] != n["table"]]
        raise ValueError(f"{readme}: tables differ from their result files ({', '.join(stale)}); "
                         "run: vega3d bench tables")
    with beside(readme) as scratch:
        scratch.write_text(after)
    return True


def _block(name: str, folder: Path) -> str:
    return f"<!-- results:{name} -->\n{table(name, folder)}<!-- /results:{name} -->"


def _source(results: Results) -> str:
    env, devices = results.env, {row.get("device", "cuda") for row in results.rows}
    cpu = f"{env.get('cpu', 'unknown CPU')}, {env.get('cores', '?')} cores"
    machine = env.get("gpu", cpu) if "cuda" in devices else cpu
    return f"<sub>`{results.command}` on {machine}, commit {results.commit}: bench/results/{results.name}.json</sub>"


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

TABLES = {"nano_probe": _NANO_PROBE, "rooms_accuracy": _ROOMS_ACCURACY, "latency_cpu": _LATENCY_CPU,
          "int8_cpu": _INT8_CPU}
