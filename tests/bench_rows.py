"""Made-up bench results with rows for every table; every figure is easy to recognise."""
from pathlib import Path

from bench.report.pictures import png
from records.results import Results

ENV = {
    "cpu": "a processor", "cores": 2, "commit": "abc123", "load_1m": 0.2,
    "packages": {"torch": "2.13.0"}
}


def latency_row(stage: str, artefact: str, ms: float, precision: str = "fp32",
                backend: str = "torch", **more) -> dict:
    return {
        "kind": "latency", "part": "latency", "artefact": artefact, "sha256": f"sha {artefact}",
        "stage": stage, "backend": backend, "device": "cpu", "precision": precision, "batch": 1,
        "frames": 1, "size_mb": 22.6, "threads": 1, "timer": "wall clock", "latency_ms": ms,
        "p90_ms": 1.1 * ms, "p99_ms": 1.3 * ms, "iqr_ms": 0.1 * ms, "iterations": 100,
        "frame_ms": ms, "memory_mb": 80.0, "runtime_mb": 55.0, **more
    }


def accuracy_row(features: str, delta1: float, normal_deg: float, seed: int = 0, **more) -> dict:
    gain, turn = delta1 - 0.77, normal_deg - 12.4
    row = {
        "kind": "accuracy", "part": "accuracy", "features": features, "head": "dense", "seed": seed,
        "delta1": delta1, "abs_rel": 0.12, "normal_deg": normal_deg, "miou": 0.41, "clips": 48,
        "rooms": 24
    }
    if features != "semantic_only":
        row |= {"delta1_vs_semantic": gain, "delta1_vs_semantic_low": gain - 0.01,
                "delta1_vs_semantic_high": gain + 0.01, "normal_deg_vs_semantic": turn,
                "normal_deg_vs_semantic_low": turn - 0.4, "normal_deg_vs_semantic_high": turn + 0.4}
    if features.startswith("student"):
        shares = {"recovery_delta1": gain / 0.07, "recovery_normal_deg": turn / -2.6}
        shares["recovery"] = min(shares.values())
        row |= {"cosine_mean": 0.93, "cosine_p1": 0.71, **shares}
        row |= {f"{name}_low": share - 0.05 for name, share in shares.items()}
        row |= {f"{name}_high": share + 0.05 for name, share in shares.items()}
    return row | more


def file_row(features: str, artefact: str, delta1: float, cosine: float) -> dict:
    return accuracy_row(features, delta1, 10.0, artefact=artefact, sha256=f"sha {artefact}",
                        size_mb=6.4, fp32_cosine_mean=cosine, fp32_cosine_p1=cosine - 0.004,
                        delta1_vs_fp32=delta1 - 0.834, normal_deg_vs_fp32=0.02)


def sample(run: Path) -> Results:
    """A bench of `run`; its pictures are written there."""
    facts = {
        "kind": "run", "run": str(run), "student": "ViT-Ti", "student_sha256": "f00d", "depth": 12,
        "parameters_m": 5.7, "feature_width": 256, "generator": "wan-nano", "block": 6, "t": 0.3,
        "mode": "image", "noise_draws": 4, "trained_on": "90 rooms x 2 clips", "frames_per_clip": 5,
        "seeds": 2
    }
    timed = [
        latency_row("vae_encode", "wan-nano", 210.0),
        latency_row("transformer", "wan-nano", 180.0),
        latency_row("generator", "wan-nano", 392.0),
        latency_row("semantic", "efficientnet-lite0", 24.0),
        latency_row("student", "student.safetensors", 31.2, speedup=12.6),
        latency_row("student", "model.onnx", 24.4, backend="ort-cpu", speedup=16.1, vs_torch=1.28),
        latency_row("student", "model.int8.cpu.onnx", 14.9, "int8", "ort-cpu", size_mb=6.4,
                    speedup=26.3, vs_torch=2.09, vs_fp32=1.64, vs_fp32_low=1.6, vs_fp32_high=1.7)
    ]
    scored = [
        accuracy_row(name, delta1 + 0.01 * seed, normal, seed) for seed in (0, 1)
        for name, delta1, normal in (("teacher", 0.84, 9.8), ("semantic_only", 0.77, 12.4),
                                     ("zeros", 0.769, 12.5), ("student_fp32", 0.834, 10.1))
    ]
    scored[3] |= {"artefact": "student.safetensors", "sha256": "sha student.safetensors"}
    scored += [file_row("student_onnx_fp32", "model.onnx", 0.834, 0.99999),
               file_row("student_int8_cpu", "model.int8.cpu.onnx", 0.832, 0.9993)]
    gap = {
        "kind": "absent", "part": "latency", "what": "torch CUDA", "why": "no GPU here",
        "fix": "find a GPU"
    }
    verdict = {
        "kind": "verdict", "part": "accuracy", "artefact": "model.int8.cpu.onnx", "sha256": "sha",
        "use": "INT8", "line": "INT8 1.91x of FP32 here (15.7 vs 30.0 ms): use INT8"
    }
    return Results(
        "bench", "vega3d bench", "abc123", ENV,
        [facts, *timed, *scored, *pictures(run), *precisions(), *matches(run), verdict, gap])


def precisions() -> list[dict]:
    """Two blocks of an INT8 file, and of an FP16 file, which has no map."""
    rows = []
    for name, product in (("model.int8.onnx", "int8"), ("model.fp16.onnx", "fp16")):
        facts = {"kind": "layer", "part": "accuracy", "artefact": name, "sha256": f"sha {name}"}
        for block in (0, 1):
            for slot in ("norm1", "qkv", "attention", "fc1"):
                precision = product if slot in ("qkv", "fc1") else "fp16"
                rows.append({**facts, "block": block, "slot": slot, "precision": precision})
    return rows


def matches(run: Path) -> list[dict]:
    """A teacher's three lines, one of them wrong, and an INT8 student's without true points."""
    import numpy as np

    for name in ("view_a.png", "view_b.png"):
        (run / "bench" / "strips" / name).write_bytes(png(np.full((224, 224, 3), 120, np.uint8)))
    rows = []
    for source, truth in (("teacher", (True, True, False)), ("int8", (None,))):
        facts = {"part": "accuracy", "clip": "test/00003_1", "voice": source}
        judged = truth != (None,)
        rows.append({
            "kind": "match_pair", **facts, "from_file": "view_a.png", "to_file": "view_b.png",
            "found": 41, "asked": 30 if judged else None, "right": 20 if judged else None
        })
        rows += [{
            "kind": "match", **facts, "from_x_px": 20.0 * i, "from_y_px": 50.0, "to_x_px": 60.0,
            "to_y_px": 70.0 + i, "right": right
        } for i, right in enumerate(truth)]
    return rows


def pictures(run: Path) -> list[dict]:
    import numpy as np

    folder, rows = run / "bench" / "strips", []
    folder.mkdir(parents=True, exist_ok=True)
    for place in ("frame", "truth_depth", "semantic_depth", "teacher_depth", "student_depth",
                  "int8_depth", "teacher_features", "student_features", "int8_features"):
        (folder / f"{place}.png").write_bytes(png(np.full((14, 14, 3), 90, np.uint8)))
        shows = place.rpartition("_")[2]
        rows.append({
            "kind": "picture", "part": "accuracy", "clip": "test/00003_1", "file": f"{place}.png",
            "place": place, "shows": shows, "alt": f"what the {place} looks like",
            **({"near_m": 1.25, "far_m": 5.75} if shows == "depth" else {})
        })
    return rows
