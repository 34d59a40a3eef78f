"""`vega3d bench`: thin verbs over run.py (measure), report.py (the page) and tables.py (the
README)."""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bench.latency.config import LatencyConfig

if TYPE_CHECKING:
    from bench.run import Part
    from records.results import Results

LATEST = Path("runs/latest")
Config = tyro.conf.OmitArgPrefixes[LatencyConfig]
SCORES = ("delta1", "abs_rel", "normal_deg", "miou", "cosine_mean", "recovery",
          "task/vsi_numeric/mra", "task/vsi_choice/accuracy", "task/ground/acc@0.25")
Save = tuple[Literal["latency_cpu", "rooms_accuracy", "int8_cpu", "crosscheck_cpu"], ...]


def everything(config: Config, run: Path = LATEST, out: Path | None = None, save: Save = (),
               also: tuple[Path, ...] = ()) -> None:
    """Latency and accuracy of a run -> results.json and report.html. Verbs: latency, accuracy,
    compare, report, tables.

    Args:
        config: how latency is measured
        run: a run folder of `vega3d distill run`
        out: folder for results.json and report.html; default bench/ of the checkout, else RUN/bench
        save: also write these files of bench/results/, which the README's tables come from
        also: runs that differ in their seeds alone, for the spread of the accuracy
    """
    _bench(run, ("latency", "accuracy"), config, out, save, also)


def latency(
    sources: tyro.conf.Positional[tuple[Path, ...]] = (LATEST, ),
    config: Config = LatencyConfig(),  # noqa: B008
    out: Path | None = None,
    save: Save = ()) -> None:
    """Time students and exported files on this machine; of a run, the teacher's stages beside them.

    Args:
        sources: run folders, student folders, ONNX files, engines; default: runs/latest
        config: how latency is measured
        out: folder for the results; default: of one run, bench/ of the checkout, else RUN/bench; of
            files, beside them
        save: of one run: also write these files of bench/results/, which the README's tables come
            from
    """
    from bench.run import bench_files

    if len(sources) == 1 and (sources[0] / "config.yaml").is_file():
        _bench(sources[0], ("latency",), config, out, save)
        return
    if save:
        raise ValueError(
            "--save: only for one run; its README tables are of one student and its teacher")
    results, path = bench_files(sources, config, out)
    _print(results)
    print(f"results: {path}")


def accuracy(run: Path = LATEST, out: Path | None = None, save: Save = (), also: tuple[Path,
                                                                                       ...] = (),
             teacher: tuple[Path, ...] = (), questions: int | None = None) -> None:
    """Score the student and its exported files on held-out clips, beside teacher and controls.

    Args:
        run: a run folder of `vega3d distill run`
        out: folder for results.json and report.html; default bench/ of the checkout, else RUN/bench
        save: also write these files of bench/results/, which the README's tables come from
        also: runs that differ in their seeds alone, for the spread
        teacher: folders of `vega3d teacher train`: score questions with the student's features in
            the generator's place; those of other --features are controls. Slow on a CPU
        questions: at most so many a task; default: all
    """
    if questions is not None and not teacher:
        raise ValueError("--questions: there is no language teacher to answer them; give --teacher "
                         "FOLDER too (vega3d teacher train)")
    _bench(run, ("accuracy",), LatencyConfig(), out, save, also, teacher, questions)


def report(results: Path = Path("bench/results.json"), out: Path | None = None) -> None:
    """Draw report.html again from a results.json.

    Args:
        results: what `vega3d bench` wrote
        out: the page; default report.html beside it
    """
    from bench.report.page import write_report
    from records.results import load

    page = out or results.with_name("report.html")
    loaded = load(results)
    with _as_written(results):
        write_report(loaded, page)
    print(f"report: {page}")


def compare(before: tyro.conf.Positional[Path], after: tyro.conf.Positional[Path],
            every: bool = False) -> None:
    """What became slower, larger or worse from one result file to another, beyond their noise: then
    exit code 1.

    Args:
        before: a result file: of vega3d bench, of bench/results/, or a Jetson's result.json
        after: another one
        every: also print what stayed equal
    """
    from bench.compare import compare as changes_of
    from bench.compare import same_machine
    from records.results import load

    old, new = load(before), load(after)
    with _as_written(before, after):
        changes, alone = changes_of(old, new)
    shown = [change for change in changes if every or change.verdict != "equal"]
    print("\n".join(map(str, [*shown, *alone])), end="\n" if shown or alone else "")
    worse, better = (sum(change.verdict == verdict for change in changes)
                     for verdict in ("worse", "better"))
    print(
        f"{len(changes)} figures: {worse} worse, {better} better, {len(changes) - worse - better} "
        "equal within noise"
    )
    if not same_machine(old, new):
        print("measured on different machines: the changes are theirs, not the code's")
    elif worse:
        raise SystemExit(1)


def tables(documents: tyro.conf.Positional[tuple[Path, ...]] = (),
           results: Path = Path("bench/results"), check: bool = False) -> None:
    """Write the result tables of README.md and docs/*.md from the committed result files.

    Args:
        documents: files with <!-- results:NAME --> markers; default: README.md and docs/*.md
        results: the folder of NAME.json files
        check: write nothing; fail if a table differs from its file
    """
    from bench.tables.fill import update

    named = documents or (Path("README.md"), *sorted(Path("docs").glob("*.md")))
    changed = update(named, results, check)
    print(f"{len(named)} documents: " + (f"tables written in {', '.join(map(str, changed))}"
                                         if changed else "tables are up to date"))


@contextmanager
def _as_written(*files: Path) -> Iterator[None]:
    """Rows that lack a field, or hold a word for a number, are somebody else's: said in one
    line."""
    try:
        yield
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{' or '.join(map(str, files))}: a row is not as vega3d bench writes it ({error}); "
            "measure again with: vega3d bench") from error


def _bench(run: Path, parts: "tuple[Part, ...]", config: LatencyConfig, out: Path | None,
           save: Save, also: tuple[Path, ...] = (), teachers: tuple[Path, ...] = (),
           questions: int | None = None) -> None:
    from bench.run import bench, default_out

    folder = out or default_out(run)
    _print(
        bench(run, parts, config, folder, save, also=also, teachers=teachers, questions=questions))
    print(f"results: {folder / 'results.json'}\nreport:  {folder / 'report.html'}")


def _print(results: "Results") -> None:
    from bench.report.findings import findings
    from bench.report.labels import accuracy_label, latency_label

    for row in results.of("latency"):
        speed = f"{row['speedup']:7.1f}x" if row.get("speedup") else ""
        print(
            f"{latency_label(row):40} {row['latency_ms']:8.2f} ms  p90 {row['p90_ms']:8.2f} p99 "
            f"{row['p99_ms']:8.2f} {row['frames_per_s']:8.1f}/s {row['size_mb']:7.1f} MB {speed}")
    for row in results.of("preprocess"):
        print(
            f"{'Camera frame made ready, on the CPU':44} {row['latency_ms']:8.2f} ms  p90 "
            f"{row['p90_ms']:8.2f}"
        )
    for row in results.of("soak"):
        print(
            f"soak: {row['artefact']} on {row['backend']}, {row['seconds']:.0f} s: "
            f"{row['first_ms']:.2f} ms first, {row['last_ms']:.2f} at last "
            f"({row['slowdown']:.2f}x); slowed by: {row['slowed_by']}")
    for row in results.of("crosscheck"):
        print(
            f"cross-check: {row['artefact']}: {row['latency_ms']:.2f} ms here, "
            f"{row['tool_ms']:.2f} by {row['tool']} ({row['ratio']:.2f})")
    for row in results.of("accuracy"):
        scores = " ".join(f"{key} {row[key]:.3f}" for key in SCORES if row.get(key) is not None)
        print(f"{accuracy_label(row):36} seed {row['seed']}  {scores}")
    for row in results.of("absent"):
        print(f"not measured: {row['what']}: {row['why']} ({row['fix']})")
    for finding in findings(results):
        print(f"{finding.title}: {finding.figure} {finding.sentence}")


VERBS = {
    "": everything, "latency": latency, "accuracy": accuracy, "report": report, "compare": compare,
    "tables": tables
}
