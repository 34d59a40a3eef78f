"""`vega3d distill adapt`: the shipped student and its heads go on, on footage of one place.

Every batch has pairs of frames of footage, and of rooms to keep what it knew. It learns the
generator's features of both, and depth and matches where the footage has depth and poses.
"""
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch

from distill.clips import FootageAndRooms
from distill.config import AdaptConfig
from distill.heads import ensure_heads, metres, predictions, score
from distill.run import DistillRun
from distill.stages import initial_student, run_distillation
from records.environment import environment
from records.files import sha256, spec_digest
from records.results import Row, measured
from records.results import save as save_results
from scenes.clip import Clip
from student.heads import StudentWithHeads, load_heads
from student.vit import load_student
from teacher.data.dataset import Examples


def adapt(config: AdaptConfig, write_page: Callable[..., None]) -> Path:
    """Makes or resumes the run; its folder has adapt.json and adapt.html too, the latter by
    write_page(results, held-out clips, models before and after by name, path).

    Raises ValueError, and leaves no folder, for footage that cannot be opened or is too short.
    """
    return run_distillation(config, partial(_train_and_score, write_page=write_page))


def _train_and_score(run: DistillRun, train: Examples, test: Examples,
                     write_page: Callable[..., None]) -> list[dict]:
    config, source, seed, path = run.config, run.source, run.config.seeds[0], run.config.scenes.path
    assert isinstance(config, AdaptConfig) and isinstance(source, FootageAndRooms) and path
    folder, held_out = run.student_folder(seed), len(source.parts["test"])
    parts = {"footage": test.clips(0, held_out), "rooms": test.clips(held_out, len(test.ids))}
    rooms = len(train.ids) - len(source.parts["train"])
    train.replay = rooms, config.replay * bool(rooms)
    row = ensure_heads(folder, train, parts["rooms"], config.heads, config.student, seed,
                       initial=initial_student(run, train, seed))
    if not run.processes.main:
        return []
    models = {stage: StudentWithHeads(load_student(where), load_heads(where)).to(run.device)
              for stage, where in (("before", config.student.model.shipped), ("after", folder))}
    rows: list[Row] = []
    for (stage, model), (name, examples) in product(models.items(), parts.items()):
        same_teacher = model.student.config.teacher == spec_digest(run.tower.spec)
        scores = score(predictions(model), examples, model.heads.shape,
                       model.student if same_teacher else None)
        rows.append({"recording": path.name, "seed": seed, "stage": stage, "frames_from": name,
                     "frames": len(examples), **scores})
    env = {**environment(), "recording": path.name, "replay": config.replay,
           "frames": len(source.parts["train"]) * train.frames_per_clip,
           "held_out_frames": len(parts["footage"]), "steps": config.heads.steps,
           "student_sha256": sha256(folder / "student.safetensors"),
           "notes": "; ".join(source.notes)}
    results = measured("adapt", rows, env)
    save_results(results, run.folder / "adapt.json")
    clips = [source.clip(clip_id) for clip_id in parts["footage"].ids]
    write_page(results, clips, models, run.folder / "adapt.html")
    return [row]


@torch.inference_mode()
def outputs(model: StudentWithHeads, clip: Clip) -> dict[str, np.ndarray]:
    """Of a clip with intrinsics; depth in its camera's metres, [T,1,112,112]."""
    assert clip.intrinsics is not None
    frames = torch.from_numpy(clip.frames).to(model.heads.colours.weight.device).float() / 255
    found, focal = predictions(model)(frames), float(np.diag(clip.intrinsics)[:2].mean())
    found["depth"] = metres(found, frames.new_tensor([focal]), model.heads.shape)[:, None]
    return {name: value.cpu().numpy() for name, value in found.items()}
