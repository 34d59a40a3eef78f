#!/usr/bin/env python3
"""Builds this folder's engines with the Jetson's TensorRT, gates and times them, says which to use.

    python3 run_on_jetson.py        # or on any machine with TensorRT >= 8.5 and an NVIDIA GPU
    python3 run_on_jetson.py --int8 # or --fp16: that engine alone

Needs Python 3.8+, numpy and JetPack's own `tensorrt`. Writes model.PRECISION.*.engine, a timing
cache and result.json here. Exit 2: cannot run here; 3: an engine failed its gate (not written).
"""
from __future__ import annotations

import argparse
import functools
import hashlib
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
from cuda import EngineModel, first_gpu
from device_engine import build, dialect, release, tensorrt_logger, write_atomically
from device_state import device_state, energy, notes
from timing import MIN_SPEEDUP, interleave, sample_block

HERE = Path(__file__).resolve().parent
ROUNDS = 10  # in each, a block of calls of either engine
WARM_UP = 50  # calls
FILES = {"typed": {"int8": "model.int8.onnx", "fp16": "model.fp16.onnx"},
         "flagged": {"int8": "model.int8.flagged.onnx", "fp16": "model.flagged.onnx"},
         "jp5": {"int8": "model.int8.jp5.onnx", "fp16": "model.jp5.onnx"}}


def main():
    options = _options()
    try:
        sys.exit(run(options))
    except (ValueError, OSError) as error:
        print("error: " + " ".join(str(error).split()), file=sys.stderr)
        sys.exit(2)


def run(options):
    """The exit code: 0 if every engine passed its gate, 3 if not. ValueError: cannot run here."""
    bundle = json.loads((HERE / "bundle.json").read_text())
    trt, gpu = load_tensorrt(bundle["known_bad_tensorrt"]), first_gpu()
    if gpu is None:
        raise ValueError("no CUDA driver here (libcuda.so.1); on a Jetson it comes with JetPack")
    before = device_state()
    for note in notes(before):
        print(f"note: {note}", file=sys.stderr)
    rows, engines = [], {}
    for precision in options.precisions:
        row, engine = build_and_gate(trt, gpu, bundle, precision, options.own_kernels)
        rows.append(row)
        if engine is not None:
            engines[precision] = engine
    measure(engines, rows, options)
    line = verdict(rows)
    print(line)
    save_result(trt, bundle, rows, line, before)
    return 0 if all(row["gate"] == "passed" for row in rows) else 3


def load_tensorrt(known_bad):
    """JetPack's module; warns of a version in `known_bad`, {"10.3": reason, ...}."""
    try:
        import tensorrt as trt
    except ImportError as error:
        raise ValueError(
            f"no tensorrt here ({error}); it comes with JetPack: sudo apt install "
            "python3-libnvinfer, and use the system's python3") from error
    version = trt.__version__
    if release(version) < (8, 5):
        raise ValueError(f"TensorRT {version} is too old, expected >= 8.5: JetPack 5.1 or later")
    reason = _reason(known_bad, version)
    if reason:
        print(f"warning: TensorRT {version} is {reason}. The parity gate decides.", file=sys.stderr)
    return trt


def _reason(known_bad, version):
    return known_bad.get("{}.{}".format(*release(version)), "")


def build_and_gate(trt, gpu, bundle, precision, own_kernels=False):
    """(result row, engine or None): only an engine that passes its gate is written and returned."""
    source = HERE / FILES[dialect(trt)][precision]
    path = HERE / f"model.{precision}.trt-{trt.__version__}.sm{gpu.sm}.engine"
    if path.exists():
        path.unlink()
    content = _read_verified(source, bundle)
    print(f"building {path.name} from {source.name} (minutes the first time) ...", flush=True)
    began = time.time()
    timing_cache = HERE / f"timing-trt-{trt.__version__}-sm{gpu.sm}.cache"
    plan = build(trt, source, content, precision, timing_cache, own_kernels)
    build_seconds = time.time() - began
    engine = EngineModel(trt, plan, batch=1, logger=tensorrt_logger(trt))
    frames = np.load(HERE / "reference_frames.npy").astype(np.float32) / 255
    reference = np.load(HERE / "reference_features.npy")
    fidelity, misses = gate(engine(frames), reference, bundle["thresholds"][precision])
    row = {"kind": "latency", "model": bundle["model"], "precision": precision,
           "backend": "tensorrt", "device": "cuda", "batch": engine.batch, "latency_ms": None,
           **fidelity, "gate": "; ".join(misses) or "passed", "size_mb": round(len(plan) / 1e6, 3),
           "build_seconds": round(build_seconds, 1), "onnx": source.name}
    if misses:
        print(f"{path.name}: FAILED its parity gate, not kept: {row['gate']}", file=sys.stderr)
        return row, None
    write_atomically(path, plan)
    print(f"{path.name}: built in {build_seconds:.0f} s, passed: cosine mean "
          f"{row['cosine_mean']:.6f}, p1 {row['cosine_p1']:.6f}")
    return row, engine


def gate(features, reference, limits):
    """(fidelity, the thresholds missed). features, reference: [N,D,h,w]. NaN misses."""
    if features.shape != reference.shape:
        raise ValueError(f"got features {features.shape}, expected {reference.shape}")
    # [N,D,h*w]
    a, b = (x.reshape((*x.shape[:2], -1)).astype(np.float64) for x in (reference, features))
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(1) / np.maximum(norms, 1e-12)
    fidelity = {"cosine_mean": float(cosine.mean()), "cosine_p1": float(np.percentile(cosine, 1)),
                "relative_error": float(np.linalg.norm(b - a) / np.linalg.norm(a))}
    if (HERE / "probe.npz").is_file():
        with np.load(HERE / "probe.npz") as probe:
            fidelity["delta1_drop"] = _delta1(a, probe) - _delta1(b, probe)
    misses = []
    for name in ("cosine_mean", "cosine_p1"):
        if not fidelity[name] >= limits[name]:
            misses.append(f"{name} {fidelity[name]:.5f} < {limits[name]}")
    for name in ("relative_error", "delta1_drop"):
        if name in fidelity and not fidelity[name] <= limits[name]:
            misses.append(f"{name} {fidelity[name]:.4f} > {limits[name]}")
    return {k: round(v, 6) if np.isfinite(v) else None for k, v in fidelity.items()}, misses


def _delta1(features, probe):
    """Percent of pixels with valid depth whose probed depth is within 25 % of it."""
    depth = probe["depth"].reshape(len(features), -1)                                # [N,h*w]
    metres = np.exp(np.einsum("ndk,d->nk", features, probe["weights"]) + probe["bias"])
    valid = depth > 0
    ratio = metres[valid] / depth[valid]
    return float(100 * (np.maximum(ratio, 1 / ratio) < 1.25).mean())


def measure(engines, rows, options):
    """Times the engines in turn, after a warm-up, and completes their rows."""
    for engine in engines.values():
        for _ in range(min(WARM_UP, options.iterations)):
            engine.run()
    names = sorted(engines)
    blocks = [functools.partial(_time_block, engines[name], options) for name in names]
    times = dict(zip(names, interleave(blocks, ROUNDS)))
    for row in rows:
        if row["precision"] in times:
            _add_times(row, times[row["precision"]])
            engine = engines[row["precision"]]
            row.update(energy(engine.run, engine.batch, options.seconds))
            if "energy_mj_per_frame" in row:
                print(f"{row['precision']}: {row['energy_mj_per_frame']:.2f} mJ a frame "
                      f"({row['power_w']:.1f} W, {row['power_rail']})")


def _time_block(engine, options, _round):
    """(GPU milliseconds of each call, milliseconds of one call with its copies)."""
    gpu = sample_block(engine.run, options.iterations / ROUNDS, options.seconds / ROUNDS)
    began = time.perf_counter()
    engine.input.upload(engine.input.host)
    engine.run()
    engine.output.download()
    return gpu, (time.perf_counter() - began) * 1000


def _add_times(row, blocks):
    gpu = np.concatenate([times for times, _ in blocks])
    median, p90, p99 = (float(ms) for ms in np.percentile(gpu, [50, 90, 99]))
    host_to_host = float(np.median([host for _, host in blocks]))
    row.update(latency_ms=median, p90_ms=p90, p99_ms=p99, host_to_host_ms=host_to_host,
               iterations=len(gpu), frame_ms=median / row["batch"], timer="CUDA events")
    print(f"{row['precision']}: median {median:.3f} ms, p90 {p90:.3f}, p99 {p99:.3f} ({len(gpu)} "
          f"calls of {row['batch']} frame(s)); with copies {host_to_host:.3f} ms")


def verdict(rows):
    """One line: which precision to use on this device."""
    if len(rows) == 1:
        only = rows[0]["precision"].upper()
        outcome = "passed" if rows[0]["gate"] == "passed" else "failed"
        return f"no verdict: {only} alone was built, and {outcome} its gate; --best builds both"
    fp16, int8 = rows
    if fp16["latency_ms"] is None or int8["latency_ms"] is None:
        passed = [row["precision"].upper() for row in rows if row["gate"] == "passed"]
        if not passed:
            return "no verdict: neither passed its gate"
        return f"no verdict: {passed[0]} passed its gate: use {passed[0]} here"
    int8["vs_fp16"] = fp16["latency_ms"] / int8["latency_ms"]
    use = "INT8" if int8["vs_fp16"] >= MIN_SPEEDUP else "FP16 here"
    return (f"INT8 {int8['vs_fp16']:.2f}x of FP16 ({int8['latency_ms']:.2f} vs "
            f"{fp16['latency_ms']:.2f} ms), cosine {int8['cosine_mean']:.4f}: use {use}")


def save_result(trt, bundle, rows, line, before):
    """Writes result.json, in the schema of bench/results."""
    l4t, model = Path("/etc/nv_tegra_release"), Path("/proc/device-tree/model")
    env = {
        "device": model.read_text().strip("\0\n ") if model.is_file() else platform.node(),
        "l4t": l4t.read_text().splitlines()[0] if l4t.is_file() else "",
        "tensorrt": trt.__version__, "dialect": dialect(trt), "python": platform.python_version(),
        "numpy": np.__version__, "machine": platform.machine(), "verdict": line, "before": before,
        "known_bad": _reason(bundle["known_bad_tensorrt"], trt.__version__),
        "after": device_state(), "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    command = " ".join(["python3", Path(sys.argv[0]).name, *sys.argv[1:]])
    result = {"schema": 1, "name": "jetson", "command": command, "commit": bundle["commit"],
              "env": env, "rows": rows}
    write_atomically(HERE / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    print(f"wrote {HERE / 'result.json'}")


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=200,
                        help="timed calls of each engine, at least")
    parser.add_argument("--seconds", type=float, default=3.0, help="and for at least this long")
    chosen = parser.add_mutually_exclusive_group()
    for name, built, why in (
            ("best", ("fp16", "int8"), "build both and say which to use (default)"),
            ("fp16", ("fp16",), "build FP16 alone"), ("int8", ("int8",), "build INT8 alone")):
        chosen.add_argument(f"--{name}", dest="precisions", action="store_const", const=built,
                            default=("fp16", "int8"), help=why)
    parser.add_argument("--own-kernels", action="store_true",
                        help="leave cuBLAS and cuDNN out, where TensorRT 8.6 runs without them")
    return parser.parse_args()


def _read_verified(source, bundle):
    content = source.read_bytes()
    if hashlib.sha256(content).hexdigest() != bundle["sha256"][source.name]:
        raise ValueError(
            f"{source.name}: truncated or altered on its way here; copy the folder again")
    return content


if __name__ == "__main__":
    main()
