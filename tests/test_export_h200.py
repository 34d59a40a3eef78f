"""bench/h200/trt*: its graphs are the product's, slimming keeps what a GPU loads, its plan and rows hold together."""
import collections
import json
import struct
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from bench.h200 import trt as bench_trt
from bench.h200.trt_graphs import arrays_of, quantised_of, write
from bench.h200.trt_plan import BASE, JOBS, VARIANTS
from bench.h200.trt_rivals import _bound
from bench.h200.trt_slim import slim
from bench.h200.trt_vit import LINEARS, Quantised, Spelling, to_onnx
from bench.h200.trt_worker import Job, fidelity, interleaved
from export.dialects import to_flagged
from export.parity import relative_error, token_cosine
from export.qdq import check_qdq
from tests.export_run import fp32, int8, run
from tests.test_export_jetson import pretended


def _answers(model: onnx.ModelProto, frames: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model.SerializeToString(), options).run(None, {"frames": frames})[0]


@cache
def frames() -> torch.Tensor:
    return torch.from_numpy(run().heldout.frames[:2]).float() / 255


@cache
def numbers() -> Quantised:
    calibration = torch.from_numpy(run().calibration.frames[:32]).float() / 255
    return quantised_of(run().student, calibration)


@pytest.mark.parametrize("spelling", [
    Spelling(), Spelling("2d"), Spelling("conv"), Spelling(norm="decomposed"), Spelling(gelu="op"),
    Spelling("conv", gelu="op")])
def test_every_spelling_is_the_same_function(spelling):
    model, _ = to_onnx(arrays_of(run().student), 2, spelling)
    with torch.inference_mode():
        np.testing.assert_allclose(_answers(model, frames().numpy()), run().student(frames()).numpy(), atol=2e-4)


def test_the_default_spelling_is_what_the_product_writes():
    """Same operators in the same number, for FP16's file and for INT8's."""
    def kinds(model):
        return collections.Counter(node.op_type for node in model.graph.node)

    assert kinds(to_onnx(arrays_of(run().student), 1, Spelling())[0]) == kinds(to_flagged(fp32()))
    ours, _ = to_onnx({}, 1, VARIANTS["int8"].spelling, numbers())
    assert kinds(ours) == kinds(to_flagged(int8())) and check_qdq(ours, "trt8.6", want_int8=True) == []


@pytest.mark.parametrize("tokens", ["3d", "2d", "conv"])
def test_int8_spellings_agree_and_stay_close_to_the_student(tokens):
    model, _ = to_onnx({}, 2, Spelling(tokens, LINEARS), numbers())
    with torch.inference_mode():
        reference = run().student(frames()).numpy()
    told = fidelity(reference, _answers(model, frames().numpy()))
    assert told["cosine_mean"] > 0.999 and told["relative_error"] < 0.05


def test_only_the_layers_asked_for_are_quantised():
    model, _ = to_onnx({}, 1, Spelling(quantised=("fc2",)), numbers())
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 2 * 2  # input and weight, two blocks


def test_implicit_ranges_name_tensors_of_the_graph_and_cover_every_linear(tmp_path):
    for name in ("implicit", "implicit-2d", "implicit-conv"):
        path = tmp_path / f"{name}.b1.onnx"
        write(VARIANTS[name], arrays_of(run().student), numbers(), 1, path)
        ranges = json.loads(path.with_suffix(".ranges.json").read_text())
        graph = onnx.load(path).graph
        inputs = {name for node in graph.node for name in node.input}
        linear = [node for node in graph.node if node.op_type in ("MatMul", "Conv") and "blocks" in node.name
                  and any(LINEARS[i] in node.name for i in range(4))]
        assert len(linear) == 8
        assert all({node.input[0], node.input[1], node.output[0]} <= set(ranges) for node in linear)
        assert all(value > 0 for value in ranges.values()) and any(name in inputs for name in ranges)


def test_scales_without_numbers_are_an_error():
    with pytest.raises(ValueError, match="no scales"):
        to_onnx(arrays_of(run().student), 1, Spelling(quantised=LINEARS))


def test_fidelity_is_the_gates_own_measure():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 8, 4, 4)).astype(np.float32)
    told = fidelity(a, b)
    assert told["cosine_mean"] == pytest.approx(token_cosine(a, b).mean())
    assert told["cosine_p1"] == pytest.approx(np.percentile(token_cosine(a, b), 1))
    assert told["relative_error"] == pytest.approx(relative_error(a, b))
    assert fidelity(a, b * np.nan)["cosine_mean"] is None


def test_calls_are_timed_in_turn():
    order: list[str] = []

    def call(name, ms):
        def timed():
            order.append(name)
            return ms
        return timed

    told = interleaved({"a": call("a", 5.0), "b": call("b", 2.0)}, seconds=0.001, warmup=1)
    assert told["a"]["latency_ms"] == 5 and told["b"]["latency_ms"] == 2 and told["a"]["iterations"] == 30
    assert order[-4:] == ["a"] * 4 and order[-8:-4] == ["b"] * 4  # the last round goes backwards


def test_what_is_bound_for_onnxruntime_is_a_copy_of_the_frames():
    """A view once let the first variant's last chunk stand where the next variant's first one should."""
    model, _ = to_onnx(arrays_of(run().student), 1, Spelling())
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    held = frames().clone()
    call, out = _bound(session, held[:1], SimpleNamespace(batch=1))
    answers = []
    for chunk in held.split(1):
        call(chunk)
        answers.append(out.numpy().copy())
    assert torch.equal(held, frames())
    with torch.inference_mode():
        np.testing.assert_allclose(np.concatenate(answers), run().student(frames()).numpy(), atol=2e-4)


# --- the plan and its rows ---------------------------------------------------------------------------------------

def test_plan_covers_the_bar():
    wanted = {(size, batch) for size in ("ti", "s", "b") for batch in (1, 8, 32)}
    for worker, variants in (("engines", {"fp16", "int8", "fp32"}), ("torch", {"fp16-compiled", "fp32-compiled"}),
                             ("ort", {"ort-fp16", "ort-fp32"})):
        for place in wanted:
            jobs = [job for job in JOBS if job.worker == worker and (job.size, job.batch) == place]
            assert variants <= {name for job in jobs for name in job.variants}, (worker, place)
    assert len({job.name for job in JOBS}) == len(JOBS)
    assert all(name in VARIANTS for job in JOBS for name in job.graphs)
    engines = [job for job in JOBS if job.worker == "engines"]
    assert [(job.size, job.batch) for job in engines[:3]] == [("s", 32), ("ti", 32), ("s", 1)]
    assert all(job.variants == BASE for job in engines[:9])  # no experiment before the table


def test_rows_say_how_they_compare_with_fp16_of_the_same_kind():
    def row(backend, variant, precision, ms, cosine=0.9999, batch=32):
        return {"backend": backend, "model": "ViT-S", "batch": batch, "variant": variant, "precision": precision,
                "latency_ms": ms, "cosine_mean": cosine, "cosine_p1": cosine}

    rows = bench_trt.told([row("tensorrt-8.6", "fp16", "fp16", 2.0), row("tensorrt-8.6", "int8", "int8", 1.6),
                           row("tensorrt-8.6", "int8", "int8", 9.0, 0.9, batch=1),
                           row("torch", "fp16-compiled", "fp16", 4.0), row("torch", "bf16-eager", "bf16", 8.0)])
    assert [round(r.get("vs_fp16", 0), 3) for r in rows] == [1, 1.25, 0, 1, 0.5]
    assert [r["gate"] for r in rows] == ["passed", "passed", "failed", "passed", "passed"]


def _job(folder, **more) -> Path:
    facts = {"name": "j", "model": "ViT-Ti", "batch": 1, "backend": "torch",
             "variants": {"fp16": {"precision": "fp16"}}, "work": str(folder), "folder": str(folder),
             "out": str(folder), "deadline": time.time() + 60, "end": time.time() + 60, "seconds": 0.001,
             "profile": False, **more}
    (folder / "job.json").write_text(json.dumps(facts))
    return folder / "job.json"


def test_a_job_waits_for_its_turn_and_its_rows_are_always_whole(tmp_path):
    job = Job(_job(tmp_path))
    job.row("fp16", cosine_mean=1.0, error="still building")
    code = ("import sys; from pathlib import Path; from bench.h200.trt_worker import Job\n"
            "with Job(Path(sys.argv[1])).alone(): pass")
    waiting = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "job.json")], cwd=Path(__file__).parents[1])
    while not (tmp_path / "turn.j.ready").exists():
        time.sleep(0.02)
    assert waiting.poll() is None
    (tmp_path / "turn.j.go").touch()
    assert waiting.wait(10) == 0 and not list(tmp_path.glob("turn.*"))  # gone: the turn has ended
    job.row("fp16", error=None)
    job.timed({"fp16": lambda: 3.0}, {"fp16": lambda: 2.0})
    (row,) = json.loads((tmp_path / "rows.j.json").read_text())
    assert row["latency_ms"] == 3 and row["graph_ms"] == 2 and row["cosine_mean"] == 1 and "error" not in row
    assert Job(tmp_path / "job.json").rows["fp16"] == row  # a process that goes on keeps what there is


def test_engines_are_built_gated_and_timed_by_one_process(tmp_path):
    """trt_engines.py itself, beside what looks like TensorRT 8.6: its second build takes the first one's timings."""
    env, root = pretended(tmp_path), Path(__file__).parents[1]
    np.savez(tmp_path / "frames.npz", heldout=run().heldout.frames[:2])
    with torch.inference_mode():
        np.save(tmp_path / "reference.npy", run().student(frames()).numpy())
    for name in ("fp16", "int8"):
        write(VARIANTS[name], arrays_of(run().student), numbers(), 1, tmp_path / f"{name}.b1.onnx")
    (tmp_path / "fp16-2d.b1.onnx").write_bytes(b"no model")
    job = _job(tmp_path, backend="tensorrt-8.6", variants={
        name: {"precision": name[:4], "implicit": False, "level": 3} for name in ("fp16", "fp16-2d", "int8")})
    log = (tmp_path / "log.txt").open("w")
    process = subprocess.Popen([sys.executable, "-m", "bench.h200.trt_engines", job], cwd=root, stderr=log,
                               env={**env, "FAKE_VERSION": "8.6.0", "PYTHONPATH": f"{root}:{tmp_path}"})
    while process.poll() is None:
        if (tmp_path / "turn.j.ready").exists():
            (tmp_path / "turn.j.go").touch()
        time.sleep(0.05)
    assert process.returncode == 0, (tmp_path / "log.txt").read_text()
    fp16, spoilt, int8_row = json.loads((tmp_path / "rows.j.json").read_text())
    assert fp16["latency_ms"] > 0 and fp16["cosine_mean"] > 0.9999 and fp16["level"] == 3 and "error" not in fp16
    assert int8_row["latency_ms"] > 0 and int8_row["cosine_mean"] > 0.999 and "error" not in int8_row
    assert int8_row["relative_error"] > 10 * fp16["relative_error"]  # another graph indeed
    assert spoilt["error"] == "ModelImporter: failed to parse" and "latency_ms" not in spoilt


WORKER = """
import sys, time
from pathlib import Path
from bench.h200.trt_worker import BUILDING, Job
import os
job = Job(Path(sys.argv[-1]))
def note(what):
    with (job.out / "events.txt").open("a") as file:
        file.write(f"{time.time()} {os.environ['CUDA_VISIBLE_DEVICES']} {job.name} {what}\\n")
for name in job.variants:
    if job.late():
        break
    job.row(name, error=BUILDING)
    for i in range(12):
        note(f"build {name}")
        time.sleep(0.02)
    if (job.name, name) == ("engines-ti-b32-fp16", "int8"):
        os._exit(9)
    job.row(name, error=None, cosine_mean=1.0, cosine_p1=1.0)
    with job.alone():
        note("turn begins")
        time.sleep(0.1)
        job.timed({name: lambda: 1.0}, {})
        note("turn ends")
"""


def _sat(monkeypatch, folder: Path, seconds: float, jobs: tuple, builders: int) -> tuple[list[dict], list[list[str]]]:
    """A sitting on two GPUs whose workers only pretend: (rows, events as [time, gpu, job, what, variant])."""
    (folder / "worker.py").write_text(WORKER)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("TRT_PYTHON", f"env PYTHONPATH={Path(__file__).parents[1]} {sys.executable} {folder}/worker.py")
    monkeypatch.setattr(bench_trt, "JOBS", jobs)
    monkeypatch.setattr(bench_trt, "tensorrt_starts", lambda: "")
    monkeypatch.setattr(bench_trt, "LAST_START", 0)
    monkeypatch.setattr(bench_trt.Sitting, "_graphs", lambda self, size: subprocess.Popen(["true"]))
    monkeypatch.setattr(bench_trt.Sitting, "_ready", lambda self, job: job.size != "b")  # b's graphs never come
    bench_trt.Sitting(folder, folder / "out", seconds, builders).run()
    events = [line.split() for line in (folder / "out" / "events.txt").read_text().splitlines()]
    return json.loads((folder / "out" / "trt_h200.json").read_text())["rows"], events


def test_a_sitting_uses_every_gpu_and_times_with_all_others_there_stopped(monkeypatch, tmp_path):
    jobs = tuple(job for job in JOBS if job.variants == BASE and (job.size, job.batch) != ("s", 8))
    rows, events = _sat(monkeypatch, tmp_path, 60, jobs, builders=2)
    assert {event[1] for event in events if "b32" in event[2]} == {"0", "1"}  # the two that matter most, at once
    for gpu in "01":
        turn = None
        for _, _, name, what, detail in (event for event in events if event[1] == gpu):
            assert turn in (None, name), f"{name} went on during the turn of {turn}"
            turn = name if (what, detail) == ("turn", "begins") else None if what == "turn" else turn
    lives = {name: [float(event[0]) for event in events if event[2] == name] for name in {event[2] for event in events}}
    gpu_of = {event[2]: event[1] for event in events}
    for name, times in lives.items():
        beside_it = [other for other, its in lives.items() if gpu_of[other] == gpu_of[name]
                     and its[0] <= times[0] <= its[-1]]
        assert len(beside_it) <= 2, beside_it
    told = {(row["model"], row["batch"], row["variant"]): row for row in rows}
    assert told["ViT-S", 32, "int8"]["latency_ms"] == 1 and told["ViT-S", 32, "int8"]["vs_fp16"] == 1
    assert told["ViT-Ti", 32, "int8"]["error"] == "its process died while building it (exit 9)"
    assert told["ViT-Ti", 32, "fp16"]["gate"] == told["ViT-Ti", 32, "fp32"]["gate"] == "passed"  # before and after
    assert {row["error"] for row in rows if row["model"] == "ViT-B"} == {bench_trt.MISSING}


def test_a_sitting_that_runs_out_of_time_keeps_what_was_timed_and_names_the_rest(monkeypatch, tmp_path):
    jobs = tuple(job for job in JOBS if job.variants == BASE)
    began = time.time()
    rows, _ = _sat(monkeypatch, tmp_path, 6, jobs, builders=1)
    assert time.time() - began < 20 and len(rows) == 27
    assert all(("latency_ms" in row) or row["error"] for row in rows)
    assert any("latency_ms" in row for row in rows) and sum("error" in row for row in rows) >= 12


def test_a_tensorrt_that_does_not_start_is_known_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("TRT_PYTHON", f"env PYTHONPATH={tmp_path} {sys.executable}")
    assert "No module named 'tensorrt'" in bench_trt.tensorrt_starts()
    (tmp_path / "tensorrt.py").write_text("class Logger:\n ERROR = 1\n def __init__(s, l): pass\nBuilder = Logger\n")
    assert bench_trt.tensorrt_starts() == ""
    (tmp_path / "tensorrt.py").write_text("print('[E] Assertion failed')\nraise SystemExit(1)\n")
    assert bench_trt.tensorrt_starts() == "[E] Assertion failed"


# --- slimming ----------------------------------------------------------------------------------------------------

def _entry(kind: int, arch: int, payload: bytes) -> bytes:
    return struct.pack("<HHIQIIHHI", kind, 0x101, 64, len(payload), 0, 0, 0, 0, arch).ljust(64, b"\1") + payload


def _fat(*entries: bytes) -> bytes:
    content = b"".join(entries)
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(content)) + content


def test_slimming_keeps_what_the_driver_would_load_and_every_header():
    with_code = _fat(_entry(2, 80, b"a" * 96), _entry(2, 90, b"b" * 96), _entry(1, 80, b"c" * 96))
    ptx_only = _fat(_entry(2, 75, b"d" * 96), _entry(1, 80, b"e" * 96), _entry(1, 100, b"f" * 96))
    library = bytearray(b"\x7fELF" + bytes(60) + with_code + b"between" + ptx_only + b"end")
    before = bytes(library)
    assert slim(library, 90) == 4 * 96 and len(library) == len(before)
    for letter, kept in zip(b"abcdef", (False, True, False, False, True, False), strict=True):
        assert (bytes([letter]) * 96 in library) == kept
    assert b"between" in library and library.endswith(b"end")
    assert all(library[i] == before[i] for i in range(len(before)) if library[i])  # nothing but zeros was written


def test_slimming_leaves_alone_what_only_looks_like_a_fat_binary():
    junk = bytearray(struct.pack("<IHHQ", 0xBA55ED50, 7, 16, 400) + b"x" * 400)
    before = bytes(junk)
    assert slim(junk, 90) == 0 and bytes(junk) == before
