"""What trt.sh needs besides the repository, small: trt_carry.py RUN OUT (needs NNCF; the GPU machine does not).

OUT/frames.npz (32 held-out frames, 32 of calibration), OUT/signed.onnx (the calibrated INT8 student of RUN, before it
is spelt for a target) and OUT/jetson/ (the Jetson folder's small parts). RUN's student must be the shipped ViT-Ti; a
RUN that is not there is made: the shipped student with a default run's rooms to calibrate it and hold it to account.
"""
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import torch

from distill.clips import open_source
from distill.config import ScenesConfig
from distill.run import CALIBRATION_FRAMES, HELD_OUT_FRAMES, _write_frames
from export.jetson.bundle import write_bundle
from export.pipeline import Exporter
from export.source import open_run, spread
from records.environment import environment
from records.files import write_json
from student.vit import SHIPPED
from teacher.examples import Examples


def shipped_run(folder: Path) -> None:
    """A run folder around the shipped weights, which no training touched."""
    shutil.copytree(SHIPPED, folder / "student")
    (folder / "frames").mkdir()
    write_json(environment(), folder / "env.json")
    source, _ = open_source(ScenesConfig(), folder / "clips", render=True)
    for split, name, count in (("train", "calibration", CALIBRATION_FRAMES), ("test", "heldout", HELD_OUT_FRAMES)):
        examples = Examples(source, source.ids(split), {}, torch.device("cpu"))  # type: ignore[arg-type]
        _write_frames(folder / "frames" / f"{name}.safetensors", examples, count)
    shutil.rmtree(folder / "clips")


def main(run: Path, out: Path) -> None:
    if not run.exists():
        shipped_run(run)
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
