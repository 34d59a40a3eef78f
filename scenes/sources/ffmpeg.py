"""Frames of a video file through ffmpeg: when each is shown, and their pixels.

The frames are counted: a container's duration is that of its longest stream, absent in recordings
of browsers, and wrong after some edits.
"""
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_HDR = re.compile(r"Video: .*\b(smpte2084|arib-std-b67)\b")
_CUT = ("File ended prematurely", "partial file")  # said with exit code 0
_AGAIN = "(damaged, cut short or another format); check that it plays, or copy it again"


@dataclass(frozen=True)
class VideoFacts:
    times: np.ndarray    # [N] float64 s, at least one, ascending; 0 is the file's start
    end: float           # s, of the last frame
    square_pixels: bool
    hdr: str             # transfer characteristic: smpte2084 (PQ), arib-std-b67 (HLG), or ""

    @property
    def fps(self) -> float:
        """1 / the median time between two frames; infinite for a single one."""
        gaps = np.diff(self.times)
        return 1 / float(np.median(gaps)) if gaps.any() else float("inf")


def probe(path: Path) -> VideoFacts:
    """Reads all packets and decodes none. Raises ValueError naming a file that is no video."""
    done = _run(path, [], ["-c", "copy", "-xerror", "-f", "framecrc", "-"], "info")
    log = done.stderr.decode(errors="replace")
    if "matches no streams" in log:
        raise ValueError(f"{path}: holds no video stream; give a video")
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
        raise ValueError(f"{path}: not a readable video {_AGAIN}")
    numerator, denominator = map(int, facts["tb 0"].split("/"))
    times = np.array([time for time, _ in shown]) * numerator / denominator
    hdr = _HDR.search(log)
    return VideoFacts(times, times[-1] + shown[-1][1] * numerator / denominator,
                      facts.get("sar 0", "1/1") in ("1/1", "0/1"), hdr[1] if hdr else "")


def decode(path: Path, filters: str, size: int, count: int, seek: float = 0.0) -> np.ndarray:
    """[T,3,size,size] uint8: the `count` first frames that `filters` give, from `seek` seconds on.

    Raises ValueError if there are fewer.
    """
    done = _run(path, ["-ss", f"{seek:.4f}"],
                ["-vf", f"{filters},setsar=1", "-fps_mode", "passthrough", "-frames:v", str(count),
                 "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], "error")
    frames = np.frombuffer(done.stdout[:count * size * size * 3], np.uint8)
    if len(frames) < count * size * size * 3:
        raise ValueError(f"{path}: cannot be decoded at {seek:.1f} s {_AGAIN}")
    return frames.reshape(count, size, size, 3).transpose(0, 3, 1, 2).copy()


def _run(path: Path, before: list[str], after: list[str], level: str
         ) -> subprocess.CompletedProcess[bytes]:
    """ffmpeg on the video stream that is no cover picture. `file:`: 12:30.mp4 is no protocol."""
    import imageio_ffmpeg  # for its binary

    if not path.is_file():
        raise ValueError(f"{path}: no such video")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", "-nostdin", "-nostats",
               "-v", level, *before, "-i", f"file:{path}", "-map", "0:V:0", *after]
    return subprocess.run(command, capture_output=True)
