"""Frames a second of rendering rooms at 224 px, all buffers, by worker processes that write their own files.

Usage: python bench/h200/render.py --out DIR [--seconds 40] [--workers 14 22 28] [--furniture PACK] [--scratch DIR]
Writes DIR/rendering_h200.json. Scratch clips go to /dev/shm where it has room, else /tmp, and are removed.
"""
import argparse
import os
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from bench.artefacts import absent
from bench.device import device_facts
from bench.rendering import render_rates
from records.results import Results, Row, save
from scenes.rooms import RoomSource

NEED_BYTES = 15e9  # free on the scratch disk: ten seconds at 2,000 frames/s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=40)
    parser.add_argument("--workers", type=int, nargs="+", default=[14, 22, 28])
    parser.add_argument("--furniture", type=Path)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--commit", default="")
    args = parser.parse_args()
    source = RoomSource(frames=9, clips_per_room=2, pack=args.furniture)  # the clips that pre-training renders
    env, rows = device_facts() | ({"commit": args.commit} if args.commit else {}), list[Row]()
    folder = Path(tempfile.mkdtemp(prefix="vega3d_render_", dir=args.scratch or _scratch()))
    try:
        env["renderer"] = source.renderer.device
        for row in render_rates(source, args.workers, args.seconds, folder / "clips"):
            rows.append(row)
            print(f"{row['workers']} workers: {row['frames_per_s']:.0f} frames/s, {row['steady_frames_per_s']:.0f} "
                  f"once all are at work, {row['mb_per_s']:.0f} MB/s", flush=True)
    except Exception as error:
        traceback.print_exc()
        rows.append(absent("rendering", " ".join(str(error).split())[:300], "see log"))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    command = "python bench/h200/render.py " + " ".join(sys.argv[1:])
    save(Results("rendering_h200", command, str(env["commit"]), env | {"cores": os.cpu_count()}, rows),
         args.out / "rendering_h200.json")


def _scratch() -> Path:
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and shutil.disk_usage(shm).free > NEED_BYTES else Path("/tmp")


if __name__ == "__main__":
    main()
