"""`vega3d distill run` and `vega3d distill heads`, and `distill run` as a console script of its
own."""
from dataclasses import replace
from pathlib import Path
from typing import Literal

import tyro

from distill.config import HeadTraining, RunConfig, ScenesConfig, load_config


def run(args: list[str]) -> None:
    """Train the teacher, distil the student, write a run folder. --config FILE.yaml gives the
    defaults of the rest; --tap auto: block, noise level and frame mode as `vega3d teacher search`
    chose them for the generator."""
    base = RunConfig()
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args):
            raise ValueError("--config: expected a YAML file after it")
        base = load_config(Path(args[at + 1]))
        args = args[:at] + args[at + 2:]
    if auto := "--tap" in args:
        at = args.index("--tap")
        if args[at + 1:at + 2] != ["auto"]:
            raise ValueError(
                "--tap: expected auto after it; one knob is --teacher.tap.block, --teacher.tap.k …")
        args = args[:at] + args[at + 2:]
    config = tyro.cli(RunConfig, default=base, args=args, prog="vega3d distill run",
                      description=run.__doc__)
    from distill.run import run as run_all  # after --help: torch and diffusers take seconds
    from teacher.probing.tap_search import chosen_tap

    if auto:
        teacher = config.teacher
        config = replace(config, teacher=replace(teacher,
                                                 tap=chosen_tap(teacher.generator, teacher.tap)))
    folder = run_all(config)
    print(f"run folder: {folder}\nnext: vega3d export trt --int8")


_ROOMS, _HEADS = ScenesConfig(), HeadTraining()


def heads(student: Path = Path("runs/latest/student"), scenes: ScenesConfig = _ROOMS,
          heads: HeadTraining = _HEADS, seed: int = 0, again: bool = False,
          device: Literal["auto", "cpu", "cuda"] = "auto") -> None:
    """Train what an app can draw (depth, normals, descriptors) on a finished student, from rendered
    rooms.

    Args:
        student: a folder with student.safetensors; heads.safetensors is written beside it
        scenes: the rooms to train and score on, rendered once into runs/cache
        heads: how long, and from where
        seed: of the training
        again: train again even if the student has heads
        device: cuda, cpu, or whichever there is
    """
    import torch

    from distill.clips import open_source
    from distill.heads import make_heads

    chosen = "cuda" if device == "auto" and torch.cuda.is_available() else device.replace(
        "auto", "cpu")
    source, _ = open_source(scenes, Path("runs/cache/clips"), render=True)
    row = make_heads(student, source, heads, seed, torch.device(chosen), again)
    for name, value in row.items():
        print(f"  {name:18} {value:.3f}" if isinstance(value, float) else f"  {name:18} {value}")
    print(f"heads: {student}/heads.safetensors")


VERBS = {"run": run, "heads": heads}
PARSES_ITSELF = {"run"}
