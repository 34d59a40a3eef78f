import json
import os
import re
from pathlib import Path

import pytest

import vega3d
from records import manifest
from records.files import atomic_write, write_json
from records.manifest import NAME
from records.outputs import SHIPPED, OutputFolder


@pytest.fixture
def run(tmp_path) -> Path:
    """A folder with a manifest, and student/student.json in it."""
    folder = tmp_path / "runs" / "001"
    manifest.create(folder)
    write_json({"size": "ti"}, folder / "student" / "student.json")
    (folder / "config.yaml").write_text("name: null\n")
    manifest.create(folder, manifest.files_below(folder))
    return folder


def flip(path: Path, at: int = -2, keep_time: bool = False) -> None:
    facts, content = path.stat(), bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        manifest._digests.clear()  # as in the next process: this one has seen size, time and inode


def verify(capsys, folder: Path) -> tuple[int, str]:
    try:
        vega3d.main(["verify", str(folder)])
    except SystemExit as stopped:
        return stopped.code, "".join(capsys.readouterr())
    return 0, "".join(capsys.readouterr())


@pytest.fixture(autouse=True)
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("keep_time", [False, True])
@pytest.mark.parametrize("name", ["student/student.json", "config.yaml"])
def test_a_flipped_byte_is_named_on_use_and_by_verify(run, capsys, name, keep_time):
    assert verify(capsys, run)[0] == 0
    manifest.check(run / name, "again")
    flip(run / name, keep_time=keep_time)
    with pytest.raises(ValueError, match=rf"{name}: damaged .*; again"):
        manifest.check(run / name, "again")
    link = run.parent / "latest"
    link.symlink_to(run.name)
    assert manifest.fault(link / name)
    code, printed = verify(capsys, run)
    assert code == 2 and f"{run / name}: damaged" in printed and "1 files are damaged" in printed


def test_a_listed_time_is_believed_only_by_a_quick_look(run):
    path = run / "student" / "student.json"
    flip(path, keep_time=True)
    assert manifest.fault(path) and not manifest.fault(path, quick=True)
    path.touch()
    assert manifest.fault(path, quick=True)


def test_the_digest_is_computed_once_until_the_file_changes(run, monkeypatch):
    path = run / "student" / "student.json"
    os.utime(path, ns=(0, 10**18))  # not just written
    read = []
    true_digest = manifest.sha256
    monkeypatch.setattr(manifest, "sha256", lambda path: read.append(1) or true_digest(path))
    for _ in range(3):
        assert not manifest.fault(path)
    assert len(read) == 1
    flip(path)
    assert manifest.fault(path) and len(read) == 2


def test_what_is_written_again_is_listed_again(run):
    path = run / "student" / "student.json"
    write_json({"size": "s"}, path)
    assert not manifest.fault(path)
    with pytest.raises(RuntimeError), atomic_write(path):
        raise RuntimeError
    assert not manifest.fault(path) and manifest.count(run) == 2


def test_a_kill_before_the_new_digest_is_listed_leaves_a_file_that_is_used(run, monkeypatch):
    def killed(paths):
        raise KeyboardInterrupt

    path = run / "student" / "student.json"
    monkeypatch.setattr(manifest, "record", killed)
    with pytest.raises(KeyboardInterrupt):
        write_json({"size": "s"}, path)
    monkeypatch.undo()
    manifest.check(path, "again")
    manifest.create(run, manifest.files_below(run))
    flip(path)
    assert manifest.fault(path)


@pytest.mark.parametrize("at", [5, 40, 80, -5])
def test_a_damaged_manifest_names_itself(run, capsys, at):
    flip(run / NAME, at)
    with pytest.raises(ValueError, match=r"manifest\.json: damaged; restore it, or delete it"):
        manifest.check(run / "config.yaml", "again")
    assert verify(capsys, run)[0] == 2


def test_a_manifest_of_another_version_is_not_called_damaged(run, capsys):
    path = run / "manifest.json"
    path.write_text(json.dumps({"vega3d_manifest": 2, "entries": []}))
    says = ("another version of vega3d-edge (vega3d_manifest 2, this one reads 1); use that "
            "version")
    with pytest.raises(ValueError, match=re.escape(f"{path}: was written by {says}")):
        manifest.check(run / "config.yaml", "again")
    code, printed = verify(capsys, run)
    assert code == 2 and says in printed and "damaged" not in printed
    with pytest.raises(ValueError, match="another version"):
        manifest.record([run / "config.yaml"])
    assert json.loads(path.read_text())["vega3d_manifest"] == 2  # nor replaced


def test_another_programs_manifest_is_neither_read_nor_replaced(tmp_path):
    for content in ('{"files": {"model.json": {"sha256": "0", "size": 1}}}', "not JSON", "[]"):
        (tmp_path / NAME).write_text(content)
        manifest.create(tmp_path)
        write_json({}, tmp_path / "model.json")
        assert not manifest.fault(tmp_path / "model.json")
        assert (tmp_path / NAME).read_text() == content


def test_a_missing_file_is_named_but_a_finished_checkpoint_is_not(run, capsys):
    write_json({}, run / "student" / "student.ckpt.json")
    (run / "student" / "student.ckpt.json").unlink()
    assert verify(capsys, run)[0] == 0
    (run / "student" / "student.json").unlink()
    code, printed = verify(capsys, run)
    assert code == 2 and "student.json: missing" in printed


def test_a_model_is_compared_with_the_sidecar_beside_it(tmp_path):
    model, sidecar = tmp_path / "model.onnx", tmp_path / "model.onnx.json"
    model.write_bytes(b"graph")
    assert not manifest.fault(model)
    write_json({"sha256": manifest.digest(model)}, sidecar)
    assert not manifest.fault(model)
    flip(model)
    assert "model.onnx: damaged" in manifest.fault(model)
    sidecar.write_text("{")
    assert "model.onnx.json: damaged" in manifest.fault(model)
    sidecar.write_text(json.dumps({"schema": 3, "digest": "of another name"}))
    assert manifest.fault(model) == (
        f"{sidecar}: was written by another version of vega3d-edge (schema 3, this one reads 1)")


def test_verify_reads_the_lists_of_stores_and_pages_and_what_the_run_uses(run, capsys, tmp_path):
    store, page, clips = run / "features" / "wan", run / "export" / "page", tmp_path / "clips"
    clip = store / "train" / "0.safetensors"
    clip.parent.mkdir(parents=True)
    clip.write_bytes(b"features")
    write_json({"tower": "wan"}, store / NAME)
    row = {"clip": "train/0", "sha256": manifest.digest(clip), "bytes": 8}
    (store / "files.jsonl").write_text(json.dumps(row) + "\n")
    with OutputFolder(page).write("app.js") as scratch:
        scratch.write_text("let a = 1\n")
    manifest.create(clips)
    write_json({}, clips / "scenes.json")
    manifest.create(run, uses=[clips])
    assert verify(capsys, run) == (0, f"{run}: intact; 4 listed files, and those it uses\n")
    for path in (clip, page / "app.js", clips / "scenes.json"):
        flip(path)
        code, printed = verify(capsys, run)
        assert code == 2 and str(path) in printed
        flip(path)


def test_a_run_without_a_manifest_is_said_in_one_line(run, capsys):
    (run / NAME).unlink()
    code, printed = verify(capsys, run)
    assert code == 0 and "has no manifest.json (made before there were any)" in printed
    code, printed = verify(capsys, run.parent)
    assert code == 2 and "no run here" in printed and len(printed.splitlines()) == 1


@pytest.mark.parametrize("folder", SHIPPED)
def test_the_shipped_weights_are_those_listed(folder):
    assert manifest.faults(folder) == []
    below = manifest.files_below(folder)
    assert below and all(manifest.is_listed(path) for path in below)
