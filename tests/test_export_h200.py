"""bench/h200/trt*: its graphs are the product's, slimming keeps what a GPU loads, its plan and rows hold together."""
import collections
import ctypes
import importlib
import json
import struct
import subprocess
import sys
import tarfile
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
from bench.h200.trt import MODELS
from bench.h200.trt_graphs import arrays_of, quantised_of, write
from bench.h200.trt_kernels import read, summed
from bench.h200.trt_layers import kind
from bench.h200.trt_layers import rows as layer_rows
from bench.h200.trt_plan import BASE, BUILDS, JOBS, VARIANTS
from bench.h200.trt_rivals import _bound
from bench.h200.trt_slim import slim
from bench.h200.trt_vit import LINEARS, Quantised, Spelling, to_onnx
from bench.h200.trt_worker import BUILDING, Job, fidelity, interleaved
from export.dialects import to_flagged
from export.parity import relative_error, token_cosine
from export.qdq import check_qdq
from student.vit import Student, StudentConfig, save_student
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


def test_attention_in_half_leaves_everything_else_as_it_was():
    arrays = arrays_of(run().student)
    model, _ = to_onnx(arrays, 2, Spelling(half="attention"))
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) == 2 * 4  # q, k, v and the way back, two blocks
    plain, _ = to_onnx(arrays, 2, Spelling())
    assert len(model.graph.node) == len(plain.graph.node) + len(casts)
    with torch.inference_mode():
        told = fidelity(run().student(frames()).numpy(), _answers(model, frames().numpy()))
    assert told["cosine_mean"] > 0.9999


def test_the_body_in_half_keeps_the_quantised_products_in_float():
    model, _ = to_onnx({}, 2, VARIANTS["int8-body"].spelling, numbers())
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {info.name: info.type.tensor_type.elem_type for info in inferred}
    half, single = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    for node in model.graph.node:
        if node.op_type in ("Softmax", "LayerNormalization", "Erf"):
            assert types[node.output[0]] == half, node.name
        if node.op_type == "QuantizeLinear" and ".in." in node.output[0]:
            assert types[node.input[0]] == single, node.name
    with torch.inference_mode():
        told = fidelity(run().student(frames()).numpy(), _answers(model, frames().numpy()))
    assert told["cosine_mean"] > 0.999


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
    for worker, variants in (("time", {"fp16", "int8", "fp32"}), ("torch", {"fp16-compiled", "fp32-compiled"}),
                             ("ort", {"ort-fp16", "ort-fp32"})):
        for place in wanted:
            (job,) = [job for job in JOBS if job.worker == worker and (job.size, job.batch) == place]
            assert variants <= set(job.variants), (worker, place)
    assert len({job.name for job in (*BUILDS, *JOBS)}) == len(BUILDS) + len(JOBS)
    assert all(name in VARIANTS for job in (*BUILDS, *JOBS) for name in job.graphs)
    assert [(job.size, job.batch) for job in BUILDS[:9:3]] == [("s", 32), ("ti", 32), ("s", 1)]
    assert all(job.variants[0] in BASE for job in BUILDS[:27])  # no experiment before the table
    built = {(job.size, job.batch, *job.variants) for job in BUILDS}
    assert built == {(job.size, job.batch, name) for job in JOBS if job.worker == "time" for name in job.variants}


def test_half_is_asked_for_everywhere_but_in_quantised_products(monkeypatch):
    kinds = SimpleNamespace(QUANTIZE="q", DEQUANTIZE="dq", CONSTANT="c", SHAPE="s", MATRIX="m", SOFTMAX="max")
    trt = SimpleNamespace(LayerType=kinds, float16="half", float32="float", IProfiler=object)
    monkeypatch.setitem(sys.modules, "tensorrt", trt)
    monkeypatch.delitem(sys.modules, "bench.h200.trt_engines", raising=False)
    engines = importlib.import_module("bench.h200.trt_engines")
    monkeypatch.delitem(sys.modules, "bench.h200.trt_engines")  # no other test shall have it

    class Layer:
        def __init__(self, kind, inputs, output, dtype="float"):
            self.type, self.inputs, self.num_inputs, self.num_outputs = kind, inputs, len(inputs), 1
            self.output, self.precision, self.output_type = SimpleNamespace(name=output, dtype=dtype), None, None

        def get_input(self, j):
            return SimpleNamespace(name=self.inputs[j])

        def get_output(self, j):
            return self.output

        def set_output_type(self, j, dtype):
            self.output_type = dtype

    made = [Layer(kinds.QUANTIZE, ["x"], "x8"), Layer(kinds.DEQUANTIZE, ["x8"], "x1"), Layer(kinds.MATRIX, ["x1"], "y"),
            Layer(kinds.MATRIX, ["y", "y"], "qk"), Layer(kinds.SOFTMAX, ["qk"], "out"),
            Layer(kinds.SOFTMAX, ["y"], "index", dtype="int")]
    engines.prefer_half(SimpleNamespace(num_layers=len(made), get_layer=made.__getitem__, num_outputs=1,
                                        get_output=lambda i: SimpleNamespace(name="out")))
    assert [layer.precision for layer in made] == [None, None, None, "half", "half", None]
    assert [layer.output_type for layer in made] == [None, None, None, "half", None, None]


def test_a_sitting_may_be_of_some_places_only(tmp_path):
    sitting = bench_trt.Sitting(tmp_path, tmp_path, 1, places=[("s", 32)])
    assert {(job.size, job.batch) for job in (*sitting.builds, *sitting.others)} == {("s", 32), ("ti", 1)}
    assert {job.worker for job in sitting.others if job.size == "ti"} == {"jetson"}
    assert {(row["model"], row["batch"]) for row in bench_trt.missing([], sitting.places)} == {("ViT-S", 32)}


def test_rows_say_how_they_compare_with_fp16_of_the_same_kind():
    def row(backend, variant, precision, ms, cosine=0.9999, batch=32):
        return {"backend": backend, "model": "ViT-S", "batch": batch, "variant": variant, "precision": precision,
                "latency_ms": ms, "cosine_mean": cosine, "cosine_p1": cosine}

    rows = bench_trt.told([row("tensorrt-8.6", "fp16", "fp16", 2.0), row("tensorrt-8.6", "int8", "int8", 1.6),
                           row("tensorrt-8.6", "int8", "int8", 9.0, 0.9, batch=1),
                           row("torch", "fp16-compiled", "fp16", 4.0), row("torch", "bf16-eager", "bf16", 8.0)])
    assert [round(r.get("vs_fp16", 0), 3) for r in rows] == [1, 1.25, 0, 1, 0.5]
    assert [r["gate"] for r in rows] == ["passed", "passed", "failed", "passed", "passed"]


def test_a_result_is_named_after_its_card():
    names = [bench_trt.card({"gpu": gpu}) for gpu in ("NVIDIA H100 80GB HBM3", "NVIDIA H200", "NVIDIA GeForce RTX")]
    assert names == ["h100", "h200", "rtx"] and bench_trt.card({}) == "nogpu"


def _job(folder, **more) -> Path:
    facts = {"name": "j", "model": "ViT-Ti", "weights": "shipped", "student": None, "batch": 1, "backend": "torch",
             "variants": {"fp16": {"precision": "fp16"}}, "work": str(folder), "folder": str(folder),
             "out": str(folder), "end": time.time() + 60, "seconds": 0.001, "profile": False, **more}
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
    assert row["weights"] == "shipped"
    assert Job(tmp_path / "job.json").rows["fp16"] == row  # a process that goes on keeps what there is


def test_engines_are_built_and_gated_by_one_process_and_timed_by_another(tmp_path):
    """trt_engines.py itself, beside what looks like TensorRT 8.6. A plan that comes late is timed with the others."""
    env, root = pretended(tmp_path), Path(__file__).parents[1]
    np.savez(tmp_path / "frames.npz", heldout=run().heldout.frames[:2])
    with torch.inference_mode():
        np.save(tmp_path / "reference.npy", run().student(frames()).numpy())
    for name in ("fp16", "int8"):
        write(VARIANTS[name], arrays_of(run().student), numbers(), 1, tmp_path / f"{name}.b1.onnx")
    (tmp_path / "fp16-2d.b1.onnx").write_bytes(b"no model")
    (tmp_path / "fp16-conv.b1.plan").write_bytes(b"no engine")
    log = (tmp_path / "log.txt").open("w")

    def start(mode, *variants):
        job = _job(tmp_path, name=mode, backend="tensorrt-8.6", profile=True, variants={
            name: {"precision": name[:4], "implicit": False, "level": 3, "prefer": False} for name in variants})
        job = job.rename(tmp_path / f"job.{mode}.json")
        return subprocess.Popen([sys.executable, "-m", "bench.h200.trt_engines", mode, job], cwd=root, stderr=log,
                                env={**env, "FAKE_VERSION": "8.6.0", "PYTHONPATH": f"{root}:{tmp_path}"})

    timer = start("time", "fp16", "int8", "fp16-2d", "fp16-conv")
    while not (tmp_path / "turn.time.ready").exists():
        time.sleep(0.05)
    assert start("build", "fp16", "fp16-2d", "int8").wait(60) == 0, (tmp_path / "log.txt").read_text()
    (tmp_path / "turn.time.go").touch()
    assert timer.wait(60) == 0, (tmp_path / "log.txt").read_text()
    fp16, spoilt, int8_row = json.loads((tmp_path / "rows.build.json").read_text())
    assert fp16["cosine_mean"] > 0.9999 and fp16["level"] == 3 and "error" not in fp16
    assert int8_row["cosine_mean"] > 0.999 and "error" not in int8_row
    assert int8_row["relative_error"] > 10 * fp16["relative_error"]  # another graph indeed
    assert spoilt["error"] == "ModelImporter: failed to parse"
    timed = {row["variant"]: row for row in json.loads((tmp_path / "rows.time.json").read_text())}
    assert timed["fp16"]["latency_ms"] > 0 and timed["int8"]["latency_ms"] > 0 and "fp16-2d" not in timed
    assert timed["fp16-conv"]["error"] and "latency_ms" not in timed["fp16-conv"]
    assert "kernels of int8: " in (tmp_path / "log.txt").read_text()  # without a GPU it fails, after the times


WORKER = """
import os, sys, time
from pathlib import Path
from bench.h200.trt_worker import BUILDING, LOADING, Job
job = Job(Path(sys.argv[-1]))
def note(what):
    with (job.out / "events.txt").open("a") as file:
        file.write(f"{time.time()} {os.environ['CUDA_VISIBLE_DEVICES']} {job.name} {what}\\n")
def build():
    (name,) = job.variants
    job.row(name, error=BUILDING)
    for i in range(12):
        note(f"build {name}")
        time.sleep(0.02)
    if job.name == "build-ti-b32-int8":
        os._exit(9)
    if job.name == "build-ti-b8-int8":
        time.sleep(600)
    job.row(name, error=None, cosine_mean=1.0, cosine_p1=1.0)
    job.plan(name).touch()
def run():
    while job.name == "time-ti-b1" and not job.plan("fp32").exists():  # what it shall die of
        time.sleep(0.02)
    have = [name for name in job.variants if job.plan(name).exists() and not job.rows.get(name, {}).get("error")]
    for name in have:
        job.row(name, error=LOADING)
        if (job.name, name) == ("time-ti-b1", "fp32"):
            os._exit(7)
        job.row(name, error=None)
    with job.alone():
        note("turn begins")
        time.sleep(0.1)
        job.timed({name: lambda: 1.0 for name in have}, {})
        note("turn ends")
{"build": build, "time": run}[sys.argv[-2]]()
"""


def _sat(monkeypatch, folder: Path, builds: tuple, **options) -> tuple[list[dict], list[list[str]]]:
    """A sitting on two GPUs whose workers only pretend: (rows, events as [time, gpu, job, what, variant])."""
    (folder / "worker.py").write_text(WORKER)
    for size in MODELS:
        (folder / size).mkdir()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("TRT_PYTHON", f"env PYTHONPATH={Path(__file__).parents[1]} {sys.executable} {folder}/worker.py")
    monkeypatch.setattr(bench_trt, "BUILDS", builds)
    monkeypatch.setattr(bench_trt, "JOBS", tuple(job for job in JOBS if job.worker == "time"))
    monkeypatch.setattr(bench_trt, "tensorrt_starts", lambda: "")
    monkeypatch.setattr(bench_trt, "LAST_START", 0)
    monkeypatch.setattr(bench_trt.Sitting, "_maker", lambda self, *_: None)
    ready = bench_trt.Sitting._ready
    monkeypatch.setattr(bench_trt.Sitting, "_ready", lambda self, job: (  # b's graphs never come
        ready(self, job) if job.worker == "time" else job.size != "b" and job.size in self.students))
    bench_trt.Sitting(folder, folder / "out", **options).run()
    events = [line.split() for line in (folder / "out" / "events.txt").read_text().splitlines()]
    return json.loads((folder / "out" / "trt_nogpu.json").read_text())["rows"], events


def test_a_sitting_builds_on_every_gpu_and_then_times_with_all_others_there_stopped(monkeypatch, tmp_path):
    builds = tuple(job for job in BUILDS if job.variants[0] in BASE and (job.size, job.batch) != ("ti", 8))
    rows, events = _sat(monkeypatch, tmp_path, builds, seconds=60, timing=30, builders=4)
    assert {event[1] for event in events if event[2].startswith("build")} == {"0", "1"}
    last_build = max(float(event[0]) for event in events if event[3] == "build")
    assert all(float(event[0]) > last_build for event in events if event[3] == "turn")
    for gpu in "01":
        turn = None
        for _, _, name, what, detail in (event for event in events if event[1] == gpu):
            assert turn in (None, name), f"{name} went on during the turn of {turn}"
            turn = name if (what, detail) == ("turn", "begins") else None if what == "turn" else turn
        spans = collections.defaultdict(list)
        for event in (event for event in events if event[1] == gpu and event[3] == "build"):
            spans[event[2]].append(float(event[0]))
        assert all(sum(its[0] <= times[0] <= its[-1] for its in spans.values()) <= 4 for times in spans.values())
    told = {(row["model"], row["batch"], row["variant"]): row for row in rows if row["backend"] == "tensorrt-8.6"}
    assert told["ViT-S", 32, "int8"]["latency_ms"] == 1 and told["ViT-S", 32, "int8"]["vs_fp16"] == 1
    assert told["ViT-S", 32, "int8"]["weights"] == "random" and told["ViT-Ti", 1, "int8"]["weights"] == "shipped"
    assert told["ViT-Ti", 32, "int8"]["error"] == "its process died while building it (exit 9)"
    assert told["ViT-Ti", 32, "fp16"]["gate"] == told["ViT-Ti", 32, "fp32"]["gate"] == "passed"
    assert told["ViT-Ti", 1, "fp32"]["error"] == "its process died while loading it (exit 7)"
    assert told["ViT-Ti", 1, "fp16"]["latency_ms"] == 1  # timed by the process that came after
    assert {told["ViT-B", batch, name]["error"] for batch in (1, 8, 32) for name in BASE} == {bench_trt.MISSING}


def test_a_sitting_that_runs_out_of_time_times_what_is_built_and_names_the_rest(monkeypatch, tmp_path):
    began = time.time()
    builds = tuple(job for job in BUILDS if job.variants[0] in BASE and job.size != "b")
    rows, _ = _sat(monkeypatch, tmp_path, builds, seconds=14, timing=6, builders=4)
    assert time.time() - began < 30
    told = {(row["model"], row["batch"], row["variant"]): row for row in rows if row["backend"] == "tensorrt-8.6"}
    assert told["ViT-Ti", 8, "int8"]["error"] == BUILDING and told["ViT-Ti", 8, "fp16"]["latency_ms"] == 1
    assert all("latency_ms" in row or row["error"] for row in rows) and len(rows) == 27 + 18 + 27


def test_the_timing_can_be_begun_early(tmp_path):
    sitting = bench_trt.Sitting(tmp_path, tmp_path / "out", 600, timing=120)
    sitting.time_now()
    assert sitting.quiet <= time.time() and sitting.end - sitting.quiet == pytest.approx(120)
    sitting.time_now()
    assert sitting.end - time.time() > 115  # nor does a second call make it shorter


def test_a_trained_student_may_come_late_but_not_too_late(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(bench_trt.Sitting, "_maker", lambda self, name, *given: started.append((name, given[-1])))
    monkeypatch.setenv("VIT_S", str(tmp_path / "vit_s"))
    sitting = bench_trt.Sitting(tmp_path, tmp_path / "out", 60, wait=30)
    sitting._make_graphs()
    assert {name for name, _ in started} == {f"graphs-{size}-b{batch}" for size in ("ti", "b") for batch in (1, 8, 32)}
    save_student(Student(StudentConfig(size="s", depth=1)), tmp_path / "vit_s")
    sitting._make_graphs()
    sitting._make_graphs()
    assert started[6:] == [(f"graphs-s-b{batch}", str(tmp_path / "vit_s")) for batch in (32, 1, 8)]
    monkeypatch.setenv("VIT_S", str(tmp_path / "never"))
    late = bench_trt.Sitting(tmp_path, tmp_path / "out", 60, wait=-1)
    late._make_graphs()
    assert late.students["s"] is None and started[-6:][0] != started[6:][0]


def test_rows_of_another_card_are_refused_and_those_of_the_same_one_kept(monkeypatch, tmp_path):
    sitting = bench_trt.Sitting(tmp_path, tmp_path / "out", 60)
    rows = [{"backend": "tensorrt-8.6", "model": "ViT-Ti", "batch": 1, "variant": name, "precision": name,
             "latency_ms": 1.0} for name in BASE]
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps({"env": {"gpu": "NVIDIA H200"}, "commit": "abc", "rows": rows}))
    sitting.env["gpu"] = "NVIDIA H100 80GB HBM3"
    with pytest.raises(ValueError, match="measured on NVIDIA H200, this is NVIDIA H100"):
        bench_trt.keep(file, sitting)
    sitting.env["gpu"] = "NVIDIA H200"
    bench_trt.keep(file, sitting)
    assert not [job for job in (*sitting.builds, *sitting.others) if (job.size, job.batch) == ("ti", 1)
                and job.worker in ("build", "time")] and len(sitting.builds) == len(BUILDS) - 3
    sitting.write()
    written = json.loads((tmp_path / "out" / f"{sitting.name}.json").read_text())["rows"]
    assert [row["latency_ms"] for row in written if row["model"] == "ViT-Ti" and row["batch"] == 1
            and row["backend"] == "tensorrt-8.6"] == [1.0] * 3
    assert {row["kept_from"] for row in written if "kept_from" in row} == {"abc"}


def test_a_tensorrt_that_does_not_start_is_known_before_the_run(monkeypatch, tmp_path):
    monkeypatch.setenv("TRT_PYTHON", f"env PYTHONPATH={tmp_path} {sys.executable}")
    assert "No module named 'tensorrt'" in bench_trt.tensorrt_starts()
    (tmp_path / "tensorrt.py").write_text("class Logger:\n ERROR = 1\n def __init__(s, l): pass\nBuilder = Logger\n")
    assert bench_trt.tensorrt_starts() == ""
    (tmp_path / "tensorrt.py").write_text("print('[E] Assertion failed')\nraise SystemExit(1)\n")
    assert bench_trt.tensorrt_starts() == "[E] Assertion failed"


# --- where the time goes -----------------------------------------------------------------------------------------

def test_a_kernel_record_is_read_where_cupti_puts_it():
    name = ctypes.create_string_buffer(b"sm80_xmma_gemm_i8i8_i8i32")
    record = bytearray(192)
    struct.pack_into("<I", record, 0, 10)                                   # CONCURRENT_KERNEL
    struct.pack_into("<QQ", record, 16, 1_000, 251_000)                     # start, end in ns
    struct.pack_into("<Q", record, 104, ctypes.addressof(name))
    held = ctypes.create_string_buffer(bytes(record))
    assert read(ctypes.addressof(held)) == (1_000, "sm80_xmma_gemm_i8i8_i8i32", 0.25)
    struct.pack_into("<I", record, 0, 1)                                    # a copy
    assert read(ctypes.addressof(ctypes.create_string_buffer(bytes(record)))) is None
    rows = summed([(3, "b", 0.5), (1, "a", 0.25), (2, "b", 0.5)], runs=2)
    assert rows == [{"name": "a", "count": 0.5, "ms": 0.125}, {"name": "b", "count": 1.0, "ms": 0.5}]


def test_profiles_become_one_row_an_engine_by_kind_of_work(tmp_path):
    kernels = [{"name": "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n", "count": 48.0, "ms": 0.5},
               {"name": "__myl_bb0_AddMeaSubMulMeaAddSqrDivMul", "count": 24.0, "ms": 0.25},
               {"name": "fmha_v2_flash_attention_fp16_S_256_sm90", "count": 12.0, "ms": 0.25},
               {"name": "__myl_MulErfAddMulRouCas", "count": 12.0, "ms": 0.5}, {"name": "what", "count": 1.0, "ms": 1}]
    layers = [{"name": "{ForeignNode[a...b]}", "type": "Myelin", "tactic": "", "inputs": [], "ms": 2.0}]
    logs = tmp_path / "logs"
    logs.mkdir()
    for what, variant, content in (("kernels", "int8-mlp", kernels), ("layers", "int8-mlp", layers),
                                   ("layers", "fp16", layers), ("kernels", "fp16", [])):
        (logs / f"{what}.time-s-b32.{variant}.json").write_text(json.dumps(content))
    with tarfile.open(tmp_path / "logs.tgz", "w:gz") as archive:
        archive.add(logs, ".")
    fp16, mlp = layer_rows(tmp_path / "logs.tgz")
    assert (fp16["variant"], fp16["by"], fp16["total_ms"], fp16["precision"]) == ("fp16", "layers", 2.0, "fp16")
    assert mlp == {"model": "ViT-S", "batch": 32, "variant": "int8-mlp", "precision": "int8", "by": "kernels",
                   "launches": 97, "total_ms": 2.5, "gemm_int8_ms": 0.5, "norm_ms": 0.25, "attention_ms": 0.25,
                   "gelu_ms": 0.5, "other_ms": 1}


@pytest.mark.parametrize(("work", "names"), [  # as TensorRT 8.6.0 called them on an H200
    ("attention_ms", ["mha0", "mha11", "__myl_bb0_94_MaxSubExpSumDivMul",
                      "sm90_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x128x32_cgasize1x2x1_warpgroupsize1x1x1",
                      "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize64x128x16_stage4_warpsize2x2x1_tensor16x8x8"]),
    ("gemm_int8_ms", ["sm90_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize256x128x64_cgasize1x2x1_warpgroupsize2x1x1_beta0",
                      "sm80_xmma_gemm_i8f32_i8i32_f32_tn_n_tilesize128x64x64_stage3_tensor16x8x32_fused29"]),
    ("gemm_half_ms", ["sm90_xmma_gemm_f16f16_f16f16_f16_nn_n_tilesize128x64x64_cgasize1x2x1_warpgroupsize1x1x1_beta0",
                      "sm80_xmma_gemm_f16f16_f16f32_f32_nn_n_tilesize96x128x32_stage4_warpsize2x2x1_tensor16x8x16",
                      "sm80_xmma_fprop_implicit_gemm_indexed_wo_smem_f16f16_f16f16_f16_nhwckrsc_nhwc_tilesize128x32x64_"
                      "stage1_warpsize4x1x1_g1_tensor16x8x16_aligna8_alignc8_execute_kernel_trt"]),
    ("gemm_float_ms", ["sm90_xmma_gemm_f32f32_tf32f32_f32_tn_n_tilesize64x128x32_cgasize4x2x1_warpgroupsize1x1x1_beta0",
                       "sm80_xmma_fprop_implicit_gemm_indexed_wo_smem_f32f32_tf32f32_f32_nhwckrsc_nhwc_tilesize128x16"]),
    ("gelu_ms", ["__myl_bb0_92_DivCasErfCasAddMulMul", "__myl_bb0_58_DivErfAddMulMul",
                 "__myl_bb0_24_CasDivCasErfCasAddMulMulMulCasMulMinMaxRouCas"]),
    ("norm_ms", ["__myl_bb0_91_AddCasMeaSub", "__myl_bb0_93_ResMulMeaAddSqrDivMulCasMulAdd",
                 "__myl_bb0_50_AddMeaSubMulMeaAddSqrDivMulMulAddMulMinMaxRouCas", "__myl_bb0_113_CasResAddCasMeaSub"]),
    ("quantise_reformat_ms", ["__myl_bb0_97_SliResTraResMov", "__myl_bb0_95_SliResTra", "__myl_bb0_1_ResTraRes",
                              "__myl_bb0_69_MulMinMaxRouCasResTra", "__myl_bb0_119_SliResTraCasMulCas",
                              "_ZN15genericReformat20copyVectorizedKernelIdf6__halfLb1ELb0ELi1EEEvjPK",
                              "_ZN18CUTENSOR_NAMESPACE21permutationKernelPLC3INS_23VectorWrite2DTensorView",
                              "_ZN6cuInt810nhwcTonchwIfLi32ELi32ELi2EEEvPK6__halfPT_iiiiii",
                              "_ZN6cuInt816nhwcToNchwKernelIfEEviiiiiiiiPKT_PS1_"]),
    ("other_ms", ["generatedNativePointwise"]),
])
def test_a_kernels_name_tells_its_kind_of_work(work, names):
    assert {name: kind(name) for name in names} == dict.fromkeys(names, work)


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
