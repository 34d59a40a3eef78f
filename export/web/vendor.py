"""onnxruntime-web from npm: a pinned tarball, verified by its digest, cached for the user."""
import base64
import gzip
import hashlib
import shutil
import subprocess
import tarfile
import urllib.request
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory

from records.files import atomic_write, cache_folder, sha256

VERSION = "1.30.0"
TARBALL = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
# sha512, as npm writes it
INTEGRITY = ("q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZ"
             "ClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==")
FILES = {  # and the SHA-256 of each
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs":
        "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm":
        "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs":
        "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm":
        "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da"}
BACKENDS = {
    "wasm": {"script": "ort/ort.wasm.min.mjs", "glue": "ort/ort-wasm-simd-threaded.mjs",
             "wasm": "ort/ort-wasm-simd-threaded.wasm.gz"},
    "webgpu": {"script": "ort/ort.webgpu.min.mjs",
               "glue": "ort/ort-wasm-simd-threaded.asyncify.mjs",
               "wasm": "ort/ort-wasm-simd-threaded.asyncify.wasm.gz"}}
STORED = (*(f"{name}.gz" if name.endswith(".wasm") else name for name in FILES), "NOTICE")
NOTICE = f"""onnxruntime-web {VERSION} (npm), Copyright (c) Microsoft Corporation, MIT License:
https://github.com/microsoft/onnxruntime/blob/main/LICENSE
"""


def runtime(tarball: Path | None = None) -> Path:
    """A folder with FILES (WASM gzipped; the page unpacks it) and a NOTICE, checked at each call.
    tarball: npm's package."""
    folder = cache_folder() / f"onnxruntime-web-{VERSION}"
    damaged = _damaged(folder)
    if tarball is None and not damaged:
        return folder
    for path in filter(Path.is_file, damaged):
        print(f"{path}: damaged; it is made again")
    with TemporaryDirectory() as scratch:
        package = tarball or _download(Path(scratch))
        _check(package)
        with tarfile.open(package) as archive:
            for name, stored in zip(FILES, STORED, strict=False):
                member = archive.extractfile(f"package/dist/{name}")
                assert member is not None  # as the digest matched
                _store(folder / stored, member.read())
    _store(folder / "NOTICE", NOTICE.encode())
    return folder


def unpacked_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, of a .gz file unpacked."""
    if path.suffix != ".gz":
        return sha256(path)
    return hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest()


def _damaged(folder: Path) -> list[Path]:
    """Files that are missing or not of the pinned package."""
    digests = {**dict(zip(STORED, FILES.values(), strict=False)),
               "NOTICE": hashlib.sha256(NOTICE.encode()).hexdigest()}
    return [folder / name for name in STORED if not _has_digest(folder / name, digests[name])]


def _has_digest(path: Path, digest: str) -> bool:
    try:
        return unpacked_sha256(path) == digest
    except (OSError, EOFError, zlib.error):  # missing, or a damaged .gz
        return False


def _store(path: Path, content: bytes) -> None:
    with atomic_write(path) as scratch:
        gzipped = path.suffix == ".gz"
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
