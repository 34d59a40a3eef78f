"""Where language.py's second streams come from: the stores of semantic encoder, generator and VAE, and students."""
import argparse
import json
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from language_tables import DROPPED_IN, PREPARED, SPLITS, say
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.session import OnnxModel
from records.files import beside
from scenes.clip import ClipFolder
from student.vit import Student, load_student
from teacher.features import FeatureStore, fill
from teacher.lessons import READERS, load_rooms, stack
from teacher.semantic import SemanticEncoder
from teacher.wan import Tap, VAELatents, load_wan

THREADS = min(16, len(os.sched_getaffinity(0)))  # of an exported file


def fill_streams(args: argparse.Namespace, folder: Path) -> None:
    """Semantic, generator and VAE features of the rooms' clips, from the stores (filled where they lack some), and what
    the student and its exported files say; all side by side."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(4)  # many small copies, on a machine that is busy
    source = ClipFolder(args.clips)
    # all models here: diffusers cannot load in two threads at once
    towers: dict[str, Any] = {"semantic": SemanticEncoder().to(device)}
    if {"generator", "vae_latents"} & {*args.features}:
        wan = load_wan(args.generator, Tap(block=args.block, k=args.k, seeds=args.noise_seeds)).to(device)
        towers |= {n: t for n, t in {"generator": wan, "vae_latents": VAELatents(wan)}.items() if n in args.features}
    files = dict(one.split("=", 1) for one in args.onnx)
    student = None if args.student is None else load_student(args.student).to(device)
    with ThreadPoolExecutor() as pool:
        tasks = {n: pool.submit(_stored, args, folder, source, device, n, tower) for n, tower in towers.items()}
        if student:
            tasks |= {n: pool.submit(_student, folder, source, student, n, files.get(n))
                      for n in (f"{DROPPED_IN}_fp32", *files)}
        for name, task in tasks.items():
            if error := task.exception():
                say(f"{name}: no features:\n{''.join(traceback.format_exception(error))}")
    if student and "generator" in towers:
        for name in tasks:
            if name.startswith(DROPPED_IN) and (folder / f"{name}_test.safetensors").is_file():
                say(f"{name}: cosine to the generator on held-out rooms {_cosine(student, folder, name):.3f}")


def _stored(args: argparse.Namespace, folder: Path, source: ClipFolder, device: torch.device, name: str,
            tower: Any) -> None:
    key = json.loads((args.clips / "scenes.json").read_text())["key"]
    for split in PREPARED:
        path = folder / f"{name}_{split}.safetensors"
        if path.is_file() or not (folder / f"rooms_{split}.safetensors").is_file():
            continue
        rooms = load_rooms(folder / f"rooms_{split}.safetensors")
        store = FeatureStore(args.features_at, tower.spec, key)
        fill(store, tower, source, [r.id for r in rooms], device)
        with beside(path) as scratch:
            save_file({name: stack(store, rooms)}, scratch)


@torch.inference_mode()
def _student(folder: Path, source: ClipFolder, student: Student, name: str, file: str | None) -> None:
    """What the student, or a file exported from it, says in its units; of `train` only the student itself."""
    device = student.target_mean.device
    session = OnnxModel(Path(file), optimise=name.endswith("cpu"), threads=THREADS) if file else None

    def speak(frames: np.ndarray) -> Tensor:
        if session:
            return torch.from_numpy(session(frames.astype(np.float32) / 255)).float().to(device)
        return student(torch.from_numpy(frames).to(device).float() / 255).float()

    for split in ("test",) if file else SPLITS:
        path = folder / f"{name}_{split}.safetensors"
        if path.is_file():
            continue
        rooms = load_rooms(folder / f"rooms_{split}.safetensors")
        with ThreadPoolExecutor(READERS) as readers:
            frames = readers.map(lambda room: source.clip(room.id).frames, rooms)
            said = [student.destandardise(speak(x)).half().cpu() for x in frames]
        with beside(path) as scratch:
            save_file({name: torch.stack(said).contiguous()}, scratch)                         # [N,T,D,14,14]


def _cosine(student: Student, folder: Path, name: str) -> float:
    """Mean over tokens, both standardised as the student's targets were."""
    mean, std = (v.view(1, 1, -1, 1, 1).cpu() for v in (student.target_mean, student.target_std))
    said, true = ((load_stream(folder, which, "test")[:200].float() - mean) / std for which in (name, "generator"))
    return float(torch.cosine_similarity(said, true, dim=2).mean())


def load_stream(folder: Path, name: str, split: str) -> Tensor:
    path = folder / f"{name}_{split}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: not there; its tower failed above")
    return next(iter(load_file(path).values()))
