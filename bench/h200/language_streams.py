"""Where language.py's second streams come from: the stores of semantic encoder, generator and VAE, and students."""
import argparse
import json
import os
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from language_tables import DROPPED_IN, PREPARED, SPLITS, say
from safetensors.torch import load_file, save_file
from torch import Tensor

from export.session import OnnxModel
from records.files import beside
from scenes.clip import ClipFolder
from student.vit import load_student
from teacher.features import FeatureStore, fill
from teacher.lessons import READERS, load_rooms, stack
from teacher.semantic import SemanticEncoder
from teacher.wan import Tap, VAELatents, load_wan

THREADS = min(16, len(os.sched_getaffinity(0)))  # of an exported file


def fill_streams(args: argparse.Namespace, folder: Path) -> None:
    """Semantic, generator and VAE features of the rooms' clips, from the stores (filled where they lack some)."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(4)  # many small copies, on a machine that is busy
    source = ClipFolder(args.clips)
    key = json.loads((args.clips / "scenes.json").read_text())["key"]

    def wan() -> Any:
        return load_wan(args.generator, Tap(block=args.block, k=args.k, seeds=args.noise_seeds)).to(device)

    towers: dict[str, Any] = {"semantic": lambda: SemanticEncoder().to(device)}
    towers |= {n: o for n, o in {"generator": wan, "vae_latents": lambda: VAELatents(wan())}.items()
               if n in args.features}
    for name, open_tower in towers.items():
        for split in PREPARED:
            path = folder / f"{name}_{split}.safetensors"
            if path.is_file() or not (folder / f"rooms_{split}.safetensors").is_file():
                continue
            try:
                rooms, tower = load_rooms(folder / f"rooms_{split}.safetensors"), open_tower()
                store = FeatureStore(args.features_at, tower.spec, key)
                fill(store, tower, source, [r.id for r in rooms], device)
                with beside(path) as scratch:
                    save_file({name: stack(store, rooms)}, scratch)
            except Exception:
                say(f"{name}: no features:\n{traceback.format_exc()}")
    if args.student is not None:
        try:
            _student(args, folder, source, device)
        except Exception:
            say(f"student: no features:\n{traceback.format_exc()}")


@torch.inference_mode()
def _student(args: argparse.Namespace, folder: Path, source: ClipFolder, device: torch.device) -> None:
    """What the student and its exported files say of the clips, in the generator's units; only itself of `train`."""
    student = load_student(args.student).to(device)
    files = dict(one.split("=", 1) for one in args.onnx)
    speakers: dict[str, Any] = {f"{DROPPED_IN}_fp32": lambda x: student(x.to(device)).float()}
    for name, file in files.items():
        session = OnnxModel(Path(file), optimise=name.endswith("cpu"), threads=THREADS)
        speakers[name] = lambda x, session=session: torch.from_numpy(session(x.numpy())).float().to(device)
    for name, speak in speakers.items():
        for split in SPLITS if name not in files else ("test",):
            path = folder / f"{name}_{split}.safetensors"
            if path.is_file():
                continue
            rooms = load_rooms(folder / f"rooms_{split}.safetensors")
            with ThreadPoolExecutor(READERS) as readers:
                frames = readers.map(lambda room: torch.from_numpy(source.clip(room.id).frames), rooms)
                said = [student.destandardise(speak(x.float() / 255)).half() for x in frames]
            stream = torch.stack(said).cpu().contiguous()                                      # [N,T,D,14,14]
            true = load_stream(folder, "generator", split)
            mean, std = (v.view(1, 1, -1, 1, 1).cpu() for v in (student.target_mean, student.target_std))
            cosine = torch.cosine_similarity((stream - mean) / std, (true - mean) / std, dim=2).mean()
            say(f"{name}, {split}: cosine to the generator {cosine:.3f}")
            with beside(path) as scratch:
                save_file({name: stream}, scratch)


def load_stream(folder: Path, name: str, split: str) -> Tensor:
    path = folder / f"{name}_{split}.safetensors"
    if not path.is_file():
        raise ValueError(f"{path}: not there; its tower failed above")
    return next(iter(load_file(path).values()))
