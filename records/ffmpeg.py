"""Videos through ffmpeg: when each frame is shown, their pixels, and a video of new frames.

Frames are counted: durations of containers are absent or wrong in many.
"""
from __future__ import annotations

import errno
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from records.files import Unreadable, regular_file

VIDEOS = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"}
EXTRA = "a video needs imageio-ffmpeg: pip install 'vega3d-edge[video]'"
_HDR = re.compile(r"Video: .*\b(smpte2084|arib-std-b67)\b")
_SIZE = re.compile(r"Video: .*?\b(\d{2,5})x(\d{2,5})\b")
_TEN_BITS = re.compile(r"Video: .*?\b(?:[a-z]+[0-9]*p|gray|p0)(1[0-6])(?:le|be)\b")
_ROTATED = re.compile(r"(?i)display ?matrix: rotation of (-?\d+)")
_CUT = ("File ended prematurely", "partial file")  # said with exit code 0
_AGAIN = "(damaged, cut short or another format); check that it plays, or copy it again"
_RAW = ("-f", "rawvideo", "-pix_fmt", "rgb24")


@dataclass(frozen=True)
class VideoFacts:
    times: np.ndarray    # [N] float64 s, at least one, ascending; 0 is the file's start
    end: float           # s, of the last frame
    square_pixels: bool
    hdr: str             # transfer characteristic: smpte2084 (PQ), arib-std-b67 (HLG), or ""
    shorter_px: int = 0  # of the two sides, in rows; 0: not said
    bits: int = 8        # of a colour
    rotation: int = 0    # degrees that the player turns it by

    @property
    def fps(self) -> float:
        """1 / the median time between two frames, or to a single one's end; may be infinite."""
        gaps = np.diff(self.times, append=self.end if len(self.times) == 1 else [])
        return 1 / float(np.median(gaps[gaps > 0])) if gaps.any() else float("inf")

    @property
    def notes(self) -> list[str]:
        """What is not read as it is stored."""
        found = []
        if self.hdr:
            found.append(f"is HDR ({self.hdr}) and is read without tone mapping: colours are paler "
                         "than on a screen; convert it to SDR for the right ones")
        elif self.bits > 8:
            found.append(f"has {self.bits} bits a colour, of which the upper 8 are read")
        if self.rotation % 360:
            found.append(f"is stored turned by {self.rotation} degrees and is read upright")
        return found


def probe(path: Path) -> VideoFacts:
    """Reads all packets and decodes none. Raises Unreadable naming a file that is no video."""
    done = subprocess.run(_command(path, [], ["-c", "copy", "-xerror", "-f", "framecrc", "-"],
                                   "info"), capture_output=True)
    log = done.stderr.decode(errors="replace")
    if "matches no streams" in log:
        raise Unreadable(f"{path}: holds no video stream; give a video")
    packets: list[tuple[int, int]] = []  # when it is shown, for how long
    facts: dict[str, str] = {}
    for line in done.stdout.decode().splitlines():
        if line.startswith("#"):  # such as "#tb 0: 1/15360"
            name, _, value = line[1:].partition(": ")
            facts[name] = value
        else:
            packets.append((int(line.split(",")[2]), int(line.split(",")[3])))
    shown = sorted(packet for packet in packets if packet[0] >= 0)  # others are cut off
    if done.returncode or not shown or any(sign in log for sign in _CUT):
        raise Unreadable(f"{path}: not a readable video {_AGAIN}")
    numerator, denominator = map(int, facts["tb 0"].split("/"))
    times = np.array([time for time, _ in shown]) * numerator / denominator
    hdr, size, bits, turned = (found.search(log) for found in (_HDR, _SIZE, _TEN_BITS, _ROTATED))
    return VideoFacts(times, times[-1] + shown[-1][1] * numerator / denominator,
                      facts.get("sar 0", "1/1") in ("1/1", "0/1"), hdr[1] if hdr else "",
                      min(int(size[1]), int(size[2])) if size else 0, int(bits[1]) if bits else 8,
                      int(turned[1]) if turned else 0)


def decode(path: Path, filters: str, size: int, count: int, seek: float = 0.0) -> np.ndarray:
    """[T,3,size,size] uint8: the `count` first frames that `filters` give, from `seek` s on."""
    after = [*_filtered(filters), "-frames:v", str(count), *_RAW, "-"]
    done = subprocess.run(_command(path, ["-ss", f"{seek:.4f}"], after), capture_output=True)
    frames = np.frombuffer(done.stdout[:count * size * size * 3], np.uint8)
    if len(frames) < count * size * size * 3:
        raise Unreadable(f"{path}: cannot be decoded at {seek:.1f} s {_AGAIN}")
    return frames.reshape(count, size, size, 3).transpose(0, 3, 1, 2).copy()


def middle_squares(path: Path, size: int, fps: float) -> Iterator[np.ndarray]:
    """The middle square of every frame at `fps`, uint8 [3,size,size]; one is held at a time."""
    filters = (f"fps={fps:.9g},scale=iw*sar:ih,scale={size}:{size}:"
               f"force_original_aspect_ratio=increase,crop={size}:{size}")
    command = _command(path, ["-xerror"], [*_filtered(filters), *_RAW, "-"])
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    count = 0
    try:
        while len(content := process.stdout.read(size * size * 3)) == size * size * 3:
            yield np.frombuffer(content, np.uint8).reshape(size, size, 3).transpose(2, 0, 1)
            count += 1
        if process.wait() or not count:
            raise Unreadable(f"{path}: cannot be decoded after frame {count} {_AGAIN}")
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


class VideoWriter:
    """An H.264 video of uint8 frames [h,w,3] through `write`; a context manager, which raises
    OSError at its end if ffmpeg could not write all of it."""

    def __init__(self, path: Path, fps: float):
        self.path, self.fps = path, fps
        self._process: subprocess.Popen[bytes] | None = None  # from the first frame on

    def __enter__(self) -> VideoWriter:
        return self

    def write(self, frame: np.ndarray) -> None:
        if self._process is None:
            height, width = frame.shape[:2]
            self._process = subprocess.Popen(
                [program(), "-v", "error", *_RAW, "-s", f"{width}x{height}", "-r",
                 f"{self.fps:.9g}", "-i", "-", "-c:v", "libx264", "-crf", "15", "-pix_fmt",
                 "yuv420p", "-vf", "scale=ceil(iw/16)*16:ceil(ih/16)*16", "-y", str(self.path)],
                stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # the end says why
            self._process.stdin.write(frame.tobytes())

    def __exit__(self, kind: object, *error: object) -> None:
        if (process := self._process) is None:
            return
        if kind:
            process.kill()
        log = process.communicate()[1].decode(errors="replace").strip()
        if process.returncode and not kind:
            reason = log.rpartition(": ")[2] or f"ffmpeg ended with {process.returncode}"
            raise OSError(errno.EIO, reason, str(self.path))


def _filtered(filters: str) -> list[str]:
    return ["-vf", f"{filters},setsar=1", "-fps_mode", "passthrough"]


def _command(path: Path, before: list[str], after: list[str], level: str = "error") -> list[str]:
    """ffmpeg on the video stream that is no cover picture. `file:`: 12:30.mp4 is no protocol."""
    regular_file(path)
    return [program(), "-hide_banner", "-nostdin", "-nostats", "-v", level, *before,
            "-i", f"file:{path}", "-map", "0:V:0", *after]


def program() -> str:
    """Raises ValueError without one."""
    try:
        import imageio_ffmpeg  # for its binary

        found = imageio_ffmpeg.get_ffmpeg_exe()
    except ModuleNotFoundError as error:
        raise ValueError(EXTRA) from error
    except RuntimeError as error:  # its package for this platform has no binary
        raise ValueError(f"a video needs ffmpeg: {error}") from error
    if not shutil.which(found):
        raise ValueError(f"a video needs ffmpeg: {found} (IMAGEIO_FFMPEG_EXE) is no program")
    return found
