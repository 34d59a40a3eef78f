"""`accelerate launch` on CPU processes against one process."""
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import vega3d
from records.files import read_rows, sha256
from scenes.clip import save_clip
from teacher.data import feature_store
from teacher.data.feature_store import FeatureStore, fill
from teacher.towers.controls import RGBPatches
from teacher.training.processes import Processes
from tests.fakes import FakeRooms

ROOT = Path(vega3d.__file__).parent
CPU = torch.device("cpu")


def arguments(tmp_path: Path, generator: Path) -> list[str]:
    rooms = FakeRooms(train=7, test=2, frames=2)
    for clip_id in rooms.ids("train") + rooms.ids("test"):
        save_clip(rooms.clip(clip_id), tmp_path / "clips" / f"{clip_id}.safetensors")
    return ["distill", "run", "--runs", f"{tmp_path}/runs", "--scenes.path", f"{tmp_path}/clips",
            "--teacher.generator", str(generator), "--teacher.tap.block", "1",
            "--teacher.tap.seeds", "1", "--teacher.heads.epochs", "1", "--teacher.heads.batch",
            "3", "--teacher.heads.width", "8", "--student.model.depth", "1", "--student.init",
            "scratch", "--student.epochs", "2", "--student.batch", "3", "--student.augment",
            "photometric", "--heads.steps", "2", "--heads.batch", "3", "--device", "cpu"]


def launch(args: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes",
               "2", "--main_process_port", "0", "-m", "vega3d", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_two_processes_make_the_run_of_one(tmp_path, tiny_wan):
    args = arguments(tmp_path, tiny_wan)
    vega3d.main([*args, "--name", "one"])
    done = launch([*args, "--name", "two"])
    assert done.returncode == 0, done.stderr
    one, two = tmp_path / "runs/one", tmp_path / "runs/two"
    digests = [{str(p.relative_to(run)): sha256(p) for folder in ("features", "teacher", "frames")
                for p in (run / folder).rglob("*.safetensors")} for run in (one, two)]
    assert digests[0] == digests[1] and len(digests[0]) == 2 * 9 + 3 + 2
    for log in (two / "features").rglob("files.jsonl"):  # no clip was extracted twice
        assert len({row["clip"] for row in read_rows(log)}) == len(read_rows(log)) == 9
    for file in ("student", "heads"):
        weights = [load_file(run / f"student/{file}.safetensors") for run in (one, two)]
        # the optimiser makes a step of a gradient that is zero but for rounding
        differ = [(value - weights[1][name]).abs().flatten() > 1e-4
                  for name, value in weights[0].items()]
        assert torch.cat(differ).float().mean() < 0.01, file
    for file in ("metrics", "joint_metrics"):
        metrics = [read_rows(run / f"student/{file}.jsonl") for run in (one, two)]
        for a, b in zip(*metrics, strict=True):
            assert a.keys() == b.keys()
            assert all(abs(a[k] - b[k]) < 1e-3 for k in a)
    assert {p.name for p in one.iterdir()} == {p.name for p in two.iterdir()}


def test_the_first_process_to_fail_reports_for_all(monkeypatch, capsys):
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    for name, value in (("WORLD_SIZE", "2"), ("MASTER_ADDR", "127.0.0.1"),
                        ("MASTER_PORT", str(store.port))):
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(SystemExit):
            vega3d.fail("the disk is full")
    assert capsys.readouterr().err == "vega3d: the disk is full\n"


def test_torch_s_two_notes_to_programmers_are_not_printed_and_others_are():
    notes = {"TensorFloat32 tensor cores for float32 matrix multiplication available":
                 "_inductor/compile_fx.py",
             "barrier(): using the device under current context": "distributed/distributed_c10d.py"}
    for note, file in notes.items():
        assert note in (Path(torch.__file__).parent / file).read_text()  # as this torch says it
    with warnings.catch_warnings(record=True) as printed:
        warnings.resetwarnings()
        runpy.run_path(vega3d.__file__)
        for text in (*notes, "another: barrier() is slow"):
            warnings.warn(f"{text}, and more", UserWarning, stacklevel=1)
    assert [str(warning.message) for warning in printed] == ["another: barrier() is slow, and more"]


def test_parts_of_a_batch_cover_it_once():
    parts = [Processes(CPU, i, 3).part(8) for i in range(3)]
    assert [n for part in parts for n in range(8)[part]] == list(range(8))
    with pytest.raises(ValueError, match="a batch of 2 cannot be divided between 3 processes"):
        Processes(CPU, 0, 3).part(2)


def test_a_store_is_completed_when_a_worker_dies(tmp_path, monkeypatch):
    rooms, tower = FakeRooms(train=4, frames=1), RGBPatches()
    ids, store = rooms.ids("train"), FeatureStore(tmp_path, tower.spec, "clips")
    monkeypatch.setattr(feature_store, "POLL_SECONDS", 0.01)
    store.prepare([])  # its folder, which fill makes
    claimed, told = os.pipe()
    worker = os.fork()
    if worker == 0:  # claims a clip and hangs
        with feature_store._Claims(store, [[ids[1]]]) as claims:
            claims.left()
            os.write(told, b"1" if claims.take() else b"0")
            time.sleep(60)
            os._exit(0)
    assert os.read(claimed, 1) == b"1"
    complete = []

    def kill() -> None:
        while len(list(store.folder.rglob("*.safetensors"))) < 3:
            time.sleep(0.01)
        time.sleep(0.05)
        complete.append(ids[1] in store)
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)

    killer = threading.Thread(target=kill)
    killer.start()
    fill(store, tower, rooms, ids, CPU)
    killer.join()
    assert complete == [False]  # the others were done while the worker had its clip
    assert all(i in store for i in ids)
    assert [row["clip"] for row in read_rows(store.folder / "files.jsonl")][-1] == ids[1]
