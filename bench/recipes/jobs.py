"""Trainings that processes share: each takes what no other has taken, the last writes the table."""
from collections.abc import Callable, Mapping
from pathlib import Path

from records.environment import environment
from records.files import locked, read_json, write_json
from records.interrupts import handled
from records.results import Row, measured, save


def share_jobs(jobs: Mapping[Path, tuple], train: Callable[..., list[Row]], out: Path,
               merge: Callable[[list[Row]], list[Row]] = list) -> None:
    """Writes train(*job) to each job's path, unless it is there or another process has the job. The
    process that finds all of them writes `out`, merge(rows of all)."""
    for path, job in jobs.items():
        with handled(), locked(path.with_suffix(".lock"), wait=False) as taken:
            if taken and not path.is_file():
                write_json(train(*job), path)
                print(f"trained: {path}", flush=True)
    if all(path.is_file() for path in jobs):
        rows = [row for path in jobs for row in read_json(path, "delete it", kind=list)]
        save(measured(out.stem, merge(rows), environment()), out)


def job_path(work: Path, *parts: str | int) -> Path:
    """The file of a job's rows, without its suffix."""
    return work / "_".join(map(str, parts)).replace(" ", "-").replace(",", "")
