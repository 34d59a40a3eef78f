"""Everyday faults of long commands: Ctrl-C, a run that is in use, a folder that cannot be written.

A signal is raised where the command works, once all that it reads was opened.
"""
import signal
from pathlib import Path

import pytest

import vega3d
from records.files import exclusive
from tests.hostile.corpus_files import run
from tests.scenes.rgbd_scenes import save


def main(capsys, command: str) -> tuple[int, list[str]]:
    """Exit code, and the lines on stderr."""
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(command.split())
    return stopped.value.code, capsys.readouterr().err.splitlines()


@pytest.mark.parametrize(("command", "works_in", "stays"), [
    ("scenes render --n 2 --frames 2 --size 32 --workers 0 --out out",
     "scenes.rooms.source.RoomSource.clip", {"out/scenes.json", "out/manifest.json"}),
    ("teacher search --clips 2 --out out/s.json --work work --workers 0",
     "teacher.probing.tap_search.probe_set", set()),
    ("bench latency run --out out --no-teacher --no-memory", "bench.latency.timing.sample_block",
     set()),
    ("bench real rec --out out", "bench.real.run.measure", set()),
    ("export openvino --run run", "export.openvino.float_model", set()),
])
def test_ctrl_c_is_one_line_and_leaves_neither_scratch_nor_an_empty_folder(
        command, works_in, stays, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run")
    save(tmp_path / "rec", "plain", 2)
    before = {*tmp_path.rglob("*")}
    monkeypatch.setattr(works_in, lambda *args, **options: signal.raise_signal(signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    code, lines = main(capsys, command)
    signal.signal(signal.SIGINT, handler)
    assert code == 130 and lines[-1] == "vega3d: interrupted; the same command resumes"
    new = {str(path.relative_to(tmp_path)) for path in {*tmp_path.rglob("*")} - before}
    assert new - {"out"} == stays and ("out" in new) == bool(stays)


@pytest.mark.parametrize("command", [
    "distill heads --student run/student --again", "export onnx --run run", "bench --run run",
    "bench accuracy --run run", "bench latency run", "export litert --run run",
    "teacher train --out run", "teacher pretrain --out run"])
def test_what_writes_in_a_folder_in_use_says_who_uses_it_before_it_works(
        command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(tmp_path / "run")
    monkeypatch.setattr("distill.clips.open_source", lambda *args, **options: pytest.fail("worked"))
    with exclusive(Path("run"), "vega3d distill run"):
        code, lines = main(capsys, command)
    assert code == 2 and len(lines) == 1
    assert f"{tmp_path}/run: in use by vega3d distill run (process " in lines[0]


def test_bench_finds_a_run_that_it_cannot_write_in_before_it_times(tmp_path, monkeypatch, capsys):
    run(tmp_path / "run")
    (tmp_path / "run" / "bench").write_text("in the folder's place")
    monkeypatch.setattr("bench.run.latency", lambda *args: pytest.fail("timed"))
    code, lines = main(capsys, f"bench --run {tmp_path}/run --out {tmp_path}/out")
    assert code == 2 and lines == [f"vega3d: {tmp_path}/run/bench: exists and is no folder"]
    assert not (tmp_path / "out").exists()
