"""`vega3d bench`: thin verbs over run.py (measure), report.py (the page) and tables.py (the README)."""
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bench.config import LatencyConfig

if TYPE_CHECKING:
    from bench.run import Part
    from records.results import Results

LATEST = Path("runs/latest")
Config = tyro.conf.OmitArgPrefixes[LatencyConfig]
Save = tuple[Literal["latency_cpu", "rooms_accuracy", "int8_cpu"], ...]


def everything(config: Config, run: Path = LATEST, out: Path | None = None, save: Save = ()) -> None:
    """Latency and accuracy of a run -> results.json and report.html. Verbs: latency, accuracy, report, tables.

    Args:
        config: how latency is measured
        run: a run folder of `vega3d distill run`
        out: folder for results.json and report.html; default bench/ of the checkout, else RUN/bench
        save: also write these files of bench/results/, which the README's tables come from
    """
    _bench(run, ("latency", "accuracy"), config, out, save)


def latency(config: Config, run: Path = LATEST, out: Path | None = None, save: Save = ()) -> None:
    """Time the student, its exported files and the teacher's stages on this machine.

    Args:
        config: how latency is measured
        run: a run folder of `vega3d distill run`
        out: folder for results.json and report.html; default bench/ of the checkout, else RUN/bench
        save: also write these files of bench/results/, which the README's tables come from
    """
    _bench(run, ("latency",), config, out, save)


def accuracy(run: Path = LATEST, out: Path | None = None, save: Save = ()) -> None:
    """Score the student and its exported files on held-out clips, beside teacher and controls.

    Args:
        run: a run folder of `vega3d distill run`
        out: folder for results.json and report.html; default bench/ of the checkout, else RUN/bench
        save: also write these files of bench/results/, which the README's tables come from
    """
    _bench(run, ("accuracy",), LatencyConfig(), out, save)


def report(results: Path = Path("bench/results.json"), out: Path | None = None) -> None:
    """Draw report.html again from a results.json.

    Args:
        results: what `vega3d bench` wrote
        out: the page; default report.html beside it
    """
    from bench.report import write_report
    from records.results import load

    page = out or results.with_name("report.html")
    write_report(load(results), page)
    print(f"report: {page}")


def tables(readme: Path = Path("README.md"), results: Path = Path("bench/results"), check: bool = False) -> None:
    """Write the README's result tables from the committed result files.

    Args:
        readme: the file with <!-- results:NAME --> markers
        results: the folder of NAME.json files
        check: write nothing; fail if a table differs from its file
    """
    from bench.tables import update

    changed = update(readme, results, check)
    print(f"{readme}: tables {'written' if changed else 'are up to date'}")


def _bench(run: Path, parts: "tuple[Part, ...]", config: LatencyConfig, out: Path | None, save: Save) -> None:
    from bench.run import bench, default_out

    folder = out or default_out(run)
    _print(bench(run, parts, config, folder, save))
    print(f"results: {folder / 'results.json'}\nreport:  {folder / 'report.html'}")


def _print(results: "Results") -> None:
    from bench.names import accuracy_label, latency_label
    from bench.verdicts import verdicts

    for row in results.of("latency"):
        speed = f"{row['speedup']:7.1f}x" if row.get("speedup") else ""
        print(f"{latency_label(row):36} {row['latency_ms']:8.2f} ms  p90 {row['p90_ms']:8.2f}  "
              f"{row['size_mb']:7.1f} MB {speed}")
    for row in results.of("accuracy"):
        scores = " ".join(f"{key} {row[key]:.3f}" for key in ("delta1", "abs_rel", "normal_deg", "miou", "cosine_mean",
                                                              "recovery") if row.get(key) is not None)
        print(f"{accuracy_label(row):36} seed {row['seed']}  {scores}")
    for row in results.of("absent"):
        print(f"not measured: {row['what']}: {row['why']} ({row['fix']})")
    for verdict in verdicts(results):
        print(f"{verdict.title}: {verdict.figure} {verdict.sentence}")


VERBS = {"": everything, "latency": latency, "accuracy": accuracy, "report": report, "tables": tables}
