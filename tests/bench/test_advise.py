"""What to ship: the best of every runtime, behind the gate, and the reason in the same line."""
import pytest

import vega3d
from bench.advise import advise
from records.results import Results, save
from tests.bench_rows import ENV, file_row, latency_row


def row(runtime: str, precision: str, ms: float, mean: float | None = None,
        p1: float | None = None, **more) -> dict:
    """As bench/results/openvino_cpu.json has them."""
    return {"model": "ViT-Ti", "runtime": runtime, "precision": precision, "threads": 1,
            "latency_ms": ms, "cosine_mean": mean, "cosine_p1": p1, **more}


FP32 = [row("onnxruntime", "fp32", 28.1, 1.0, 1.0), row("OpenVINO", "fp32", 15.0, 1.0, 1.0)]


def page(*rows: dict, **env) -> str:
    return "\n".join(advise([Results("r", "c", "abc", {**ENV, **env}, list(rows))]))


def lines(text: str, word: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip().startswith(word)]


def test_int8_is_measured_against_the_best_fp32_of_any_runtime():
    text = page(*FP32, row("onnxruntime", "int8", 14.8, 0.9996, 0.999),
                row("OpenVINO", "int8", 10.4, 0.9993, 0.9985))
    assert text.splitlines()[0] == "a processor: ViT-Ti, batch 1, 1 thread"
    assert lines(text, "ship") == ["ship      INT8 on OpenVINO: 10.40 ms a frame"]
    assert lines(text, "why") == [
        "why       INT8 pays 1.44x over the best FP32 here (OpenVINO, 15.00 ms)"]
    assert lines(text, "accuracy") == [
        "accuracy  cosine to FP32 0.9993, 1st percentile 0.9985"]
    assert [line.split(":")[0] for line in lines(text, "not")] == [
        "not       INT8 on onnxruntime", "not       FP32 on OpenVINO",
        "not       FP32 on onnxruntime"]


def test_a_quicker_file_below_the_gate_is_not_shipped():
    text = page(*FP32, row("OpenVINO", "int8", 10.4, 0.9925, 0.983),
                row("OpenVINO mixed", "int8", 10.9, 0.9991, 0.9890),
                row("onnxruntime", "int8", 14.0, 0.9996, 0.999))
    assert "INT8 on onnxruntime: 14.00" in lines(text, "ship")[0]
    left_out = lines(text, "not")
    assert "cosine mean 0.9925 is below 0.999" in left_out[0]
    assert "cosine p1 0.9890 is below 0.99" in left_out[1]


def test_int8_that_is_no_quicker_is_not_advised():
    text = page(*FP32, row("onnxruntime", "int8", 14.8, 0.9996, 0.999))
    assert "FP32 on OpenVINO" in lines(text, "ship")[0]
    assert lines(text, "why") == [
        "why       INT8 does not pay: 1.01x of FP32 (onnxruntime, 14.80 ms)"]


def test_threads_models_batches_and_devices_are_answered_apart():
    gpu = {**row("tensorrt", "fp16", 0.5, 1.0, 1.0), "threads": None, "device": "cuda", "batch": 8}
    text = page(*FP32, row("onnxruntime", "int8", 9.0, 0.9996, 0.999, threads=4),
                row("onnxruntime", "fp32", 70.0, 1.0, 1.0, model="ViT-S"), gpu, gpu="NVIDIA H200")
    assert [line for line in text.splitlines() if line and line[0] != " "] == [
        "NVIDIA H200: ViT-Ti, batch 8", "a processor: ViT-S, batch 1, 1 thread",
        "a processor: ViT-Ti, batch 1, 1 thread", "a processor: ViT-Ti, batch 1, 4 threads"]
    assert "FP16 on TensorRT: 0.06 ms a frame" in text
    assert lines(text, "why")[-1] == "why       nothing but INT8 was measured here"


def test_a_bench_s_rows_are_joined_with_the_accuracy_of_the_same_file():
    rows = [latency_row("student", "model.onnx", 30.0, backend="ort-cpu"),
            latency_row("student", "model.int8.cpu.onnx", 15.0, "int8", "ort-cpu"),
            latency_row("generator", "wan-nano", 200.0),
            {"kind": "run", "student": "ViT-Ti"},
            file_row("student_int8_cpu", "model.int8.cpu.onnx", 0.83, 0.9995)]
    text = page(*rows)
    assert "INT8 on onnxruntime, model.int8.cpu.onnx: 15.00 ms" in text and "wan-nano" not in text
    assert "cosine to FP32 0.9995, 1st percentile 0.9955" in text
    assert "accuracy  not in these files" in page(*rows[:-1])


def test_a_jetson_s_failed_gate_is_said():
    jetson = {"kind": "latency", "model": "vit-ti", "backend": "tensorrt", "device": "cuda",
              "batch": 1, "onnx": "model.fp16.onnx", "gate": "passed"}
    rows = [{**jetson, "precision": "fp16", "latency_ms": 2.0, "frame_ms": 2.0, "cosine_mean": 1.0,
             "energy_mj_per_frame": 12.0},
            {**jetson, "precision": "int8", "latency_ms": None, "gate": "cosine_mean 0.4 < 0.999"}]
    text = page(*rows, device="Jetson Orin Nano", l4t="# R36")
    assert "Jetson Orin Nano: ViT-Ti, batch 1" in text
    assert "model.fp16.onnx: 2.00 ms a frame, 12.0 mJ" in text
    assert "failed its gate: cosine_mean 0.4 < 0.999" in text and "inf" not in text
    assert "ship      nothing" in page(rows[1], device="Jetson Orin Nano", l4t="# R36")


def test_the_command_prints_one_page_and_refuses_what_has_no_latency(tmp_path, capsys):
    save(Results("a", "c", "abc", ENV, FP32), tmp_path / "a.json")
    save(Results("b", "c", "abc", ENV, [{"kind": "run"}]), tmp_path / "b.json")
    vega3d.main(["bench", "advise", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert "ship      FP32 on OpenVINO" in capsys.readouterr().out
    for names, why in ((["b.json"], "no latency of a student"), ([], "got no result file"),
                       (["c.json"], "c.json: missing")):
        with pytest.raises(SystemExit) as stop:
            vega3d.main(["bench", "advise", *(str(tmp_path / name) for name in names)])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and why in error and len(error.splitlines()) == 1, error
