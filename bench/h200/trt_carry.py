"""What trt.sh needs besides the repository, small: trt_carry.py RUN OUT (needs NNCF; the GPU machine does not).

OUT/frames.npz (32 held-out frames, 32 of calibration), OUT/signed.onnx (the calibrated INT8 student of RUN, before it
is spelt for a target) and OUT/jetson/ (the Jetson folder's small parts). RUN's student must be the shipped ViT-Ti.
"""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx

from export.jetson.bundle import write_bundle
from export.pipeline import Exporter
from export.source import open_run, spread


def main(run: Path, out: Path) -> None:
    exporter = Exporter(open_run(run))
    folder = write_bundle(exporter)
    (out / "jetson").mkdir(parents=True, exist_ok=True)
    held, seen = exporter.run.heldout.frames, exporter.run.calibration.frames
    np.savez_compressed(out / "frames.npz", heldout=spread(held, 32), calibration=spread(seen, 32))
    onnx.save(exporter.signed[0], out / "signed.onnx")
    for name in ("bundle.json", "probe.npz"):
        shutil.copy(folder / name, out / "jetson" / name)
    print(json.dumps({path.name: path.stat().st_size for path in out.rglob("*") if path.is_file()}))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
