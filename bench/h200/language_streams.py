"""Where language.py's second streams come from: the stores of semantic encoder, generator and VAE, and students."""
import argparse
import json
import os
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from language_tables import DROPPED_IN, PREPARED, SPLITS, say
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from export.session import OnnxModel
from records.files import beside
from scenes.clip import ClipFolder
from student.vit import load_student
from teacher.backbones import RGBPatches
from teacher.features import FeatureStore, fill
from teacher.lessons import READERS, load_rooms, stack
from teacher.semantic import SemanticEncoder
from teacher.wan import Tap, VAELatents, load_wan

STORED = ("semantic", "generator", "vae_latents")
SPEAKERS = min(32, len(os.sched_getaffinity(0)))  # clips that an exported file is asked about at once, a thread each


def fill_streams(args: argparse.Namespace, folder: Path) -> None:
    """Whatever is missing of: semantic, generator and VAE features of the rooms' clips, from the stores (filled where
    they lack some), the pixels, and what the student and its exported files say. `--streams` names some of them."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(4)  # many small copies, on a machine that is busy
    source, wan = ClipFolder(args.clips), Tap(block=args.block, k=args.k, seeds=args.noise_seeds)
    makers: dict[str, Callable[[], Any]] = {
        "semantic": lambda: SemanticEncoder().to(device), "generator": lambda: load_wan(args.generator, wan).to(device),
        "vae_latents": lambda: VAELatents(load_wan(args.generator, wan).to(device)), "rgb": RGBPatches}
    makers = {name: make for name, make in makers.items() if name in ("semantic", *args.features)}
    files = dict(one.split("=", 1) for one in args.onnx)
    if args.student is not None:
        makers |= {name: lambda name=name: Speaker(args.student, name, files.get(name)).to(device)
                   for name in (f"{DROPPED_IN}_fp32", *files)}
    for name, make in makers.items():
        missing = [split for split in (("test",) if name in files else PREPARED if name in STORED else SPLITS)
                   if (folder / f"rooms_{split}.safetensors").is_file()
                   and not (folder / f"{name}_{split}.safetensors").is_file()]
        if not missing or name not in (args.streams or makers):
            continue
        try:
            tower = make()
            for split in missing:
                _fill(args, folder, source, device, name, split, tower)
        except Exception:
            say(f"{name}: no features:\n{traceback.format_exc()}")


class Speaker(nn.Module):
    """The student, or a file exported from it, in the generator's units."""

    def __init__(self, student: Path, name: str, file: str | None):
        super().__init__()
        self.student = load_student(student)
        self.session = OnnxModel(Path(file), optimise=name.endswith("cpu")) if file else None

    def features(self, frames: Tensor) -> Tensor:
        """frames [B,T,3,H,W] in [0,1] -> [B,T,D,14,14]"""
        x = frames.flatten(0, 1)
        said = torch.from_numpy(self.session(x.cpu().numpy())).to(x.device) if self.session else self.student(x)
        return self.student.destandardise(said.float()).unflatten(0, frames.shape[:2])


@torch.inference_mode()
def _fill(args: argparse.Namespace, folder: Path, source: ClipFolder, device: torch.device, name: str, split: str,
          tower: Any) -> None:
    """FOLDER/NAME_SPLIT.safetensors: [N,T,D,14,14], float16; pixels as uint8."""
    rooms = load_rooms(folder / f"rooms_{split}.safetensors")
    if name in STORED:
        store = FeatureStore(args.features_at, tower.spec, json.loads((args.clips / "scenes.json").read_text())["key"])
        fill(store, tower, source, [r.id for r in rooms], device)
        stream = stack(store, rooms)
    else:
        def said(frames: Tensor) -> Tensor:
            y = tower.features(frames[None].to(device).float() / 255)[0]                       # [T,D,14,14]
            return ((y * 255).round().byte() if name == "rgb" else y.half()).cpu()

        file = isinstance(tower, Speaker) and tower.session is not None
        with ThreadPoolExecutor(READERS) as readers, ThreadPoolExecutor(SPEAKERS if file else 1) as speakers:
            frames = readers.map(lambda room: torch.from_numpy(source.frames_of(room.id)), rooms)
            stream = torch.stack([*(speakers.map if file else map)(said, frames)])
    with beside(folder / f"{name}_{split}.safetensors") as scratch:
        save_file({name: stream.contiguous()}, scratch)
    say(f"{name}, {split}: {'x'.join(map(str, stream.shape))}{_likeness(folder, name, split, tower, stream)}")


def _likeness(folder: Path, name: str, split: str, tower: Any, stream: Tensor) -> str:
    """How close a student comes, over the tokens of a few rooms, both sides standardised as its targets were."""
    if not isinstance(tower, Speaker) or not (folder / f"generator_{split}.safetensors").is_file():
        return ""
    mean, std = (v.view(1, 1, -1, 1, 1).cpu() for v in (tower.student.target_mean, tower.student.target_std))
    said, true = ((x[:100].float() - mean) / std for x in (stream, load_stream(folder, "generator", split)))
    return f", cosine to the generator {torch.cosine_similarity(said, true, dim=2).mean():.3f}"


def load_stream(folder: Path, name: str, split: str, patience: float = 0.0) -> Tensor:
    """A filled stream; waits `patience` seconds for it to come."""
    return next(iter(load_file(awaited(folder / f"{name}_{split}.safetensors", patience)).values()))


def awaited(path: Path, patience: float) -> Path:
    """The path, as soon as there is such a file. Raises ValueError if it does not come within `patience` seconds."""
    until = time.monotonic() + patience
    while not path.is_file():
        if time.monotonic() >= until:
            raise ValueError(f"{path}: not there; what makes it failed above")
        time.sleep(0.2)
    return path
