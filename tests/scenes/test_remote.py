"""Clips and features at URLs: memory://, file:// and an S3 server of this machine."""
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

import vega3d
from distill.clips import open_source
from distill.config import ScenesConfig
from distill.run import open_distill_run
from scenes.clip import ClipFolder, check_alike, save_clip
from scenes.sources.remote import RemoteClips, url_of
from teacher.data import feature_store
from tests.fakes import FakeRooms

IDS = ("train/000", "train/001", "test/000")


@pytest.fixture
def clips(tmp_path) -> Path:
    for clip_id in IDS:
        save_clip(FakeRooms().clip(clip_id), tmp_path / "clips" / f"{clip_id}.safetensors")
    (tmp_path / "clips" / "train" / ".hidden.safetensors").write_bytes(b"of a file manager")
    return tmp_path / "clips"


@pytest.fixture
def memory(clips) -> str:
    files = fsspec.filesystem("memory")
    files.put(f"{clips}/", "/clips/", recursive=True)
    yield "memory://clips"
    files.rm("/clips", recursive=True)


@pytest.fixture(scope="module")
def bucket() -> str:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "a-secret"),
                            ("AWS_DEFAULT_REGION", "us-east-1"), ("NO_PROXY", host),
                            ("AWS_ENDPOINT_URL", f"http://{host}:{port}")):
            patch.setenv(name, value)
        yield "s3://bucket"
    server.stop()


def upload(folder: Path, url: str) -> str:
    files = fsspec.filesystem(url.partition(":")[0], skip_instance_cache=True)
    files.put(f"{folder}/", f"{url}/", recursive=True)
    return url


@pytest.fixture
def s3(clips, bucket) -> str:
    return upload(clips, f"{bucket}/clips")


def open_path(path: str, cache: Path):
    return open_source(ScenesConfig(path=Path(path)), cache, render=False)


@pytest.mark.parametrize("kind", ["memory", "s3", "file"])
def test_clips_at_a_url_are_those_of_the_folder(kind, clips, tmp_path, request):
    url = f"file://{clips}" if kind == "file" else request.getfixturevalue(kind)
    source, key = open_path(url, tmp_path)
    local = ClipFolder(clips)
    assert [source.ids(split) for split in ("train", "val", "test")] == [
        ["train/000", "train/001"], [], ["test/000"]]
    for clip_id in IDS:
        found, wanted = source.clip(clip_id), local.clip(clip_id)
        assert (found.id, found.objects, found.room_size) == (
            wanted.id, wanted.objects, wanted.room_size)
        assert np.array_equal(found.depth, wanted.depth)
        assert np.array_equal(source.frames_of(clip_id), wanted.frames)
        assert source.shapes(clip_id) == local.shapes(clip_id)
    check_alike(source, IDS)
    assert open_path(url, tmp_path)[1] == key and "a-secret" not in str(source.facts())


def test_a_long_header_is_read_in_two_steps(memory, monkeypatch):
    monkeypatch.setattr("scenes.sources.remote.HEADER_BYTES", 16)
    assert RemoteClips(memory).frames_of("train/000").dtype == np.uint8


@pytest.mark.parametrize("damage", [b"", b"short", b"\xff" * 400, b"\x10" + bytes(7) + b"{" * 16])
def test_a_damaged_clip_is_named(memory, damage):
    fsspec.filesystem("memory").pipe("/clips/train/001.safetensors", damage)
    source = RemoteClips(memory)
    for read in (source.clip, source.frames_of, source.shapes):
        with pytest.raises(ValueError, match=r"^memory://clips/train/001\.safetensors: cannot be"):
            read("train/001")


@pytest.mark.parametrize(("url", "why"), [
    ("memory://nothing", "memory://nothing: "), ("ftq://a/b", "ftq://a/b: cannot be read"),
    ("s3://key:a-secret@bucket/clips", "s3://…: a URL with credentials"),
    ("https://host/clips?token=a-secret", "https://…: a URL with credentials")])
def test_another_url_is_refused_in_one_line_without_credentials(tmp_path, url, why):
    with pytest.raises(ValueError, match=why) as refused:
        open_path(url, tmp_path)
    assert "a-secret" not in str(refused.value)


def test_a_url_is_one_although_a_path_loses_a_slash(tmp_path, monkeypatch):
    assert url_of(Path("s3://bucket/clips")) == "s3://bucket/clips"
    assert url_of(Path("file:///data/clips")) == "file:///data/clips"
    assert url_of(Path("simplecache::s3://b/c")) == "simplecache::s3://b/c"
    assert url_of(Path("12:30.mp4")) is None and url_of(Path("/data/clips")) is None
    monkeypatch.chdir(tmp_path)
    os.makedirs("s3:/clips/train")
    save_clip(FakeRooms().clip("train/000"), Path("s3:/clips/train/000.safetensors"))
    assert isinstance(open_path("s3://clips", tmp_path)[0], ClipFolder)  # a folder that is there


@pytest.fixture
def run(clips, tiny_wan, tmp_path, capsys) -> Callable[..., str]:
    """`vega3d distill run` with some arguments: the last line of stderr, if it ended with 2."""
    small = (f"--scenes.path {clips} --runs {tmp_path}/runs --teacher.generator {tiny_wan} --device"
             " cpu --teacher.tap.block 1 --teacher.tap.seeds 1 --teacher.heads.epochs 1 --teacher"
             ".heads.batch 2 --teacher.heads.width 8 --student.model.depth 1 --student.init scratch"
             " --student.batch 2 --heads.steps 2 --heads.batch 2").split()

    def distill(*arguments: str) -> str:
        try:
            vega3d.main(["distill", "run", *small, *arguments])
        except SystemExit as stopped:
            assert stopped.code == 2
            return capsys.readouterr().err
        return ""

    return distill


def test_features_at_a_url_give_the_student_of_the_local_ones(run, bucket, tmp_path, monkeypatch):
    runs, url = tmp_path / "runs", f"{bucket}/features"
    assert not run("--name", "local")
    upload(runs / "local/features", url)
    monkeypatch.setattr(feature_store, "_extract", lambda *_: pytest.fail("extracted again"))
    assert not run("--name", "remote", "--features", url)
    assert not (runs / "remote/features").exists()
    for file in ("student.safetensors", "heads.safetensors"):
        assert (runs / "remote/student" / file).read_bytes() == (
            runs / "local/student" / file).read_bytes()
    store = open_distill_run(runs / "remote").stores["generative"]
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    stored = f"{url}/{store.folder.name}/train/001.safetensors"
    content = files.cat_file(stored)
    files.pipe_file(stored, content[:-1] + bytes([content[-1] ^ 1]))
    assert f"{stored}: damaged" in run("--name", "damaged", "--features", url)
    files.rm(stored)
    assert f"{store.folder.name}: lacks 1 clips, such as train/001" in run(
        "--name", "lacking", "--features", url)


def test_a_url_without_the_run_s_features_is_one_line_and_leaves_no_run(run, s3, tmp_path):
    for url, why in (("s3://bucket/nothing", "no feature store of this teacher and these clips"),
                     (s3, "no feature store of this teacher"), ("s3://none/features", "none/feat"),
                     ("gs://bucket/features", "pip install 'vega3d-edge[remote]'"),
                     (str(tmp_path / "none"), "none: no such file or folder")):
        error = run("--features", url)
        assert why in error and error.count("\n") == 1
        assert not (tmp_path / "runs").exists()
    assert "--runs s3://bucket/runs: runs are written to local" in run("--runs", "s3://bucket/runs")
