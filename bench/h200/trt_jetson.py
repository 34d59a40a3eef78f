"""The Jetson folder of the shipped ViT-Ti on the GPU machine: trt_jetson.py CARRY WORK OUT, after trt_graphs.py ti.

The two files that TensorRT 8.6 reads, spelt by the product's own code: the calibrated INT8 student that trt_carry.py
brought, and the FP32 one exported here; references of this machine. OUT is there only when it is whole.
"""
import json
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import onnx

from export.dialects import to_flagged
from export.jetson.bundle import RUNNER
from export.onnx import export_onnx
from records.files import beside, sha256, write_json
from student.vit import SHIPPED, load_student


def main(carry: Path, work: Path, out: Path) -> None:
    while not (work / "ti" / "reference.npy").exists():
        time.sleep(0.2)
    with beside(out) as folder:
        shutil.copytree(carry / "jetson", folder)
        shutil.copy(RUNNER, folder)
        onnx.save(to_flagged(onnx.load(carry / "signed.onnx")), folder / "model.int8.flagged.onnx")
        onnx.save(to_flagged(export_onnx(load_student(SHIPPED))), folder / "model.flagged.onnx")
        np.save(folder / "reference_frames.npy", np.load(work / "frames.npz")["heldout"])
        shutil.copy(work / "ti" / "reference.npy", folder / "reference_features.npy")
        facts = json.loads((folder / "bundle.json").read_text())
        facts["sha256"] = {path.name: sha256(path) for path in folder.glob("*.onnx")}
        write_json(facts, folder / "bundle.json")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
