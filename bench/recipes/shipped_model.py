"""Makes infer/model/, the model of `vega3d infer photo.jpg`: student and heads in one INT8 file.

    python -m bench.recipes.shipped_model [--run RUN]

Without a run: of student/weights/vit-ti, calibrated on rooms that are rendered for it. Writes
model.onnx (model_quantized.onnx of `vega3d export onnx --preset edge`), its README.md and the list
of digests.
"""
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from safetensors.numpy import save_file

from distill.config import RunConfig, ScenesConfig, StudentTraining, dump_config
from export.artefact import sidecar_path
from export.pipeline import Exporter
from export.presets import export_preset
from export.source import load_trained_run
from infer.model import SHIPPED as MODEL
from records import manifest
from records.files import atomic_write, sha256, write_json
from scenes.clip import Split
from scenes.dense import patch_depth
from scenes.rooms.source import RoomSource
from student.config import SHIPPED_BY_SIZE, StudentConfig
from vega3d import run_recipe

ROOMS = RoomSource(train=80, val=0, test=16, frames=4, seed=1801)
CARD = """# The model of `vega3d infer`

`model.onnx`: ViT-Ti/16 student and its heads, one RGB frame `[B,3,224,224]` in [0,1] -> features,
depth (m), confidence, normals, descriptors, colours. {size_mb:.1f} MB, int8 weights and uint8
activations of the linear layers, for onnxruntime on a CPU.

- **Weights:** `student.safetensors` {student}, `heads.safetensors` {heads}
  ([card](../../student/weights/vit-ti/README.md): scores, data, limits).
- **Calibration:** {frames} frames of {source}.
- **Against the torch model** on held-out frames: features' cosine {features_cosine:.5f}, depth off
  by {depth:.2f} %, normals by {normals_deg:.2f} degrees, descriptors' cosine
  {descriptors_cosine:.5f}.
- **On real frames:** [real_office.json](../../bench/results/real_office.json).
- **Made by** `python -m bench.recipes.shipped_model{run}`; the same command with `--run RUN`
  replaces it by the student of another run. Run `vega3d bench real` afterwards.
- **Licence:** Apache-2.0.
"""


def make(run: Path | None = None) -> None:
    """run: a run folder of `vega3d distill run` whose student and heads are to be shipped."""
    with TemporaryDirectory() as scratch:
        folder = run or run_of_shipped(Path(scratch) / "run")
        exporter = Exporter(load_trained_run(folder))
        found = next(file for file in export_preset(exporter, "edge", Path(scratch) / "edge")
                     if file.path.name == "model_quantized.onnx")
        with atomic_write(MODEL) as copy:
            shutil.copyfile(found.path, copy)
        write_json({**found.facts, "file": MODEL.name}, sidecar_path(MODEL))
        drift = found.facts["drift"]
        with atomic_write(MODEL.with_name("README.md")) as card:
            card.write_text(CARD.format(
                student=exporter.run.student_sha256[:12],
                heads=sha256(exporter.run.folder / "student" / "heads.safetensors")[:12],
                frames=found.facts["quantisation"]["frames"], depth=100 * drift["depth_ratio"],
                source="the run's clips" if run else f"{ROOMS.train} rendered rooms",
                run=" --run RUN" if run else "", size_mb=found.facts["size_mb"], **drift))
    MODEL.with_name(manifest.NAME).unlink(missing_ok=True)
    manifest.create(MODEL.parent, [MODEL, sidecar_path(MODEL)])
    print(f"{MODEL}: {found.facts['size_mb']:.1f} MB")


def folder_of_shipped(folder: Path, size: Literal["ti", "s"], scenes: ScenesConfig) -> None:
    """Writes config.yaml and student/ of a run: a shipped student, and the clips to score it on."""
    shutil.copytree(SHIPPED_BY_SIZE[size], folder / "student")
    config = RunConfig(scenes=scenes, student=StudentTraining(StudentConfig(size)))
    (folder / "config.yaml").write_text(dump_config(config))


def run_of_shipped(folder: Path, size: Literal["ti", "s"] = "ti") -> Path:
    """A run folder of a shipped student: what export and `vega3d bench latency` read of one."""
    folder_of_shipped(folder, size, ScenesConfig())
    (folder / "frames").mkdir()
    splits: dict[str, Split] = {"calibration": "train", "heldout": "test"}
    for name, split in splits.items():
        clips = [ROOMS.clip(clip_id) for clip_id in ROOMS.ids(split)]
        save_file({"frames": np.concatenate([clip.frames for clip in clips]),
                   "depth": np.concatenate([patch_depth(clip) for clip in clips])},
                  folder / "frames" / f"{name}.safetensors")
    return folder


if __name__ == "__main__":
    run_recipe(make)
