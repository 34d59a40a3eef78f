"""How fast rooms are rendered: all buffers of every frame, each worker process writing its own clip
files."""
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from records.results import Row
from scenes.rooms.source import RoomSource
from scenes.rooms.writer import render_folder

PILOT_ROOMS = 3  # a worker, to learn how many rooms fill the seconds


def render_rates(source: RoomSource, workers: Sequence[int], seconds: float,
                 folder: Path) -> Iterator[Row]:
    """One row for each number of workers, of about `seconds` together. The clips go to `folder` and
    are removed again.

    frames_per_s counts from the first process' start to the last clip; steady_frames_per_s from
    when every worker has finished its first clip to when the first of them has none left;
    workers_frames_per_s adds up each worker's own rate between its first clip and its last, whoever
    else was at work: short pilots end before the last worker begins.
    """
    each = seconds / (len(workers) + 1)
    pilot = _render(source, max(workers), PILOT_ROOMS * max(workers), folder)
    rate = max(pilot["steady_frames_per_s"], pilot["workers_frames_per_s"])
    frames_a_room = source.frames * source.clips_per_room
    for count in workers:
        rooms = max(PILOT_ROOMS * count,
                    round(0.8 * each * rate * count / max(workers) / frames_a_room))
        yield _render(source, count, rooms, folder)


def _render(source: RoomSource, workers: int, rooms: int, folder: Path) -> Row:
    source = replace(source, train=rooms)
    ids = source.ids("train")
    shutil.rmtree(folder, ignore_errors=True)
    began = time.time()
    render_folder(source, ids, folder, workers)
    seconds = time.time() - began
    files = [folder / f"{clip}.safetensors" for clip in ids]
    done, size = [file.stat().st_mtime for file in files], sum(file.stat().st_size
                                                               for file in files)
    shutil.rmtree(folder)
    return {
        "workers": workers, "rooms": rooms, "clips": len(ids), "frames": len(ids) * source.frames,
        "size_px": source.size, "buffers": "colour, depth, instances, normals", "seconds": seconds,
        "frames_per_s": len(ids) * source.frames / seconds,
        "steady_frames_per_s": source.frames * steady_rate(done, workers, source.clips_per_room),
        "workers_frames_per_s": source.frames * workers_rate(done, workers, source.clips_per_room),
        "mb_per_s": size / 1e6 / seconds
    }


def steady_rate(done: Sequence[float], workers: int, clips_a_room: int) -> float:
    """Clips a second while all workers were at work. done: when each clip was; worker w has rooms
    w, w + n, …"""
    own = _by_worker(done, workers, clips_a_room)
    start, end = max(min(times) for times in own), min(max(times) for times in own)
    return sum(start < at <= end for at in done) / (end - start) if end > start else 0.0


def workers_rate(done: Sequence[float], workers: int, clips_a_room: int) -> float:
    """Clips a second of each worker between its first and its last, added up."""
    return sum((len(times) - 1) / (max(times) - min(times))
               for times in _by_worker(done, workers, clips_a_room) if max(times) > min(times))


def _by_worker(done: Sequence[float], workers: int, clips_a_room: int) -> list[list[float]]:
    return [[done[i] for i in range(len(done)) if i // clips_a_room % workers == w]
            for w in range(workers)]
