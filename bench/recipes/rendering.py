"""Frames a second of rendering rooms: all buffers, worker processes that write their own files.

    python -m bench.recipes.rendering OUT.json [--workers 14 22 28] [--furniture PACK]

Clips go to --scratch (a fast disk with 15 GB free, such as /dev/shm) and are removed again.
"""
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from tyro.conf import Positional

from bench.device import device_facts
from records.results import Row, measured, save
from scenes.rooms.source import RoomSource
from scenes.rooms.writer import render_folder
from vega3d import run_recipe

PILOT_ROOMS = 3  # a worker, to learn how many rooms fill the seconds


def render_rates(source: RoomSource, workers: Sequence[int], seconds: float,
                 folder: Path) -> Iterator[Row]:
    """One row for each number of workers, of about `seconds` together. `folder` is emptied.
    frames_per_s counts from the first process's start to the last clip; the others are by the
    functions below."""
    each = seconds / (len(workers) + 1)
    pilot = _render(source, max(workers), PILOT_ROOMS * max(workers), folder)
    rate = max(pilot["steady_frames_per_s"], pilot["workers_frames_per_s"])
    frames_a_room = source.frames * source.clips_per_room
    for count in workers:
        affordable = 0.8 * each * rate * count / max(workers) / frames_a_room
        yield _render(source, count, max(PILOT_ROOMS * count, round(affordable)), folder)


def _render(source: RoomSource, workers: int, rooms: int, folder: Path) -> Row:
    source = replace(source, train=rooms)
    ids = source.ids("train")
    shutil.rmtree(folder, ignore_errors=True)
    began = time.time()
    render_folder(source, ids, folder, workers)
    seconds = time.time() - began
    stats = [(folder / f"{clip}.safetensors").stat() for clip in ids]
    finished, size = [stat.st_mtime for stat in stats], sum(stat.st_size for stat in stats)
    shutil.rmtree(folder)
    frames, clips = source.frames, source.clips_per_room
    return {
        "workers": workers, "rooms": rooms, "clips": len(ids), "frames": len(ids) * frames,
        "size_px": source.size, "buffers": "colour, depth, instances, normals", "seconds": seconds,
        "frames_per_s": len(ids) * frames / seconds,
        "steady_frames_per_s": frames * steady_rate(finished, workers, clips),
        "workers_frames_per_s": frames * workers_rate(finished, workers, clips),
        "mb_per_s": size / 1e6 / seconds
    }


def steady_rate(finished: Sequence[float], workers: int, clips_a_room: int) -> float:
    """Clips a second from every worker's first finished clip to the first worker's last."""
    times = _by_worker(finished, workers, clips_a_room)
    start, end = max(map(min, times)), min(map(max, times))
    return sum(start < at <= end for at in finished) / (end - start) if end > start else 0.0


def workers_rate(finished: Sequence[float], workers: int, clips_a_room: int) -> float:
    """Clips a second of each worker between its first and its last, summed."""
    return sum((len(times) - 1) / (max(times) - min(times))
               for times in _by_worker(finished, workers, clips_a_room) if max(times) > min(times))


def _by_worker(finished: Sequence[float], workers: int, clips_a_room: int) -> list[list[float]]:
    """Worker w of n renders rooms w, w + n, ..."""
    times: list[list[float]] = [[] for _ in range(workers)]
    for i, at in enumerate(finished):
        times[i // clips_a_room % workers].append(at)
    return times


def main(out: Positional[Path], seconds: float = 40, workers: tuple[int, ...] = (14, 22, 28),
         furniture: Path | None = None, scratch: Path | None = None) -> None:
    """seconds: of all together. furniture: a pack of `vega3d scenes pack`."""
    # the clips that pre-training renders
    source, rows = RoomSource(frames=9, clips_per_room=2, pack=furniture), list[Row]()
    env = device_facts() | {"renderer": source.renderer.device}
    with TemporaryDirectory(dir=scratch) as folder:
        for row in render_rates(source, workers, seconds, Path(folder) / "clips"):
            rows.append(row)
            print(f"{row['workers']} workers: {row['frames_per_s']:.0f} frames/s, "
                  f"{row['steady_frames_per_s']:.0f} while all render, {row['mb_per_s']:.0f} MB/s")
    save(measured(out.stem, rows, env), out)


if __name__ == "__main__":
    run_recipe(main)
