"""`vega3d bench`: parses options, calls run.py, report/ or tables/, and prints a summary."""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bench.latency.timing import LatencyConfig
from records.files import must_exist
from records.options import Count, DepthUnit, Metres

if TYPE_CHECKING:
    from bench.run import BenchPart
    from records.results import Results

LATEST = Path("runs/latest")
LatencyOptions = tyro.conf.OmitArgPrefixes[LatencyConfig]
SCORES = ("delta1", "abs_rel", "normal_deg", "miou", "cosine_mean", "recovery",
          "task/vsi_numeric/mra", "task/vsi_choice/accuracy", "task/ground/acc@0.25")
REAL_SCORES = ("delta1_metric", "delta1_median", "delta1_affine", "abs_rel", "corr", "normal_deg",
               "match_exact_49cm", "match_within1_49cm", "flicker", "drift")
SaveNames = tuple[Literal["latency_cpu", "rooms_accuracy", "crosscheck_cpu"], ...]


def everything(config: LatencyOptions, run: Path = LATEST, out: Path | None = None,
               save: SaveNames = (), also: tuple[Path, ...] = ()) -> None:
    """Latency and accuracy of a run -> results.json and report.html. Verbs: latency, accuracy,
    real, report, compare, advise, tables.

    Args:
        config: how latency is measured
        run: a run folder of `vega3d distill run`
        out: folder for results.json and report.html; default bench/ of the checkout, else RUN/bench
        save: also write these files of bench/results/, from which the README's tables are made
        also: runs that differ only in their seeds, for the spread of the accuracy
    """
    _bench(run, ("latency", "accuracy"), config, out, save, also)


def latency(sources: tyro.conf.Positional[tuple[Path, ...]] = (LATEST, ),
            config: LatencyOptions = LatencyConfig(),  # noqa: B008
            out: Path | None = None, save: SaveNames = ()) -> None:
    """Time students and exported files on this machine; of a run also the teacher's stages.

    Args:
        sources: run folders, student folders, ONNX files, engines; default: runs/latest
        config: how latency is measured
        out: folder for the results; default: of one run, bench/ of the checkout, else RUN/bench; of
            files, beside them
        save: of one run: also write these files of bench/results/, from which the README's tables
            are made
    """
    for source in sources:
        must_exist(source, "give runs/NAME, a folder with student.safetensors, or an exported file")
    from bench.run import bench_files

    if len(sources) == 1 and (sources[0] / "config.yaml").is_file():
        _bench(sources[0], ("latency",), config, out, save)
        return
    if save:
        raise ValueError("--save: only for one run; README's tables are of one student and teacher")
    results, path = bench_files(sources, config, out)
    _print(results)
    print(f"results: {path}")


def accuracy(run: Path = LATEST, out: Path | None = None, save: SaveNames = (),
             also: tuple[Path, ...] = (), teacher: tuple[Path, ...] = (),
             questions: Count | None = None) -> None:
    """Score the student and its exported files on held-out clips, beside teacher and controls.

    Args:
        run: a run folder of `vega3d distill run`
        out: folder for results.json and report.html; default bench/ of the checkout, else RUN/bench
        save: also write these files of bench/results/, from which the README's tables are made
        also: runs that differ only in their seeds, for the spread
        teacher: folders of `vega3d teacher train`: answer the test questions through these language
            teachers, with each feature source in the generator's place; folders trained on other
            --features are added as controls. Slow on a CPU
        questions: at most so many questions of a task; default: all
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
    from records.results import load

    page, loaded = out or results.with_name("report.html"), load(results)
    from bench.report.page import write_report  # imports torch

    with _as_written(results):
        write_report(loaded, page)
    print(f"report: {page}")


def compare(before: tyro.conf.Positional[Path], after: tyro.conf.Positional[Path],
            every: bool = False) -> None:
    """What became slower, larger or worse between two result files; if beyond noise, exit code 1,
    but not for times of different power modes or clocks, nor for different machines.

    Args:
        before: a result file: of vega3d bench, of bench/results/, or a Jetson's result.json
        after: another one
        every: also print what stayed equal
    """
    from bench.compare import compare as changes_of
    from bench.compare import different_settings, same_machine
    from records.results import load

    old, new = load(before), load(after)
    with _as_written(before, after):
        changes, alone = changes_of(old, new)
    for line in [*(change for change in changes if every or change.verdict != "equal"), *alone]:
        print(line)
    outcomes = [change.verdict for change in changes]
    worse, better = outcomes.count("worse"), outcomes.count("better")
    print(f"{len(changes)} figures: {worse} worse, {better} better, "
          f"{len(changes) - worse - better} equal within noise")
    if not same_machine(old, new):
        print("measured on different machines: the changes may be theirs, not the code's")
        return
    if settings := different_settings(old, new):
        more = f"; {len(settings) - 3} more" if len(settings) > 3 else ""
        print(f"measured with different settings ({'; '.join(settings[:3])}{more}): changes of "
              "times may be theirs, not the code's")
    if any(change.verdict == "worse" and not (settings and change.figure.endswith("_ms"))
           for change in changes):
        raise SystemExit(1)


def advise(results: tyro.conf.Positional[tuple[Path, ...]]) -> None:
    """What to ship: for each device in result files the runtime, file, time, accuracy and why.

    Args:
        results: files of vega3d bench, of bench/results/, or a Jetson's result.json
    """
    from bench.advise import advise as page_of
    from records.results import load

    if not results:
        raise ValueError("advise: got no result file, expected at least one: vega3d bench advise "
                         "bench/results.json")
    loaded = [load(path) for path in results]
    with _as_written(*results):
        page = list(page_of(loaded))
    print("\n".join(page).rstrip())


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
    written = f"tables written in {', '.join(map(str, changed))}"
    print(f"{len(named)} documents: {written if changed else 'tables are up to date'}")


def real(folder: tyro.conf.Positional[Path], files: tyro.conf.Positional[tuple[Path, ...]] = (),
         out: Path = Path("bench_real"), frames: Count = 400, depth_unit: DepthUnit | None = None,
         baselines: tuple[Metres, ...] = (0.21, 0.49), save: Path | None = None) -> None:
    """Score exported files on recorded RGB-D frames: depth, normals, matches, flicker.

    Args:
        folder: RGB-D frames in the layout of TUM, 7-Scenes, ScanNet or images/ depth/ K.txt
            poses.txt; or clips (SPLIT/ID.safetensors)
        files: ONNX files with depth; default: the shipped model of vega3d infer
        out: folder for real.json, report.html and frames.png
        frames: at most so many frames of a recording, evenly spaced
        depth_unit: values of the depth pictures a metre; default: TUM 5000, others 1000, checked
        baselines: distances of the two cameras that matches are counted at, m
        save: also write the rows to this file, such as bench/results/real_office.json
    """
    must_exist(folder, "give a folder of RGB-D frames or of clips")
    for file in files:
        must_exist(file, "give exported files")
    from dataclasses import replace

    from bench.real.page import write_page
    from bench.real.run import bench_real
    from bench.report.page import check_replaceable
    from infer.model import SHIPPED
    from records.results import save as save_results
    from scenes.show import save_sheet

    check_replaceable(out / "report.html")
    results, recorded, predictors = bench_real(folder, files or (SHIPPED,), frames, depth_unit,
                                               baselines)
    save_results(results, out / "real.json")
    save_sheet(write_page(results, recorded, predictors, out / "report.html"), out / "frames.png")
    if save:
        save_results(replace(results, name=save.stem), save)
    for row in results.rows:
        scores = " ".join(f"{key} {row[key]:.3f}" for key in REAL_SCORES
                          if row.get(key) is not None)
        print(f"{row['file']:20} {scores}")
    print(f"results: {out}/real.json, report.html, frames.png")


@contextmanager
def _as_written(*files: Path) -> Iterator[None]:
    """Turns what a malformed row leads to into one line that names the file."""
    try:
        yield
    except (ValueError, OSError, MemoryError):
        raise
    except Exception as error:  # KeyError, TypeError, ZeroDivisionError, Jinja2's UndefinedError …
        raise ValueError(f"{' or '.join(map(str, files))}: a row is not as vega3d bench writes it "
                         f"({error}); measure again with: vega3d bench") from error


def _bench(run: Path, parts: "tuple[BenchPart, ...]", config: LatencyConfig, out: Path | None,
           save: SaveNames, also: tuple[Path, ...] = (), teachers: tuple[Path, ...] = (),
           questions: int | None = None) -> None:
    from distill.config import load_run_config

    for each in (run, *also):
        load_run_config(each)  # raises ValueError if it is no run
    for teacher in teachers:
        must_exist(teacher, "give folders of vega3d teacher train")
    from bench.run import bench, default_out  # imports torch

    folder = out or default_out(run)
    _print(bench(run, parts, config, folder, save, also=also, teachers=teachers,
                 questions=questions))
    print(f"results: {folder / 'results.json'}\nreport:  {folder / 'report.html'}")


def _print(results: "Results") -> None:
    from bench.report.findings import findings
    from bench.report.labels import accuracy_label, latency_label

    for row in results.of("latency"):
        speed = f"{row['speedup']:7.1f}x" if row.get("speedup") else ""
        print(f"{latency_label(row):40} {row['latency_ms']:8.2f} ms  p90 {row['p90_ms']:8.2f} "
              f"p99 {row['p99_ms']:8.2f} {row['frames_per_s']:8.1f}/s {row['size_mb']:7.1f} MB "
              f"{speed}")
    for row in results.of("preprocess"):
        print(f"{'Preprocessing of a camera frame, on the CPU':44} {row['latency_ms']:8.2f} ms  "
              f"p90 {row['p90_ms']:8.2f}")
    for row in results.of("soak"):
        print(f"soak: {row['artefact']} on {row['backend']}, {row['seconds']:.0f} s: "
              f"{row['first_ms']:.2f} ms at the start, {row['last_ms']:.2f} at the end "
              f"({row['slowdown']:.2f}x); slowed by: {row['slowed_by']}")
    for row in results.of("crosscheck"):
        print(f"cross-check: {row['artefact']}: {row['latency_ms']:.2f} ms here, "
              f"{row['tool_ms']:.2f} by {row['tool']} ({row['ratio']:.2f})")
    for row in results.of("accuracy"):
        scores = " ".join(f"{key} {row[key]:.3f}" for key in SCORES if row.get(key) is not None)
        print(f"{accuracy_label(row):36} seed {row['seed']}  {scores}")
    for row in results.of("absent"):
        print(f"not measured: {row['what']}: {row['why']} ({row['fix']})")
    for finding in findings(results):
        print(f"{finding.title}: {finding.figure} {finding.sentence}")


VERBS = {"": everything, "latency": latency, "accuracy": accuracy, "real": real, "report": report,
         "compare": compare, "advise": advise, "tables": tables}
