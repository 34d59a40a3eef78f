"""Renders every PARTS-th of a distillation's rooms into WORK/clips: rooms.py WORK PACK [PART].

One process a GPU, each with workers of its own, which import this file again: above `main` nothing imports torch.
"""
import os
import sys
from dataclasses import replace
from pathlib import Path

from scenes.clip import SPLITS
from scenes.rendered import default_workers, render_folder


def main(work: Path, pack: Path, part: str = "0") -> None:
    """WORK/distill.yaml says which rooms."""
    from distill.clips import rooms_of
    from distill.config import load_config

    scenes = load_config(work / "distill.yaml").scenes
    source = rooms_of(replace(scenes, furniture=pack))
    ids = [clip_id for split in SPLITS for clip_id in source.ids(split)]
    folder = work / "clips" / source.key
    render_folder(source, ids[int(part)::int(os.environ.get("PARTS", "1"))], folder,
                  default_workers() if scenes.workers is None else scenes.workers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
