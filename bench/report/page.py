"""The one-page report of a results file. Every number on it is a field of results.json or
arithmetic on one; the page loads nothing."""
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bench.accuracy.intervals import METRICS
from bench.device import busy
from bench.report import charts
from bench.report.axes import typeset
from bench.report.findings import findings, gain_is_real
from bench.report.gallery import data_url, strips, view_pairs
from bench.report.labels import ENVIRONMENT, GLOSSARY, accuracy_label, latency_label
from bench.report.pictures import FRAME_PX, colour_bar
from bench.report.precision_map import precision_maps
from bench.tables.columns import NONE, Column, columns, filled_columns, over_seeds
from records.files import atomic_write
from records.results import Results, Row

GENERATOR = b'<meta name="generator" content="vega3d-edge">'
PAGE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class DataTable:
    caption: str
    columns: Sequence[Column]
    rows: list[Row]


def check_replaceable(path: Path) -> None:
    """Raises ValueError if `path` exists and is not a report of ours."""
    if path.exists() and not (path.is_file() and GENERATOR in path.read_bytes()[:2000]):
        raise ValueError(f"{path}: exists and is not a report of vega3d bench; move it, or choose "
                         "another --out")


def write_report(results: Results, path: Path) -> None:
    """Writes the page of a results file of `vega3d bench`. A missing part names its command. Raises
    ValueError if `path` is a file of something else."""
    check_replaceable(path)
    unknown: Row = {"student": "Student", "generator": "generator", "run": ""}
    run = next(iter(results.of("run")), unknown)
    found = findings(results)
    pictures, no_pictures = strips(results, run["run"])
    pairs, judged = view_pairs(results, run["run"])
    write_template(
        PAGE.name, path, results=results, run=run, busy=busy(results.env), findings=found,
        latency=_latency_table(results, run), scatter=charts.scatter(results),
        stages=charts.stages(results), accuracy=_accuracy_table(results),
        gains=charts.gains(results), recovery=charts.recovery(results),
        int8=next((f for f in found if f.title.startswith("INT8")), None),
        int8_table=_int8_table(results),
        no_int8=next((row for row in results.of("absent") if "int8" in row["what"]), None),
        precision_maps=precision_maps(results), strips=pictures, no_pictures=no_pictures,
        colour_bar=data_url(colour_bar()), view_pairs=pairs, judged=judged, frame_px=FRAME_PX,
        title=f"{run['student']} distilled from {run['generator']}: what it costs, what it keeps",
        glossary=GLOSSARY, facts=facts(results, run))


def write_template(name: str, path: Path, **values: Any) -> None:
    """Writes the page of a template in this folder."""
    environment = Environment(
        loader=FileSystemLoader(PAGE.parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=StrictUndefined, finalize=_finalize)
    page = environment.get_template(name).render(NONE=NONE, **values)
    with atomic_write(path) as scratch:
        scratch.write_text(page)


def _finalize(value: Any) -> Any:
    """Typesets plain text; attributes are escaped in the template (Markup) and stay as they are."""
    return typeset(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _latency_table(results: Results, run: Row) -> DataTable | None:
    rows = results.of("latency")
    if not rows:
        return None
    draws = run.get("noise_draws", 1)
    labelled = [{**row, "label": latency_label(row, draws)} for row in rows]
    listed = columns(
        ("", "label"), ("median, ms", "latency_ms", 1), ("p90, ms", "p90_ms", 1),
        ("p99, ms", "p99_ms", 1), ("host to host, ms", "host_ms", 1),
        ("frames/s", "frames_per_s", 1), ("file or weights, MB", "size_mb", 1),
        ("peak memory, MB", "memory_mb", 0), ("mJ a frame", "energy_mj_per_frame", 1),
        ("faster than the generator", "speedup", 1, 1, "x"),
        ("faster than torch", "vs_torch", 2, 1, "x"))
    threads = rows[0]["threads"]
    caption = (f"Time of one call, {threads} CPU thread{'s' * (threads > 1)}, "
               f"{sum(row['iterations'] for row in rows)} calls in all, taken in turn.")
    return DataTable(caption, filled_columns(listed, labelled), labelled)


def _accuracy_table(results: Results) -> DataTable | None:
    rows = results.of("accuracy")
    if not rows:
        return None
    labelled = [{**row, "label": accuracy_label(row)} for row in over_seeds(rows, ("features",))]
    listed = columns(
        ("features read by the heads", "label"), ("depth δ<1.25", "delta1"),
        ("depth AbsRel", "abs_rel"), ("normal error, °", "normal_deg", 1), ("mIoU", "miou"),
        ("cosine to teacher", "cosine_mean"))
    if all(gain_is_real(rows, metric) for metric in METRICS):
        listed += columns(("recovery", "recovery", 0, 100, " %"))
    seeds = max(row["seeds"] for row in labelled)
    rooms = next((row["rooms"] for row in rows if "rooms" in row), None)
    clips = f"{rooms} rooms and their furniture unseen in training." if rooms else "Held-out clips."
    spread = "One seed."
    if seeds > 1:
        spread = f"Mean ± standard deviation over {seeds} seeds; exported files are of the first."
    return DataTable(f"{clips} {spread}", listed, labelled)


def _int8_table(results: Results) -> DataTable:
    """The exported files side by side; files for other machines have no time here."""
    timed = {row["sha256"]: row for row in results.of("latency")
             if row["backend"] == "ort-cpu" and row["batch"] == 1}
    rows = []
    for row in results.of("accuracy"):
        if "fp32_cosine_mean" in row:
            rows.append({**timed.get(row["sha256"], {}), **row, "label": accuracy_label(row)})
    listed = columns(
        ("file", "label"), ("size, MB", "size_mb", 1), ("median, ms", "latency_ms", 1),
        ("faster than FP32", "vs_fp32", 2, 1, "x"),
        ("cosine to FP32, mean", "fp32_cosine_mean", 5), ("1st percentile", "fp32_cosine_p1", 5),
        ("depth, points", "delta1_vs_fp32", 2, 100), ("normals, °", "normal_deg_vs_fp32", 2))
    return DataTable(
        "Each exported file against the student it was made from, on all held-out frames: cosine "
        "of the features, and what depth and normals change by. Times are onnxruntime's on the "
        "CPU; none: a file for another runtime.", listed, rows)


def facts(results: Results, run: Row) -> list[tuple[str, str]]:
    """Command, machine and versions of a results file, with their names."""
    packages = results.env.get("packages", {})
    env = results.env | {"packages": ", ".join(f"{k} {v}" for k, v in packages.items())}
    facts = [("command", results.command), ("run", run["run"]),
             ("student SHA-256", run.get("student_sha256", NONE))]
    return facts + [(ENVIRONMENT.get(key, key.replace("_", " ")), str(value))
                    for key, value in env.items()]
