"""onnxruntime-web from npm: a pinned tarball, verified by its digest, cached for the user."""
import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from records.files import atomic_write, cache_folder

VERSION = "1.30.0"
TARBALL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
# sha512, as npm writes it
INTEGRITY = ("q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZ"
             "ClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==")
FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm",
         "ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs",
         "ort-wasm-simd-threaded.asyncify.wasm")
BACKENDS = {
    "wasm": {"script": "ort/ort.wasm.min.mjs", "glue": "ort/ort-wasm-simd-threaded.mjs",
             "wasm": "ort/ort-wasm-simd-threaded.wasm.gz"},
    "webgpu": {"script": "ort/ort.webgpu.min.mjs",
               "glue": "ort/ort-wasm-simd-threaded.asyncify.mjs",
               "wasm": "ort/ort-wasm-simd-threaded.asyncify.wasm.gz"}}
NOTICE = f"""onnxruntime-web {VERSION} (npm), Copyright (c) Microsoft Corporation, MIT License:
https://github.com/microsoft/onnxruntime/blob/main/LICENSE
"""


def runtime(tarball: Path | None = None) -> Path:
    """A folder with FILES (WASM gzipped; the page unpacks it) and a NOTICE. tarball: npm's package.

    Raises ValueError if npm cannot be reached, or if the package is not the pinned one.
    """
    folder = cache_folder() / f"onnxruntime-web-{VERSION}"
    if (folder / "NOTICE").is_file() and tarball is None:
        return folder
    with TemporaryDirectory() as scratch:
        package = tarball or _download(Path(scratch))
        _check(package)
        with tarfile.open(package) as archive:
            for name in FILES:
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None  # as the digest matched
                _store(folder, name, member.read())
    with atomic_write(folder / "NOTICE") as notice:
        notice.write_text(NOTICE)
    return folder


def _store(folder: Path, name: str, content: bytes) -> None:
    gzipped = name.endswith(".wasm")
    with atomic_write(folder / (f"{name}.gz" if gzipped else name)) as scratch:
        scratch.write_bytes(gzip.compress(content, 9, mtime=0) if gzipped else content)


def _check(package: Path) -> None:
    if not package.is_file():
        raise ValueError(f"{package}: no such file; leave out --ort to fetch it from npm")
    with package.open("rb") as file:
        actual = base64.b64encode(hashlib.file_digest(file, "sha512").digest()).decode()
    if actual != INTEGRITY:
        raise ValueError(f"{package}: is not onnxruntime-web {VERSION} (sha512 differs); get it "
                         f"with: npm pack onnxruntime-web@{VERSION}")


def _download(folder: Path) -> Path:
    """By npm if installed, which knows the user's registry and proxy; else from npmjs.org."""
    if npm := shutil.which("npm"):
        command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--silent", "--pack-destination"]
        if subprocess.run([*command, str(folder)], capture_output=True).returncode == 0:
            return next(folder.glob("*.tgz"))
    path = folder / "package.tgz"
    try:
        with urllib.request.urlopen(TARBALL, timeout=60) as response, path.open("wb") as file:
            shutil.copyfileobj(response, file)
    except OSError as error:  # a URLError too
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"export web: npm cannot be reached ({reason}); on another machine run: npm pack "
            f"onnxruntime-web@{VERSION}, and pass the file here with --ort FILE.tgz") from error
    return path
