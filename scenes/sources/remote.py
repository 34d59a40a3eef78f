"""Folders at a URL that fsspec reads, such as s3://BUCKET/CLIPS. Read only; listed once."""
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load

from records.files import MAX_JSON, parse_json
from scenes.clip import SPLITS, Clip, Shapes, Split, clip_of

_SUFFIX = ".safetensors"
HEADER_BYTES = 2**16  # read at first: more than most headers have
_URL = re.compile(r"([a-z][a-z0-9+.:-]+):/+", re.IGNORECASE)
_CLIP = re.compile(rf"({'|'.join(SPLITS)})/[^./][^/]*\.safetensors$")


def url_of(path: Path) -> str | None:
    """The URL that a path stands for, which has lost a slash as such; None for another path."""
    if not _URL.match(text := str(path)):
        return None
    return _URL.sub(r"\1://", text).replace("file://", "file:///")


class RemoteFolder:
    """The files below a URL. Credentials are those of the environment, never of the URL."""

    def __init__(self, url: str, expected: str):
        if "@" in url or "?" in url:
            raise ValueError(f"{_URL.match(url)[0]}…: a URL with credentials would be written into "  # type: ignore[index]
                             "the run; leave them to the environment, such as AWS_ACCESS_KEY_ID")
        self.url = url.rstrip("/")
        # by name: path, bytes, and the ETag or time that identifies the content
        self.found: dict[str, tuple[str, int, str]] = {}
        with self.reading(expected):
            import fsspec

            self._files, top = fsspec.core.url_to_fs(self.url)
            for path, facts in sorted(self._files.find(top, detail=True).items()):
                times = (str(facts[k]) for k in ("ETag", "mtime", "LastModified", "created")
                         if k in facts)
                self.found[path.removeprefix(top).lstrip("/")] = (
                    path, facts["size"], next(times, ""))

    def read(self, name: str, start: int | None = None, end: int | None = None) -> bytes:
        return self._files.cat_file(self.found[name][0], start=start, end=end)

    @contextmanager
    def reading(self, expected: str, name: str = "") -> Iterator[None]:
        """Errors of the network and of decoding become one ValueError."""
        try:
            yield
        except MemoryError:
            raise
        except Exception as error:  # each file system has its own
            url = f"{self.url}/{name}".rstrip("/")
            remedy = "check the address, the network and the credentials of the environment"
            if isinstance(error, ImportError):
                remedy = "pip install 'vega3d-edge[remote]'"
            reason = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise ValueError(f"{url}: cannot be read as {expected} ({reason}); {remedy}") from error


class RemoteClips(RemoteFolder):
    """As scenes.clip.ClipFolder."""

    def __init__(self, url: str):
        super().__init__(url, "a folder of clips")
        self.found = {name: file for name, file in self.found.items() if _CLIP.match(name)}
        if not self.found:
            raise ValueError(f"{self.url}: holds no clips (SPLIT/ID.safetensors)")

    def ids(self, split: Split) -> list[str]:
        return [name.removesuffix(_SUFFIX) for name in self.found if name.startswith(f"{split}/")]

    def facts(self) -> list[tuple[str, int, str]]:
        """URL, bytes, and ETag or time of every clip: what identifies them without reading them."""
        return [(f"{self.url}/{name.removesuffix(_SUFFIX)}", size, tag)
                for name, (_, size, tag) in self.found.items()]

    def clip(self, clip_id: str) -> Clip:
        with self.reading("a complete clip", name := clip_id + _SUFFIX):
            content = self.read(name)
            header = parse_json(content[8:8 + _header_size(content)].decode())
            return clip_of(load(content), header["__metadata__"])

    def frames_of(self, clip_id: str) -> np.ndarray:
        """`clip(clip_id).frames` without reading the rest, which is four fifths of the file."""
        with self.reading("a complete clip", name := clip_id + _SUFFIX):
            header, start = self._header(name)
            frames = header["frames"]
            begin, end = frames["data_offsets"]
            pixels = bytearray(self.read(name, start + begin, start + end))
            return np.frombuffer(pixels, np.uint8).reshape(frames["shape"])

    def shapes(self, clip_id: str) -> Shapes:
        """Of the arrays of a clip, from the file's header."""
        with self.reading("a complete clip", name := clip_id + _SUFFIX):
            header, _ = self._header(name)
            return {name: tuple(entry["shape"]) for name, entry in header.items()
                    if name != "__metadata__"}

    def _header(self, name: str) -> tuple[dict[str, Any], int]:
        """A safetensors file's header, and the byte at which its arrays begin."""
        content = self.read(name, 0, HEADER_BYTES)
        start = 8 + _header_size(content)
        if start > len(content):
            content = self.read(name, 0, start)
        return parse_json(content[8:start].decode()), start


def _header_size(content: bytes) -> int:
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > MAX_JSON:
        raise ValueError("no safetensors file")
    return size
