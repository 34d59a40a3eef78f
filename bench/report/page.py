"""The one-page report: what the student costs and what it keeps, from a results file alone, with
nothing to fetch.

Every number on it is a field of results.json or arithmetic on one; the pictures are the run's own
(bench.strips).
"""
from collections.abc import Sequence
from html import escape
from pathlib import Path
from string import Template

from bench.accuracy.intervals import METRICS
from bench.device import busy
from bench.report.charts import gains, recovery, scatter, stages
from bench.report.gallery import correspondences, gallery
from bench.report.html import Html, el, html_table, join
from bench.report.labels import accuracy_label, latency_label
from bench.report.precision_map import precision_maps
from bench.report.verdicts import gain_is_real, verdicts
from bench.tables.columns import Column, over_seeds
from records.files import atomic_write
from records.results import Results, Row

PAGE = Path(__file__).parent / "page.html"
MEANINGS = {
    "depth δ<1.25": "Share of pixels whose depth is within 25 % of the true one. Higher is better.",
    "AbsRel": "Mean of |depth − truth| / truth. Lower is better.",
    "normal error": "Mean angle between the surface direction that was read out and the true one. "
                    "Lower is better.",
    "mIoU": "Overlap of predicted and true class regions, averaged over classes. Higher is better.",
    "cosine": "Agreement of two feature vectors of one image patch: 1 is the same direction, 0 "
              "unrelated.",
    "recovery":
        "Where the student stands between semantic features alone (0 %) and the teacher (100 %), "
        "the teacher's heads unchanged.",
    "median, p90, p99": "Half, nine tenths and all but one hundredth of the calls were at least "
                        "this quick.",
    "faster": "Ratio of two medians taken in the same rounds of the same run, so that a drifting "
              "machine cancels out.",
    "interval, 95 %": "What the figure could be with other rooms: paired bootstrap over the "
                      "held-out rooms.",
    "peak memory": "Resident size, at its largest, of a process that only loads and runs this; "
                   "libraries included.",
}
FACTS = {
    "cpu": "CPU", "memory_gb": "memory, GB", "cpu_mhz": "CPU clock, MHz",
    "load_1m": "load average before", "load_1m_after": "load average after", "gpu": "GPU",
    "gpu_count": "GPUs", "sm": "compute capability", "cuda": "CUDA"
}


def write_report(results: Results, path: Path) -> None:
    """Writes the page for a results file of `vega3d bench`, whole or in part: what is missing names
    its command."""
    about = next(iter(results.of("run")),
                 {"student": "Student", "generator": "generator", "run": ""})
    title = f"{about['student']} distilled from {about['generator']}: what it costs, what it keeps"
    sections = (_cost(results, about), _kept(results), _int8(results, about), _precision(results),
                gallery(results, about), correspondences(results,
                                                         about), _words(), _setting(results, about))
    body = join(
        [_header(title, about, results),
         el("main", *filter(None, sections)),
         _footer(results)])
    with atomic_write(path) as scratch:
        scratch.write_text(Template(PAGE.read_text()).substitute(title=escape(title), body=body))


def _header(title: str, about: Row, results: Results) -> Html:
    tiles = [el("li", el("h3", v.title), el("div", v.figure, class_="figure"), el("p", v.sentence))
             for v in verdicts(results)]
    parts = [el("h1", title)]
    if "parameters_m" in about:
        draws = f"mean of {about['noise_draws']} noise draws" if about[
            "noise_draws"] > 1 else "one noise draw"
        parts.append(
            el(
                "p",
                f"One RGB frame of 224 px in, {about['feature_width']} geometric features on a "
                f"14x14 grid out, by {about['parameters_m']:.1f} M parameters. The teacher reads "
                f"block {about['block']} of the video generator at noise level {about['t']} "
                f"({about['mode']} mode, {draws}) beside a semantic encoder.", class_="lead"))
    if busy(results.env):
        parts.append(
            el(
                "p",
                "Other work was running on this machine while it was measured: trust the ratios, "
                "which were taken in turn, more than the milliseconds.", class_="notice"))
    if tiles:
        parts += [el("h2", "In short", class_="hidden"), el("ul", *tiles, class_="tiles")]
    return el("header", *parts)


def _cost(results: Results, about: Row) -> Html:
    rows = results.of("latency")
    if not rows:
        return _section("Cost", _missing("Latency", "vega3d bench latency"))
    named = [{**row, "label": latency_label(row, about.get("noise_draws", 1))} for row in rows]
    columns = [
        Column("", "label"),
        Column("median, ms", "latency_ms", 1),
        Column("p90, ms", "p90_ms", 1),
        Column("p99, ms", "p99_ms", 1),
        Column("host to host, ms", "host_ms", 1),
        Column("frames/s", "frames_per_s", 1),
        Column("file or weights, MB", "size_mb", 1),
        Column("peak memory, MB", "memory_mb", 0),
        Column("mJ a frame", "energy_mj_per_frame", 1),
        Column("faster than the generator", "speedup", 1, suffix="x"),
        Column("faster than torch", "vs_torch", 2, suffix="x")
    ]
    columns = [
        column for column in columns if any(row.get(column.field) is not None for row in named)
    ]
    threads = rows[0]["threads"]
    caption = (
        f"Time of one call, {threads} CPU thread{'s' * (threads > 1)}, "
        f"{sum(r['iterations'] for r in rows)} calls in all, taken in turn.")
    charts = [
        _figure("Accuracy against latency and size",
                "Up and left is better; the area of a disc is the size of "
                "the file.", scatter(results)),
        _figure(
            "Where the time of a frame goes",
            "The student stands in for VAE and transformer; the semantic "
            "encoder runs beside either.", stages(results))
    ]
    return _section(
        "Cost", el("p", "What one frame costs, from the teacher's stages to the files that ship."),
        _pair(charts), html_table(caption, columns, named))


def _kept(results: Results) -> Html:
    rows = results.of("accuracy")
    if not rows:
        return _section("Accuracy", _missing("Accuracy", "vega3d bench accuracy"))
    named = [{**row, "label": accuracy_label(row)} for row in over_seeds(rows, ("features",))]
    columns = [
        Column("features read by the heads", "label"),
        Column("depth δ<1.25", "delta1"),
        Column("depth AbsRel", "abs_rel"),
        Column("normal error, °", "normal_deg", 1),
        Column("mIoU", "miou"),
        Column("cosine to teacher", "cosine_mean")
    ]
    if all(gain_is_real(rows, metric) for metric in METRICS):
        columns.append(Column("recovery", "recovery", 0, 100, " %"))
    seeds = max(row["seeds"] for row in named)
    rooms = next((row["rooms"] for row in rows if "rooms" in row), None)
    caption = ((f"{rooms} rooms and their furniture unseen in training. "
                if rooms else "Held-out clips. ") +
               (f"Mean ± standard deviation over {seeds} seeds; exported files are of the first."
                if seeds > 1 else "One seed."))
    gain = _figure(
        "Gain over semantic features alone",
        "Points of pixels with depth within 25 % of the truth; a "
        "control carries no learned 3D knowledge. Whiskers: 95 %.", gains(results))
    chart = _figure(
        "Share of the generator's gain that is kept",
        "The student's features take the generator's place; "
        "the teacher's heads stay as they are. Whiskers: 95 %.", recovery(results))
    note = None if chart else el(
        "p", "No share of the generator's gain is shown: on these clips it has none that is "
        "certain, or none that could be scored.", class_="notice")
    return _section("Accuracy", el("p", "What the features are worth on held-out clips."), note,
                    _pair([gain, chart]), html_table(caption, columns, named))


def _int8(results: Results, about: Row) -> Html:
    verdict = next((v for v in verdicts(results) if v.title.startswith("INT8")), None)
    if verdict:
        return _section("INT8 or not", el("p", verdict.sentence), _export_verdicts(results),
                        _int8_table(results))
    gaps = [row for row in results.of("absent") if "int8" in row["what"]]
    command = gaps[0]["fix"] if gaps else f"vega3d export onnx --run {about['run']} --precision int8"
    measured = "Export it with: " if gaps else "Export and measure it with: "
    return _section(
        "INT8 or not",
        el("p", f"No INT8 file was measured. {measured}", el("code", command), ", then ",
           el("code", "vega3d bench"), ".", class_="notice"))


def _export_verdicts(results: Results) -> Html | None:
    """What the export said of each file when it timed it itself, on this machine or on the one it
    was built for."""
    items = [
        el("li", el("code", row["artefact"]), f": {row['line']}") for row in results.of("verdict")
    ]
    if not items:
        return None
    return el("div", el("p", "The export's own verdicts, timed when the files were made:"),
              el("ul", *items))


def _precision(results: Results) -> Html | None:
    """One map for each file of mixed precision."""
    maps = precision_maps(results)
    if not maps:
        return None
    figures = [
        _figure(row["artefact"],
                "A row is a block of the student, a column a layer; the number is its bits.", drawn)
        for row, drawn in maps
    ]
    key = el("p", *(el("span", name, class_=f"chip {kind}") for kind, name in (
        ("int8", "8: INT8"), ("half", "16: half"), ("full", "32: float32"))))
    return _section(
        "What runs in which precision",
        el(
            "p",
            "Read from the exported graphs: INT8 only where a product reads two dequantised "
            "operands. A builder may still choose other kernels; export trt reports what it chose."), key, _pair(figures))


def _int8_table(results: Results) -> Html:
    """The exported files side by side; those that only other machines run have no time here."""
    timed = {
        row["sha256"]: row
        for row in results.of("latency") if row["backend"] == "ort-cpu" and row["batch"] == 1
    }
    rows = [{
        **timed.get(row["sha256"], {}), **row, "label": accuracy_label(row),
        "size_mb": row["size_mb"]
    } for row in results.of("accuracy") if "fp32_cosine_mean" in row]
    columns = [
        Column("file", "label"),
        Column("size, MB", "size_mb", 1),
        Column("median, ms", "latency_ms", 1),
        Column("faster than FP32", "vs_fp32", 2, suffix="x"),
        Column("cosine to FP32, mean", "fp32_cosine_mean", 5),
        Column("1st percentile", "fp32_cosine_p1", 5),
        Column("depth, points", "delta1_vs_fp32", 2, 100),
        Column("normals, °", "normal_deg_vs_fp32", 2)
    ]
    return html_table(
        "Each exported file against the student it was made from, on all held-out frames: cosine "
        "of the features, and what depth and normals change by. Times are onnxruntime's on the "
        "CPU; none: a file for another runtime.", columns, rows)


def _words() -> Html:
    pairs = [
        part for word, meaning in MEANINGS.items() for part in (el("dt", word), el("dd", meaning))
    ]
    return _section("What the numbers mean", el("dl", *pairs, class_="words"))


def _setting(results: Results, about: Row) -> Html:
    env = dict(results.env)
    env |= {"packages": ", ".join(f"{k} {v}" for k, v in env.get("packages", {}).items())}
    facts = [("command", results.command), ("run", about["run"]),
             ("student SHA-256", about.get("student_sha256", "–")),
             *((FACTS.get(key, key.replace("_", " ")), str(value)) for key, value in env.items())]
    pairs = [part for key, value in facts for part in (el("dt", key), el("dd", value))]
    gaps = [
        el("li", f"{row['what']}: {row['why']} (", el("code", row["fix"]), ")")
        for row in results.of("absent")
    ]
    absent = [el("h3", "Not measured here"), el("ul", *gaps)] if gaps else []
    return _section("How this was measured", el("dl", *pairs), *absent)


def _footer(results: Results) -> Html:
    return el(
        "footer",
        f"Made by {results.command}, commit {results.commit}. Every number is in results.json.")


def _section(title: str, *children: Html | None) -> Html:
    return el("section", el("h2", title), *children)


def _figure(title: str, sentence: str, chart: Html | None) -> Html | None:
    if chart is None:
        return None
    return el("figure", el("figcaption", el("h3", title), sentence), chart, class_="card")


def _pair(figures: Sequence[Html | None]) -> Html | None:
    return el("div", *figures, class_="pair") if any(figures) else None


def _missing(what: str, command: str) -> Html:
    return el("p", f"{what} has not been measured: ", el("code", command), class_="notice")
