"""[MODEL.onnx] PHOTO|FOLDER|VIDEO…, and which focal length a photo's depth is computed with."""
import sys

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from infer import inputs, photos
from infer.inputs import focal_of_photo, split_arguments
from infer.photos import read_photo
from records.images import size_and_focal
from tests.infer.models import photo, pooling_model, run_infer

FILM = np.hypot(36, 24)  # mm


@pytest.fixture(autouse=True)
def trusted(monkeypatch):
    monkeypatch.setenv("VEGA3D_TRUST_ONNX", "1")  # no process for each model's first run


def with_exif(path, film: int, taken: tuple[int, int] | None = None, size=(400, 300)):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = film
    if taken:
        exif.get_ifd(0x8769).update({0xA002: taken[0], 0xA003: taken[1]})
    return photo(path, size, exif=exif)


def test_the_focal_length_is_that_of_the_middle_square_at_the_models_size(tmp_path):
    path = photo(tmp_path / "a.png")
    given = focal_of_photo(path, 224, 300.0)
    assert given.px == pytest.approx(224) and given.source == "--focal"  # 300 px of 300
    exif = focal_of_photo(with_exif(tmp_path / "b.jpg", 26), 224, None)
    assert exif.px == pytest.approx(26 * 500 / FILM * 224 / 300) and exif.source == "EXIF"
    large = focal_of_photo(with_exif(tmp_path / "c.jpg", 26, size=(1600, 1200)), 224, None)
    assert large.px == pytest.approx(exif.px)  # the same camera, more pixels
    tall = focal_of_photo(with_exif(tmp_path / "d.jpg", 26, size=(300, 400)), 224, None)
    assert tall.px == pytest.approx(exif.px)
    assumed = focal_of_photo(path, 224, None)
    assert assumed.px == 224 and "assumed: 53 degrees" in assumed.source


@pytest.mark.parametrize(("film", "taken"), [(0, None), (65535, None), (26, (4000, 2000))])
def test_a_focal_length_that_cannot_be_the_pictures_is_not_taken_from_exif(film, taken, tmp_path):
    path = with_exif(tmp_path / "a.jpg", film, taken)  # unknown, absurd, of another crop
    assert size_and_focal(path) == (400, 300, None)
    assert "assumed" in focal_of_photo(path, 224, None).source
    scaled = with_exif(tmp_path / "b.jpg", 26, (4000, 3000))
    assert focal_of_photo(scaled, 224, None).source == "EXIF"


def test_damaged_exif_is_no_error(tmp_path):
    path = photo(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x69\x87\x04\0")
    assert size_and_focal(path)[2] is None


def test_depth_is_times_focal_over_the_canonical_one(tmp_path, capsys):
    picture = photo(tmp_path / "a.png")
    depths = {}
    for name, canonical, options in (("plain", None, ()), ("none", None, ("--focal", 600)),
                                     ("wide", "112", ("--focal", 300)),
                                     ("tele", "112", ("--focal", 600)), ("assumed", "112", ())):
        model = pooling_model(tmp_path / f"{name}.onnx", canonical)
        code, line = run_infer(capsys, model, picture, "-o", tmp_path / name, *options)
        assert code == 0, line
        depths[name] = np.load(tmp_path / name / "a_depth.npy")
        assert ("focal length" in line) == (canonical is not None)
        assert ("assumed" in line) == (name == "assumed")
    assert np.array_equal(depths["plain"], depths["none"])   # metres for every camera
    assert np.allclose(depths["wide"], 2 * depths["plain"])  # 224 px of 224
    assert np.allclose(depths["tele"], 4 * depths["plain"])
    assert np.allclose(depths["assumed"], 2 * depths["plain"])
    written = np.asarray(Image.open(tmp_path / "tele" / "a_depth_mm.png"))
    assert written.dtype == np.uint16
    assert np.abs(written - 1000 * depths["tele"]).max() <= 0.5 + 1e-2


def test_a_focal_length_in_millimetres_is_noticed(tmp_path, capsys):
    path = photo(tmp_path / "a.png", (400, 300))
    assert focal_of_photo(path, 224, 30.0).px and focal_of_photo(path, 224, 6000.0).px
    for focal, degrees in (("26", "160"), ("6001", "3")):
        code, line = run_infer(capsys, path, "--focal", focal, "-o", tmp_path / "out")
        assert code == 2 and len(line.splitlines()) == 1, line
        assert f"{focal} px is {degrees} degrees" in line and "expected 30 to 6000" in line


def test_what_is_damaged_among_others_is_named_and_the_others_are_done(tmp_path, capsys):
    model, folder, out = pooling_model(tmp_path / "m.onnx"), tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    good = photo(folder / "b.png").read_bytes()
    photo(folder / "e.png", (200, 100))
    (folder / "a.png").write_bytes(good[:900])
    (folder / "c.mp4").write_bytes(b"no video")
    (folder / "d.jpg").symlink_to("gone.jpg")
    code, printed = run_infer(capsys, model, folder, "-o", out)
    *named, last = printed.splitlines()
    assert code == 2 and "3 of 5 photos and videos failed" in last
    for line, start in zip(named, ("a.png: damaged or not an image", "c.mp4: not a readable video",
                                   "d.jpg: No such file"), strict=True):
        assert line.startswith(f"vega3d: {folder}/{start}")
    depths = {path.name: np.load(path) for path in out.glob("*_depth.npy")}
    assert depths.keys() == {"b_depth.npy", "e_depth.npy"}
    for name in depths:  # 1 m + red, which grows to the right
        wide = np.asarray(read_photo(folder / f"{name[0]}.png", 224))[0]
        expected = 1 + 5 * wide.reshape(56, 4, 56, 4).mean((1, 3)) / 255
        assert np.abs(depths[name][0] - expected).max() < 1e-4
    (folder / "c.mp4").unlink()
    (folder / "d.jpg").unlink()
    (folder / "a.png").write_bytes(good)  # copied again: the same command does all
    code, printed = run_infer(capsys, model, folder, "-o", out)
    assert code == 0 and len(printed.splitlines()) == 3
    assert np.array_equal(np.load(out / "a_depth.npy"), np.load(out / "b_depth.npy"))


def test_a_focal_length_that_fits_some_is_used_for_these(tmp_path, capsys):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, side in (("a", 300), ("b", 20), ("c", 200)):
        photo(folder / f"{name}.png", (side, side))
    model = pooling_model(tmp_path / "m.onnx", "112")
    code, printed = run_infer(capsys, model, folder, "--focal", 600, "-o", out)
    named, last = printed.splitlines()
    assert code == 2 and named.startswith(f"vega3d: {folder}/b.png: --focal: 600 px is 2 degrees")
    assert "1 of 3 photos and videos failed" in last
    wide, tele = (np.load(out / f"{name}_depth.npy").max() for name in "ac")
    assert tele == pytest.approx(1.5 * wide, rel=0.01)
    assert not list(out.glob("b_*"))


def test_a_photo_that_does_not_fit_into_memory_is_named(tmp_path, capsys, monkeypatch):
    def read(path, px):
        if path.name == "a.png":
            raise MemoryError
        return read_photo(path, px)

    monkeypatch.setattr(photos, "read_photo", read)
    given = [photo(tmp_path / name) for name in ("a.png", "b.png")]
    code, printed = run_infer(capsys, pooling_model(tmp_path / "m.onnx"), *given, "-o",
                              tmp_path / "out")
    assert code == 2 and f"{given[0]}: out of memory" in printed and "1 of 2" in printed
    assert (tmp_path / "out" / "b_depth.npy").is_file()


@pytest.mark.parametrize(("change", "options", "why"), [
    ("no package", (), "pip install 'vega3d-edge[video]'"), ("no binary", (), "No ffmpeg exe"),
    ("gone", (), "/gone (IMAGEIO_FFMPEG_EXE) is no program"),
    ("file", (), "b_depth_mm: exists and is no folder"),
    ("mine", (), "mine.png: exists and was not written by this command"),
    ("no depth", (), "b.mp4: "), ("no depth", ("--ply", ), "--ply: "),
    ("no descriptors", ("--matches", ), "--matches: "),
    ("drawn", ("--matches", ), "a_c_matches.png: exists and was not written by this command")])
def test_what_is_known_before_the_first_photo_is_said_before_anything_is_written(
        change, options, why, tmp_path, capsys, monkeypatch):
    outputs = ("depth", "descriptors")
    model = pooling_model(tmp_path / "m.onnx", outputs=[
        name for name in outputs if change != f"no {name}"])
    given, out = [photo(tmp_path / "a.png"), photo(tmp_path / "c.png")], tmp_path / "out"
    if not options:
        given.insert(1, tmp_path / "b.mp4")
        given[1].write_bytes(b"")
    users = {"file": "b_depth_mm", "mine": "b_depth_mm/mine.png", "drawn": "a_c_matches.png"}
    if change in users:
        (out / users[change]).parent.mkdir(parents=True)
        (out / users[change]).write_bytes(b"mine")
    elif change == "no package":
        monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    elif change == "no binary":
        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", no_binary)
    elif change == "gone":
        monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/gone")
    code, line = run_infer(capsys, model, *given, *options, "-o", out)
    assert code == 2 and why in line and len(line.splitlines()) == 1, line
    written = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert written == ({users[change]} if change in users else set())


def no_binary():
    raise RuntimeError("No ffmpeg exe could be found. Install ffmpeg on your system")


def test_an_error_of_the_output_folder_is_not_one_of_a_photo(tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device", str(tmp_path / "out"))

    model = pooling_model(tmp_path / "m.onnx")
    photos_given = [photo(tmp_path / name) for name in ("a.png", "b.png")]
    monkeypatch.setattr(photos, "_write", full)
    code, line = run_infer(capsys, model, *photos_given, "-o", tmp_path / "out")
    assert code == 2 and "No space left" in line and len(line.splitlines()) == 1, line


def test_a_folder_that_cannot_be_made_is_said_before_a_photo_is_read(tmp_path, capsys):
    cut, good = tmp_path / "a.png", photo(tmp_path / "b.png")
    cut.write_bytes(b"no photo")
    (tmp_path / "file").touch()
    code, line = run_infer(capsys, pooling_model(tmp_path / "m.onnx"), cut, good, "-o",
                           tmp_path / "file" / "out")
    assert code == 2 and line == f"vega3d: {tmp_path}/file/out: Not a directory\n"


def test_matches_of_a_damaged_photo_are_not_written(tmp_path, capsys):
    model, cut = pooling_model(tmp_path / "m.onnx"), tmp_path / "b.png"
    cut.write_bytes(photo(tmp_path / "a.png").read_bytes()[:900])
    code, printed = run_infer(capsys, model, tmp_path / "a.png", cut, "--matches", "-o",
                              tmp_path / "out")
    assert code == 2 and "b.png: damaged" in printed and "1 of 2" in printed
    assert not list((tmp_path / "out").glob("*matches*"))


@pytest.mark.parametrize("focal", ["0", "-5", "nan", "inf"])
def test_a_focal_length_of_nothing_is_refused(focal, tmp_path, capsys):
    code, line = run_infer(capsys, photo(tmp_path / "a.png"), "--focal", focal,
                           "-o", tmp_path / "out")
    assert code == 2 and "--focal" in line and len(line.splitlines()) == 1, line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("canonical", ["0", "-1", "true", "wide", "[1]", "1e9"])
def test_a_canonical_focal_length_that_is_none_is_refused(canonical, tmp_path, capsys):
    model = pooling_model(tmp_path / "m.onnx", canonical)
    code, line = run_infer(capsys, model, photo(tmp_path / "a.png"), "-o", tmp_path / "out")
    assert code == 2 and "canonical_focal" in line and len(line.splitlines()) == 1, line


def test_without_a_model_the_shipped_one_is_taken(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("VEGA3D_TRUST_ONNX")
    code, line = run_infer(capsys, photo(tmp_path / "a.png"), "-o", tmp_path / "out")
    assert code == 0 and "depth" in line, line
    assert np.load(tmp_path / "out" / "a_normals.npy").shape[0] == 3
    monkeypatch.setattr(inputs, "SHIPPED", tmp_path / "gone.onnx")
    code, line = run_infer(capsys, tmp_path / "a.png", "-o", tmp_path / "out")
    assert code == 2 and "gone.onnx is not in this installation" in line


def test_a_folder_is_all_its_photos_and_videos_by_name(tmp_path, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("b.jpg", "a.png", "a.jpg"):
        photo(folder / name)
    photo(tmp_path / "z.png")
    (folder / "a.txt").write_text("notes")
    (folder / "c.mp4").write_bytes(b"")
    model, found = split_arguments([tmp_path / "m.onnx", folder, tmp_path / "z.png"])
    assert model.name == "m.onnx"
    assert "left out 1 other files, such as a.txt" in capsys.readouterr().err
    assert [(each.name, each.is_video) for each in found] == [
        ("a_jpg", False), ("a_png", False), ("b", False), ("c", True), ("z", False)]
    for given, why in (([tmp_path / "m.onnx"], "got no photo"), ([tmp_path / "empty"], "neither"),
                       ([tmp_path / "m.onnx", tmp_path / "n.onnx"], "two models")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match=why):
            split_arguments(given)
