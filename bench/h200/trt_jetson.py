"""The Jetson folder of the shipped ViT-Ti on the GPU machine: trt_jetson.py CARRY WORK OUT, after trt_graphs.py ti.

The two files that TensorRT 8.6 reads, spelt by the product's own code: the calibrated INT8 student that trt_carry.py
brought, and the FP32 one exported here; references of this machine.
"""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx

from export.dialects import to_flagged
from export.jetson.bundle import RUNNER
from export.onnx import export_onnx
from records.files import sha256, write_json
from student.vit import SHIPPED, load_student


def main(carry: Path, work: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(carry / "jetson", out)
    shutil.copy(RUNNER, out)
    onnx.save(to_flagged(onnx.load(carry / "signed.onnx")), out / "model.int8.flagged.onnx")
    onnx.save(to_flagged(export_onnx(load_student(SHIPPED))), out / "model.flagged.onnx")
    np.save(out / "reference_frames.npy", np.load(work / "frames.npz")["heldout"])
    shutil.copy(work / "ti" / "reference.npy", out / "reference_features.npy")
    facts = json.loads((out / "bundle.json").read_text())
    facts["sha256"] = {path.name: sha256(path) for path in out.glob("*.onnx")}
    write_json(facts, out / "bundle.json")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
