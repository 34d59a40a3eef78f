"""Renders every PARTS-th of a distillation's rooms into WORK/clips: rooms.py WORK PACK [PART].

One process a GPU, each with workers of its own, which import this file again: it must not import torch.
"""
import os
import sys
from pathlib import Path

import yaml

from scenes.clip import SPLITS
from scenes.rendered import default_workers, render_folder
from scenes.rooms import RoomSource


def main(work: Path, pack: Path, part: str = "0") -> None:
    """WORK/distill.yaml says which rooms."""
    scenes = yaml.safe_load((work / "distill.yaml").read_text())["scenes"]
    workers = scenes.pop("workers", None)
    source = RoomSource(**scenes, pack=pack)
    ids = [clip_id for split in SPLITS for clip_id in source.ids(split)]
    folder = work / "clips" / source.key
    render_folder(source, ids[int(part)::int(os.environ.get("PARTS", "1"))], folder,
                  default_workers() if workers is None else workers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
