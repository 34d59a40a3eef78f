"""Clips at a URL that fsspec reads, such as s3://BUCKET/CLIPS. Read only; listed once."""
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from records.files import MAX_JSON, parse_json
from scenes.clip import SPLITS, Clip, Shapes, Split, clip_of

HEADER_BYTES = 2**16  # read at first: more than most headers have
_URL = re.compile(r"([a-z][a-z0-9+.:-]+):/+", re.IGNORECASE)
_CLIP = re.compile(rf"({'|'.join(SPLITS)})/[^./][^/]*\.safetensors$")


def url_of(path: Path) -> str | None:
    """The URL that a path stands for, which has lost a slash as such; None for another path."""
    if not _URL.match(text := str(path)):
        return None
    return _URL.sub(r"\1://", text).replace("file://", "file:///")


class RemoteClips:
    """As scenes.clip.ClipFolder. Credentials are those of the environment, never of the URL."""

    def __init__(self, url: str):
        if "@" in url or "?" in url:
            raise ValueError(f"{_URL.match(url)[0]}…: a URL with credentials would be written into "  # type: ignore[index]
                             "the run; leave them to the environment, such as AWS_ACCESS_KEY_ID")
        self.url = url.rstrip("/")
        with self._reading("a folder of clips"):
            import fsspec

            self._files, top = fsspec.core.url_to_fs(self.url)
            found = self._files.find(top, detail=True)
        self._clips = {}  # by id: the path, and what identifies the content
        for path, facts in sorted(found.items()):
            name = path.removeprefix(top).lstrip("/")
            if _CLIP.match(name):
                times = (str(facts[k]) for k in ("ETag", "mtime", "LastModified", "created")
                         if k in facts)
                self._clips[name.removesuffix(".safetensors")] = (
                    path, facts["size"], next(times, ""))
        if not self._clips:
            raise ValueError(f"{self.url}: holds no clips (SPLIT/ID.safetensors)")

    def ids(self, split: Split) -> list[str]:
        return [i for i in self._clips if i.startswith(f"{split}/")]

    def facts(self) -> list[tuple[str, int, str]]:
        """URL, bytes, and ETag or time of every clip: what identifies them without reading them."""
        return [(f"{self.url}/{i}", size, tag) for i, (_, size, tag) in self._clips.items()]

    def clip(self, clip_id: str) -> Clip:
        with self._reading("a complete clip", clip_id):
            content = self._bytes(clip_id)
            header = parse_json(content[8:8 + _header_size(content)].decode())
            return clip_of(load(content), header["__metadata__"])

    def frames_of(self, clip_id: str) -> np.ndarray:
        """`clip(clip_id).frames` without reading the rest, which is four fifths of the file."""
        with self._reading("a complete clip", clip_id):
            header, start = self._header(clip_id)
            frames = header["frames"]
            begin, end = frames["data_offsets"]
            pixels = bytearray(self._bytes(clip_id, start + begin, start + end))
            return np.frombuffer(pixels, np.uint8).reshape(frames["shape"])

    def shapes(self, clip_id: str) -> Shapes:
        """Of the arrays of a clip, from the file's header."""
        with self._reading("a complete clip", clip_id):
            header, _ = self._header(clip_id)
            return {name: tuple(entry["shape"]) for name, entry in header.items()
                    if name != "__metadata__"}

    def _header(self, clip_id: str) -> tuple[dict[str, Any], int]:
        """A safetensors file's header, and the byte at which its arrays begin."""
        content = self._bytes(clip_id, 0, HEADER_BYTES)
        start = 8 + _header_size(content)
        if start > len(content):
            content = self._bytes(clip_id, 0, start)
        return parse_json(content[8:start].decode()), start

    def _bytes(self, clip_id: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._files.cat_file(self._clips[clip_id][0], start=start, end=end)

    @contextmanager
    def _reading(self, expected: str, clip_id: str = "") -> Iterator[None]:
        """Errors of the network and of decoding become one ValueError."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # each file system has its own
            url = f"{self.url}/{clip_id}.safetensors" if clip_id else self.url
            remedy = "check the address, the network and the credentials of the environment"
            if isinstance(error, ImportError):
                remedy = "pip install 'vega3d-edge[remote]'"
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise ValueError(f"{url}: cannot be read as {expected} ({reason}); {remedy}") from error


def _header_size(content: bytes) -> int:
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > MAX_JSON:
        raise ValueError("no safetensors file")
    return size
