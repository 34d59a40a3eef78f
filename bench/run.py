"""`vega3d bench`: measures, keeps earlier parts that are still valid, writes JSON and report."""
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from bench.accuracy.score import accuracy
from bench.artefacts import run_summary
from bench.device import device_facts
from bench.latency.measure import latency
from bench.latency.timing import LatencyConfig
from bench.report.page import check_replaceable, write_report
from bench.tables.save_results import save_result_file
from records.events import emit
from records.files import exclusive, prepare_folder
from records.results import Results, Row, load, measured, save

BenchPart = Literal["latency", "accuracy"]
HERE = Path(__file__).resolve().parent
# fields of the environment that must be equal for rows to share a page
SAME = ("cpu", "cores", "gpu", "commit")


def bench(run: Path, parts: Sequence[BenchPart], config: LatencyConfig, out: Path,
          names: Sequence[str] = (), committed: Path = Path("bench/results"),
          also: Sequence[Path] = (), teachers: Sequence[Path] = (),
          questions: int | None = None) -> Results:
    """Writes out/results.json and out/report.html, and committed/NAME.json for each of `names`.
    also, teachers, questions: bench.accuracy. A part that is not measured now stays from
    out/results.json if that is of the same student, machine and commit. Raises ValueError if `run`
    is no finished run."""
    folder = run.resolve()  # runs/latest is a link: a run that ends meanwhile must not swap it
    with exclusive(folder, "vega3d bench"):
        summary, env = run_summary(folder), device_facts()
        written = {out: True, committed: bool(names), folder / "bench": "accuracy" in parts}
        for place in (place for place, used in written.items() if used):
            prepare_folder(place)  # fails now, not after a long soak
        if (out / "results.json").exists():
            load(out / "results.json")  # raises ValueError if it is a file of something else
        check_replaceable(out / "report.html")
        rows = [summary]
        for part in parts:
            emit("stage", stage=part)
            found = (latency([folder], config) if part == "latency" else
                     accuracy(folder, also, teachers, questions))
            rows += [{"part": part, **row} for row in found]
        env["load_1m_after"] = device_facts()["load_1m"]
        rows += _still_valid(out / "results.json", parts, summary, env)
        results = measured("bench", _without_repeated_gaps(rows), env)
        save(results, out / "results.json")
        write_report(results, out / "report.html")
        for name in names:
            save_result_file(name, results.rows, env, committed)
        return results


def bench_files(sources: Sequence[Path], config: LatencyConfig,
                out: Path | None) -> tuple[Results, Path]:
    """Latency of files outside a run, and the path written: FIRST.latency.json beside the first
    source, or latency.json in `out`."""
    env = device_facts()
    path = out / "latency.json" if out else sources[0].with_name(f"{sources[0].name}.latency.json")
    if out or path.parent.is_dir():
        prepare_folder(path.parent)  # fails now, not after a long soak
    with ExitStack() as locks:
        for source in {source.resolve() for source in sources}:
            locks.enter_context(exclusive(source, "vega3d bench latency"))
        rows = latency(sources, config)
    env["load_1m_after"] = device_facts()["load_1m"]
    results = measured("latency", rows, env)
    save(results, path)
    return results, path


def default_out(run: Path) -> Path:
    """bench/ of the checkout this code runs from; for an installed package, RUN/bench."""
    return HERE if (HERE.parent / "pyproject.toml").is_file() else run.resolve() / "bench"


def _still_valid(path: Path, parts: Sequence[BenchPart], summary: Row,
                 env: dict[str, Any]) -> list[Row]:
    """Rows of the other parts, if they are of the same student, machine and commit."""
    try:
        before = load(path)
    except ValueError:
        return []
    if before.of("run") != [summary] or any(before.env.get(key) != env.get(key) for key in SAME):
        return []
    return [row for row in before.rows if row.get("part") and row["part"] not in parts]


def _without_repeated_gaps(rows: Sequence[Row]) -> list[Row]:
    """Keeps the first of the `absent` rows that both parts report."""
    unique: dict[object, Row] = {}
    for row in rows:
        gap = (row["what"], row["why"], row["fix"]) if row["kind"] == "absent" else id(row)
        unique.setdefault(gap, row)
    return list(unique.values())
