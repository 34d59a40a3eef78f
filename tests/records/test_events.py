"""Events of a command: JSON lines on stderr with --log-json, status.json of a run."""
import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import rich.progress

import vega3d
from export.tensorrt.progress import Monitor
from records import events, manifest
from records.progress import Progress, track
from tests.fake_clock import FakeClock


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(events.time, "monotonic", clock)
    return clock


def work(steps: int = 3) -> None:
    with Progress() as progress:
        bar = progress.add_task("student: seed 0", total=steps)
        for step in range(steps):
            progress.update(bar, completed=step + 1)


def read(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_command_with_log_json_writes_one_json_object_a_line_to_stderr(capsys, monkeypatch):
    def run(command, args):
        print("a warning", file=sys.stderr)
        work()
        list(track(range(2), "heads"))
        print("a table")

    monkeypatch.setattr(vega3d, "_run", run)
    vega3d.main(["distill", "run", "--log-json", "--name", "x"])
    printed = capsys.readouterr()
    found = read(printed.err)
    assert [event["event"] for event in found[:2]] == ["start", "log"]
    assert found[0]["command"] == "vega3d distill run --name x" and found[0]["pid"] == os.getpid()
    assert found[1]["message"] == "a warning" and "a table" in printed.out
    progress = [event for event in found if event["event"] == "progress"]
    assert {event["stage"] for event in progress} == {"student: seed 0", "heads"}
    last = {event["stage"]: event for event in progress}
    assert (last["student: seed 0"]["step"], last["student: seed 0"]["steps"]) == (3, 3)
    assert last["heads"]["step"] == last["heads"]["steps"] == 2 and last["heads"]["eta_s"] == 0
    assert found[-1]["event"] == "end" and found[-1]["code"] == 0
    assert all(event["time"].endswith("+00:00") for event in found)


@pytest.mark.parametrize(("error", "code"), [
    (ValueError("clip 1: damaged"), 2), (RuntimeError("ours"), 70), (KeyboardInterrupt(), 130)])
def test_an_error_is_an_event_and_the_end_has_the_exit_code(capsys, monkeypatch, error, code):
    def run(command, args):
        for _ in track(range(3), "rendering"):
            raise error

    monkeypatch.setattr(vega3d, "_run", run)
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(["distill", "--log-json", "run"])
    *_, said, end = read(capsys.readouterr().err)
    assert stopped.value.code == said["code"] == end["code"] == code
    assert said["event"] == "error" and said["message"] and "\n" not in said["message"]


def test_progress_of_a_stage_is_sent_at_most_once_a_second_and_when_it_is_complete(clock):
    stream = io.StringIO()
    with events.json_lines(["x"], stream):
        for step in range(1, 41):
            clock.now += 0.125
            events.emit("progress", stage="a", step=step, steps=40)
            events.emit("progress", stage="b", step=step, steps=None)
    steps = {stage: [event["step"] for event in read(stream.getvalue())
                     if event.get("stage") == stage] for stage in "ab"}
    assert steps["b"] == [1, 9, 17, 25, 33] and steps["a"] == [1, 9, 17, 25, 33, 40]


def test_nothing_is_written_to_stderr_without_log_json(capsys):
    work()
    events.emit("stage", stage="page")
    assert capsys.readouterr().err == "" and not events.received()


def test_a_bar_on_stderr_is_not_drawn_between_json_lines(capsys):
    from rich.console import Console

    with events.json_lines(["x"], sys.stderr), Progress(console=Console(stderr=True)) as progress:
        for _ in progress.track(range(3), description="wan features"):
            pass
    found = read(capsys.readouterr().err)
    assert {event["event"] for event in found} == {"start", "progress", "end"}


def test_every_bar_shows_the_time_left_and_sends_events():
    def has_time_left(columns) -> bool:
        return any(isinstance(column, rich.progress.TimeRemainingColumn) for column in columns)

    assert has_time_left(Progress().columns) and has_time_left(Monitor("engine").bar.columns)
    root = Path(vega3d.__file__).parent
    for path in (p for package in (*vega3d.COMMANDS, "student")
                 for p in (root / package).rglob("*.py")):
        name, text = path.relative_to(root).as_posix(), path.read_text()
        imported = re.findall(r"from rich.progress import \(?([\w\s,]+)", text)
        assert not {"Progress", "track"} & {*re.findall(r"\w+", " ".join(imported))}, name
        assert not imported or "TimeRemainingColumn" in imported[0], name


def test_status_json_says_what_the_run_does_and_how_long_it_takes(tmp_path, clock):
    def read_status():
        return json.loads((tmp_path / "status.json").read_text())

    manifest.create(tmp_path)
    writings = []
    with events.status_file(tmp_path):
        for step in range(1, 41):
            clock.now += 0.125
            events.emit("progress", stage="student: seed 0", step=step, steps=40, rate=10.0,
                        eta_s=round((40 - step) / 10))
            writings.append(read_status()["step"])
        assert sorted(set(writings)) == [1, 9, 17, 25, 33]  # in 5 s
        assert read_status() == {
            "state": "running", "stage": "student: seed 0", "step": 33, "steps": 40, "rate": 10.0,
            "eta_s": 1, "pid": os.getpid(), "updated": read_status()["updated"]}
    assert (read_status()["state"], read_status()["step"]) == ("finished", 40)
    assert sorted(os.listdir(tmp_path)) == ["manifest.json", "status.json"]
    assert manifest.faults(tmp_path) == [] and manifest.files_below(tmp_path) == []


def test_a_run_that_fails_says_so_and_an_unwritable_status_stops_nothing(tmp_path):
    with pytest.raises(ValueError, match="damaged"), events.status_file(tmp_path):
        raise ValueError("damaged")
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "stopped"
    (tmp_path / "file").write_text("")
    with events.status_file(tmp_path / "file"):
        work()


def test_other_processes_of_a_launch_write_no_status(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with events.status_file(tmp_path):
        work()
    assert not list(tmp_path.iterdir())
