"""One bench of one run: measure what was asked, keep what still holds, write results.json and the
page."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from bench.accuracy.score import accuracy
from bench.artefacts import about_run
from bench.device import device_facts
from bench.latency.config import LatencyConfig
from bench.latency.measure import latency
from bench.report.page import write_report
from bench.tables.save_results import commit_rows
from export.artefact import prepare_folder
from records.results import Results, Row, load, measured, save

Part = Literal["latency", "accuracy"]
HERE = Path(__file__).resolve().parent
# of the environment: else rows of two machines or codes would share a page
SAME = ("cpu", "cores", "gpu", "commit")


def bench(run: Path, parts: Sequence[Part], config: LatencyConfig, out: Path,
          names: Sequence[str] = (), committed: Path = Path("bench/results"),
          also: Sequence[Path] = (), teachers: Sequence[Path] = (),
          questions: int | None = None) -> Results:
    """Writes out/results.json and out/report.html, and committed/NAME.json for each of `names`.
    also, teachers,
    questions: bench.accuracy.

    A part that is not measured now is kept from out/results.json if that is of the same student,
    machine and commit.
    Raises ValueError if `run` is no finished run.
    """
    folder = run.resolve()  # runs/latest is a link: a run that ends meanwhile must not swap it
    about, env = about_run(folder), device_facts()
    prepare_folder(out)
    rows = [about]
    for part in parts:
        found = latency([folder], config) if part == "latency" else accuracy(
            folder, also, teachers, questions)
        rows += [{"part": part, **row} for row in found]
    env["load_1m_after"] = device_facts()["load_1m"]
    rows += _kept(out / "results.json", parts, about, env)
    results = measured("bench", _once(rows), env)
    save(results, out / "results.json")
    write_report(results, out / "report.html")
    for name in names:
        commit_rows(name, results.rows, env, committed)
    return results


def bench_files(sources: Sequence[Path], config: LatencyConfig,
                out: Path | None) -> tuple[Results, Path]:
    """Latency of files that are no whole run, and where it was written: FIRST.latency.json beside
    the first of them, or latency.json in `out`."""
    env = device_facts()
    path = out / "latency.json" if out else sources[0].with_name(f"{sources[0].name}.latency.json")
    if out:
        prepare_folder(out)
    rows = latency(sources, config)
    env["load_1m_after"] = device_facts()["load_1m"]
    results = measured("latency", rows, env)
    save(results, path)
    return results, path


def default_out(run: Path) -> Path:
    """bench/ of the checkout this code runs from; for an installed package, RUN/bench."""
    return HERE if (HERE.parent / "pyproject.toml").is_file() else run.resolve() / "bench"


def _kept(path: Path, parts: Sequence[Part], about: Row, env: dict[str, Any]) -> list[Row]:
    try:
        before = load(path)
    except ValueError:
        return []
    if before.of("run") != [about] or any(before.env.get(key) != env.get(key) for key in SAME):
        return []
    return [row for row in before.rows if row.get("part") and row["part"] not in parts]


def _once(rows: Sequence[Row]) -> list[Row]:
    """Without what both parts found absent."""
    seen: list[Row] = []
    for row in rows:
        facts = {key: value for key, value in row.items() if key != "part"}
        if row["kind"] != "absent" or facts not in [{k: v
                                                     for k, v in r.items() if k != "part"}
                                                    for r in seen]:
            seen.append(row)
    return seen
