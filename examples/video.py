"""Depth of a webcam or a video beside its frames: live in a window, or as an MP4.

    python video.py 0                    # the first webcam; on Windows its name in place of 0
    python video.py walk.mp4 -o depth.mp4

Needs this package with ffmpeg: pip install 'vega3d-edge[video]'.
"""
from __future__ import annotations

import argparse
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from infer.inputs import focal_of_square
from infer.model import SHIPPED, Model
from infer.photos import describe, pictures
from infer.pictures import resized
from infer.steady import Steady
from records.ffmpeg import VIDEOS, VideoWriter, middle_squares, probe

WEBCAMS = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"),
           "win32": ("dshow", "video={}")}


def webcam(name: str, px: int) -> Iterator[np.ndarray]:
    """The newest middle square, uint8 [3,px,px], whenever the last one was used."""
    import imageio_ffmpeg

    size, (kind, device) = 3 * px * px, WEBCAMS[sys.platform]
    squares = f"scale={px}:{px}:force_original_aspect_ratio=increase,crop={px}:{px}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-f", kind, "-i",
               device.format(name), "-vf", squares, "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    newest: queue.Queue[bytes] = queue.Queue(maxsize=1)

    def read() -> None:
        frame = bytes(size)
        while len(frame) == size and process.stdout:
            frame = process.stdout.read(size)
            with suppress(queue.Empty):
                newest.get_nowait()
            newest.put(frame)

    threading.Thread(target=read, daemon=True).start()
    try:
        while len(frame := newest.get()) == size:
            yield np.frombuffer(frame, np.uint8).reshape(px, px, 3).transpose(2, 0, 1)
        raise ValueError(f"webcam {name}: gives no picture; ffmpeg's reason is above")
    finally:
        process.kill()


class Window:
    """tkinter's, which Python brings; closing it ends the program."""

    def __init__(self) -> None:
        import tkinter

        self.root = tkinter.Tk()
        self.root.title("vega3d")
        self.root.protocol("WM_DELETE_WINDOW", self.root.quit)
        self.label = tkinter.Label(self.root)
        self.label.pack()

    def write(self, picture: np.ndarray) -> None:
        from PIL import Image, ImageTk

        self.shown = ImageTk.PhotoImage(Image.fromarray(picture))  # tkinter keeps no reference
        self.label.configure(image=self.shown)
        self.root.update()

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *error: object) -> None:
        self.root.destroy()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", help="a video file or a webcam")
    parser.add_argument("-o", "--out", type=Path, help="an MP4; without it a window")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="of vega3d export onnx")
    parser.add_argument("--focal", type=float, help="in px of the picture; else assumed")
    parser.add_argument("--no-steady", action="store_true", help="each frame's depth by itself")
    parser.add_argument("--frames", type=int, default=10**9, help="at most")
    given = parser.parse_args()
    try:
        print(show(given))
    except (ValueError, OSError) as error:
        sys.exit(f"video.py: {error}")


def show(given: argparse.Namespace) -> str:
    """Runs to the end of the video; returns a line about it."""
    model, path, fps, side = Model(given.model), Path(given.source), 30.0, 480
    live = not path.is_file() and path.suffix.lower() not in VIDEOS
    if not live:
        facts = probe(path)
        fps, side = min(facts.fps, 60.0), facts.shorter_px
    camera = focal_of_square(side, model.px, given.focal)
    focal = camera.px
    frames = webcam(given.source, model.px) if live else middle_squares(path, model.px, fps)
    filtered = dict if given.no_steady else Steady(focal, model.px)
    milliseconds = []
    with VideoWriter(given.out, fps) if given.out else Window() as out:
        for frame, _ in zip(frames, range(given.frames)):
            began = time.perf_counter()
            found = model(frame[None], focal)
            outputs = filtered({name: value[0] for name, value in found.items()})
            milliseconds.append(1000 * (time.perf_counter() - began))
            drawn = pictures(frame, outputs)
            out.write(np.concatenate([resized(drawn[name]) for name in ("view", "depth")], 1))
    return (f"{len(milliseconds)} frames, {np.median(milliseconds):.0f} ms each (median)"
            f"{describe(camera, model.px)}")


if __name__ == "__main__":
    main()
