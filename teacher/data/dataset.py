"""Training examples: frames, features and targets, shuffled by (seed, epoch).

Small sets stay in memory (on the GPU where there is one) and are drawn frame by frame; larger ones
stream clip by clip, in constant memory.
"""
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy

import torch
from torch import Tensor

from scenes.clip import Clip, Shapes, Source, check_shapes, frames_of
from scenes.dense import dense_targets, patch_depth
from teacher.data.feature_store import FeatureStore
from teacher.training.processes import Processes

Example = dict[str, Tensor]  # every field [frames, ...]
CPU_BUDGET = 2 * 2**30       # bytes held in memory without a GPU
READERS = min(16, 2 * (os.cpu_count() or 1))  # threads


class Examples:
    """Fields of each frame: frames uint8 [3,H,W]; one per store, float16 [D,14,14].

    Of labelled clips also depth [56,56] m, int8 normals [3,56,56], uint8 classes [56,56],
    patch_depth [14,14] m; with `cameras` also pixel_depth float16 [H,W] m, intrinsics [3,3] and
    poses [4,4].
    """

    def __init__(self, source: Source, ids: Sequence[str], stores: dict[str, FeatureStore],
                 device: torch.device, cameras: bool = False, processes: Processes | None = None):
        """processes: those that make the same examples, each for itself, and share batches."""
        if not ids:
            raise ValueError("examples: no clips in this split; use more rooms or a longer video")
        self.source, self.ids, self.stores, self.device = source, list(ids), stores, device
        self.cameras, self.processes = cameras, processes or Processes(device)
        self.replay: tuple[int, float] = 0, 0.0
        self._shapes: Shapes | None = None  # of the first clip's fields
        first = self.load(self.ids[0])
        self._shapes = {k: tuple(v.shape) for k, v in first.items()}
        self.frames_per_clip = len(first["frames"])
        size = len(self.ids) * sum(v.nbytes for v in first.values())
        on_gpu = device.type == "cuda"
        budget = torch.cuda.mem_get_info(device)[0] * 3 // 4 if on_gpu else CPU_BUDGET
        fits = self.processes.all_agree(size < budget)  # the order of the examples depends on it
        self._all: Example | None = self._gather() if fits else None

    def __len__(self) -> int:
        return len(self.ids) * self.frames_per_clip

    def load(self, clip_id: str, fields: Collection[str] | None = None) -> Example:
        """One clip's fields on the CPU; `fields`: only frames and features, of these names.

        Raises ValueError if they are not of the first clip's shapes.
        """
        example = {name: store.get(clip_id) for name, store in self.stores.items()
                   if fields is None or name in fields}
        if fields is None:
            example |= self._clip_fields(self.source.clip(clip_id))
        else:
            example["frames"] = torch.from_numpy(frames_of(self.source, clip_id))
        if self._shapes is not None:
            found = {k: tuple(v.shape) for k, v in example.items()}
            first = {k: v for k, v in self._shapes.items() if fields is None or k in found}
            check_shapes(clip_id, found, self.ids[0], first)
        return example

    def _clip_fields(self, clip: Clip) -> Example:
        example = {"frames": torch.from_numpy(clip.frames)}
        if clip.depth is not None and clip.normals is not None and clip.instances is not None:
            example |= {k: torch.from_numpy(v) for k, v in vars(dense_targets(clip)).items()}
        if clip.depth is not None:
            example["patch_depth"] = torch.from_numpy(patch_depth(clip))
        return example | camera_fields(clip) if self.cameras else example

    def clips(self, start: int, stop: int) -> "Examples":
        """Those of the clips from `start` to `stop` alone; frames in memory are shared."""
        part = copy(self)
        part.ids = self.ids[start:stop]
        if self._all is not None:
            rows = slice(start * self.frames_per_clip, stop * self.frames_per_clip)
            part._all = {k: v[rows] for k, v in self._all.items()}
        return part

    def draw(self, uniform: Tensor) -> Tensor:
        """Numbers of clips, of a batch of uniform draws [B]; `replay`, (clips, share): a share of
        every batch, rounded down, is of the last of them."""
        clips, share = self.replay
        row = torch.arange(len(uniform) + 1, device=uniform.device) * share + 1e-6
        last = row[1:].floor() > row[:-1].floor()
        first = len(self.ids) - clips
        return torch.where(last, first + uniform * clips, uniform * first).long()

    def select(self, clips: Tensor, frames: Tensor, fields: Collection[str]) -> Example:
        """One frame of each of several clips, by numbers [B] on the device: those of `fields` that
        there are."""
        if self._all is not None:
            rows = clips * self.frames_per_clip + frames
            return {k: v[rows] for k, v in self._all.items() if k in fields}
        loaded = list(_prefetched(self.load, [self.ids[i] for i in clips.tolist()]))
        numbered = list(zip(loaded, frames.tolist(), strict=True))
        return {k: torch.stack([e[k][j] for e, j in numbered]).to(self.device)
                for k in loaded[0] if k in fields}

    def batches(self, batch: int, seed: int, epoch: int, skip: int = 0, part: slice | None = None,
                fields: Collection[str] | None = None) -> Iterator[Example]:
        """One epoch of shuffled batches on the device after the first `skip`, no short last one.

        part: of each batch, of `batch_frames(batch)`, is all that is read; fields: as in `load`.
        """
        draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        size = self.batch_frames(batch)
        start, stop, _ = (part or slice(size)).indices(size)
        if self._all is not None:
            order = torch.randperm(len(self), generator=draw).to(self.device)
            wanted = {k: v for k, v in self._all.items()
                      if fields is None or k in ("frames", *fields)}
            for i in range(skip * size, len(self) - size + 1, size):
                rows = order[i + start:i + stop]
                yield {k: v[rows] for k, v in wanted.items()}
            return
        per_step = size // self.frames_per_clip
        order = torch.randperm(len(self.ids), generator=draw)
        starts = range(0, len(order) - per_step + 1, per_step)
        groups = [order[i:i + per_step].tolist() for i in starts][skip:]
        first, last = start // self.frames_per_clip, -(-stop // self.frames_per_clip)
        cut = slice(start - first * self.frames_per_clip, stop - first * self.frames_per_clip)

        def load_part(group: list[int]) -> Example:
            clips = [self.load(self.ids[i], fields) for i in group[first:last]]
            example = {k: torch.cat([clip[k] for clip in clips])[cut] for k in clips[0]}
            cuda = self.device.type == "cuda"
            return {k: v.pin_memory() for k, v in example.items()} if cuda else example

        for example in _prefetched(load_part, groups):
            yield {k: v.to(self.device, non_blocking=True) for k, v in example.items()}

    def batch_frames(self, batch: int) -> int:
        """Frames of a batch: `batch`, or as many complete clips as it holds if they stream."""
        if self._all is not None:
            return batch
        return max(1, batch // self.frames_per_clip) * self.frames_per_clip

    def steps(self, batch: int) -> int:
        """Batches in an epoch; at least 1, or ValueError."""
        count = len(self) // self.batch_frames(batch)
        if not count:
            raise ValueError(f"examples: {len(self)} frames are fewer than one batch of {batch}; "
                             "lower the batch size")
        return count

    def in_order(self) -> Iterator[tuple[str, Example]]:
        """(clip id, its fields on the device), clip by clip."""
        if self._all is None:
            yield from self._read()
            return
        clips = {k: v.split(self.frames_per_clip) for k, v in self._all.items()}
        for i, clip_id in enumerate(self.ids):
            yield clip_id, {k: v[i] for k, v in clips.items()}

    def _read(self) -> Iterator[tuple[str, Example]]:
        for clip_id, example in zip(self.ids, _prefetched(self.load, self.ids), strict=True):
            yield clip_id, {k: v.to(self.device) for k, v in example.items()}

    def _gather(self) -> Example:
        gathered: Example = {}
        for i, (_, example) in enumerate(self._read()):
            rows = slice(i * self.frames_per_clip, (i + 1) * self.frames_per_clip)
            for name, value in example.items():
                if i == 0:
                    gathered[name] = value.new_empty(len(self), *value.shape[1:])
                gathered[name][rows] = value
        return gathered


def camera_fields(clip: Clip) -> Example:
    """pixel_depth (static_depth), intrinsics and poses of each frame; ValueError without."""
    static_depth = clip.static_depth
    if static_depth is None or clip.intrinsics is None or clip.poses is None:
        raise ValueError(f"clip {clip.id}: has no depth, intrinsics and poses; use rendered rooms "
                         "or an RGB-D recording")
    intrinsics = torch.from_numpy(clip.intrinsics).float()
    return {"pixel_depth": torch.from_numpy(static_depth).half(),
            "intrinsics": intrinsics.expand(len(clip.frames), 3, 3),
            "poses": torch.from_numpy(clip.poses).float()}


@torch.inference_mode()
def moments(examples: Examples, stream: Callable[[Example], Tensor]) -> tuple[Tensor, Tensor]:
    """`channel_moments` of a stream's tokens."""
    return channel_moments(stream(example) for _, example in examples.in_order())


def channel_moments(parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and deviation (floor 1e-4) per channel of all tokens [B,D,14,14]: two [D] on the CPU."""
    count, sums = 0, torch.zeros(())
    for part in parts:
        x = part.double().transpose(0, 1).flatten(1)                   # [D,B*196]
        count, sums = count + x.shape[1], sums.to(x) + torch.stack([x.sum(1), x.square().sum(1)])
    mean, square = (sums / count).cpu()
    return mean.float(), (square - mean.square()).clamp_min(0).sqrt().float().clamp_min(1e-4)


def _prefetched(load: Callable, keys: Sequence) -> Iterator[Example]:
    """load(key) of each key, in order, by a few threads: reading and hashing release the GIL."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting = [pool.submit(load, key) for key in keys[:2 * READERS]]
        for key in keys[2 * READERS:]:
            yield waiting.pop(0).result()
            waiting.append(pool.submit(load, key))
        while waiting:
            yield waiting.pop(0).result()
