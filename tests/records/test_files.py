"""Files of processes that were killed, and the lock of a run."""
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import vega3d
from records import manifest
from records.files import (
    LOCK,
    exclusive,
    locked,
    read_rows,
    remove_stale_scratch,
    write_if_changed,
    write_json,
    write_rows,
)
from records.outputs import OutputFolder, holds_files

ROOT = Path(vega3d.__file__).parent
KILLED_AT = """
import os, signal, sys
from pathlib import Path
from records.files import atomic_write
path, at, events = Path(sys.argv[1]), int(sys.argv[2]), []
def hook(event, arguments):
    if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod"):
        events.append(event)
        if len(events) == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
with atomic_write(path) as scratch:
    scratch.write_text("new")
"""


def test_a_write_killed_at_any_file_operation_leaves_the_old_file_or_the_new_one(tmp_path):
    path, texts = tmp_path / "a.json", set()
    for at in range(1, 40):
        path.write_text("old")
        code = subprocess.run([sys.executable, "-c", KILLED_AT, str(path), str(at)],
                              cwd=ROOT).returncode
        texts.add(path.read_text())
        remove_stale_scratch(tmp_path)
        assert [p.name for p in tmp_path.iterdir()] == ["a.json"], f"killed at operation {at}"
        if code == 0:
            break
    assert texts == {"old", "new"} and at > 6


def test_scratch_in_subfolders_goes_where_they_are_ours(tmp_path):
    (tmp_path / "a" / ".vega3d-tmp-x-1").mkdir(parents=True)
    remove_stale_scratch(tmp_path)
    assert list(tmp_path.glob("a/*"))
    remove_stale_scratch(tmp_path, below=True)
    assert not list(tmp_path.glob("a/*"))


def test_a_second_process_is_told_who_holds_the_run(tmp_path):
    script = ("import sys; from pathlib import Path; from records.files import exclusive\n"
              "with exclusive(Path(sys.argv[1]), 'vega3d export trt'): print('held', flush=True); "
              "sys.stdin.read()")
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, text=True,
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    said = rf"in use by vega3d export trt \(process {holder.pid} on .+\); wait until it has ended"
    with pytest.raises(ValueError, match=said), exclusive(tmp_path, "vega3d bench"):
        pass
    assert not holds_files(tmp_path)
    holder.kill()  # its lock file stays, its lock does not
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    with exclusive(tmp_path, "vega3d bench"):
        assert f"vega3d bench (process {os.getpid()} on " in (tmp_path / LOCK).read_text()
    assert not list(tmp_path.iterdir())


def test_the_processes_of_one_launch_hold_a_run_together(tmp_path, monkeypatch):
    with exclusive(tmp_path, "vega3d distill run"):
        monkeypatch.setenv("RANK", "1")
        with exclusive(tmp_path, "vega3d distill run"):
            pass
        assert (tmp_path / LOCK).is_file()


def test_on_a_full_disk_a_folder_is_locked_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "write", full)
    with exclusive(tmp_path, "vega3d bench"), \
            pytest.raises(ValueError, match="in use by another process"), \
            exclusive(tmp_path, "vega3d bench"):
        pass
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_of_a_manifest_and_none_of_a_set_of_files(tmp_path, monkeypatch):
    source, written = tmp_path / "source", OutputFolder(tmp_path / "run" / "page")
    for name in ("a", "b", "c"):
        write_json({}, source / name)
    copied = iter((shutil.copyfile, shutil.copyfile, full))
    monkeypatch.setattr(shutil, "copyfile", lambda *paths: next(copied)(*paths))
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/page/c'"):
        written.replace_with(source, "--out")  # shutil's error names what is copied
    assert os.listdir(written.folder) == [written.list.name] and not written.written
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/manifest\.json'"):
        manifest.create(tmp_path / "run")
    assert os.listdir(tmp_path / "run") == ["page"]


def full(*files: object) -> None:
    """As a function that writes the last of `files`."""
    named = [str(file) for file in files if isinstance(file, Path)]
    raise OSError(errno.ENOSPC, "No space left on device", *named[:1], *((None, named[1])
                                                                         if named[1:] else ()))


def test_a_lock_overwrites_no_file_of_the_users(tmp_path):
    (tmp_path / "mine").write_text("the user's")
    (tmp_path / LOCK).symlink_to(tmp_path / "mine")
    with exclusive(tmp_path, "vega3d bench"), exclusive(tmp_path / "missing", "vega3d bench"):
        pass
    assert (tmp_path / "mine").read_text() == "the user's" and not (tmp_path / "missing").exists()


def test_an_unchanged_text_is_not_written_again(tmp_path):
    path = tmp_path / "a"
    write_if_changed("one\n", path)
    os.utime(path, ns=(1, 1))
    write_if_changed("one\n", path)
    assert path.stat().st_mtime_ns == 1
    write_if_changed("two\n", path)
    assert path.read_text() == "two\n"


def test_rows_are_read_back_without_a_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    write_rows([{"epoch": 1}, {"epoch": 2}], path)
    path.write_text(path.read_text() + '{"epo')
    assert read_rows(path) == [{"epoch": 1}, {"epoch": 2}]


def test_a_lock_is_one_process_s_and_a_disk_without_locks_is_no_error(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.lock"
    with locked(path) as first, locked(path, wait=False) as second:
        assert first and not second
    with locked(path, wait=False) as free:
        assert free

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(path) as taken:
        assert taken
