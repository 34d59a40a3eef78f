"""Pictures of every mode are read as their 8-bit RGB twin, or refused with the file's name."""
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from infer.photos import read_photo
from records.images import decode_image, read_rgb, to_rgba
from scenes.sources.video import VideoSource

GREY = np.add.outer(np.arange(48), 3 * np.arange(64)).astype(np.uint8)          # [48,64]
COLOUR = np.stack([GREY, GREY.T.reshape(48, 64), 255 - GREY], -1)


def png(path, samples: np.ndarray, extra: bytes = b"") -> None:
    """A PNG of 16 bits a channel, which Pillow cannot write; extra: chunks before the pixels."""
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (struct.pack(">I", len(content)) + kind + content
                + struct.pack(">I", zlib.crc32(kind + content)))

    height, width, channels = samples.shape
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in samples)
    path.write_bytes(b"\x89PNG\r\n\x1a\n"
                     + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0))
                     + extra + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b""))


def wide(values: np.ndarray, scale: int) -> np.ndarray:
    return values.reshape(*GREY.shape, -1).astype(np.uint16) * scale


@pytest.mark.parametrize("scale", [257, 256])
@pytest.mark.parametrize("name", ["grey.png", "rgb.png", "rgba.png", "la.png", "little.tif",
                                  "big.tif"])
def test_16_bits_a_channel_are_the_8_bit_twin(tmp_path, name, scale):
    path, values = tmp_path / name, COLOUR if name.startswith("rgb") else GREY
    samples = wide(values, scale)
    if name in ("rgba.png", "la.png"):
        samples = np.concatenate([samples, np.full_like(samples[..., :1], 65535)], -1)
    if path.suffix == ".png":
        png(path, samples)
    else:
        order = "<u2" if name == "little.tif" else ">u2"
        Image.fromarray(samples[..., 0].astype(order)).save(path)
    twin = Image.fromarray(values).convert("RGB")
    assert np.array_equal(read_rgb(path), twin)
    twin.save(tmp_path / "twin.bmp")
    assert np.array_equal(read_photo(path, 32), read_photo(tmp_path / "twin.bmp", 32))


def test_a_folder_of_16_bit_pictures_gives_the_frames_of_its_twin(tmp_path):
    for folder in ("deep", "plain"):
        (tmp_path / folder).mkdir()
    png(tmp_path / "deep" / "0.png", wide(GREY, 257))
    Image.fromarray(GREY).save(tmp_path / "plain" / "0.png")
    deep, plain = (VideoSource(tmp_path / name, frames=1, size=32).clip(f"train/{name}_00000")
                   for name in ("deep", "plain"))
    assert np.array_equal(deep.frames, plain.frames)


def test_a_tiff_whose_zero_is_white_is_inverted(tmp_path):
    Image.fromarray(wide(GREY, 257)[..., 0]).save(tmp_path / "a.tif", tiffinfo={262: 0})
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "a.tif"))[..., 0], 255 - GREY)


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_32_bit_pixels_are_refused_with_the_file_s_name(tmp_path, kind):
    Image.fromarray(GREY.astype(kind)).save(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"deep\.tif: has 32-bit pixels"):
        read_rgb(tmp_path / "deep.tif")
    with pytest.raises(ValueError, match=r"deep\.tif: has 32-bit pixels"):
        read_photo(tmp_path / "deep.tif", 32)


def hidden(mode: str) -> Image.Image:
    """The left half is opaque, the right half clear, over colours that must not be seen."""
    image = Image.fromarray(np.concatenate([COLOUR, 255 - COLOUR], 1))
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (0, 0, 64, 48))
    image = image.convert({"LA": "L"}.get(mode, "RGB"))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", "png"), ("LA", "png"), ("RGBA", "tif"),
                                              ("RGBA", "webp")])
def test_what_is_transparent_is_white(tmp_path, mode, suffix):
    path = tmp_path / f"a.{suffix}"
    hidden(mode).save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    seen = np.asarray(read_rgb(path))
    assert (seen[:, 64:] == 255).all()
    assert np.array_equal(seen[:, :64], Image.fromarray(COLOUR).convert(mode[:-1]).convert("RGB"))


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    Image.new("RGBA", (4, 4), (100, 0, 200, 128)).save(tmp_path / "a.png")
    assert np.abs(np.asarray(read_rgb(tmp_path / "a.png"))[0, 0] - [177, 127, 227]).max() <= 1


def test_transparent_colours_of_palettes_and_of_plain_pictures_are_white(tmp_path):
    values = np.where(GREY > 90, 7, 200).astype(np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.png", transparency=7)
    Image.fromarray(np.stack([values] * 3, -1)).save(tmp_path / "rgb.png", transparency=(7, 7, 7))
    palette = Image.fromarray((GREY > 90).astype(np.uint8), "P")
    palette.putpalette([200, 200, 200, 7, 7, 7])
    palette.save(tmp_path / "palette.png", transparency=1)
    palette.save(tmp_path / "palette.gif", transparency=1)
    key = struct.pack(">H", 7 * 257)
    head = struct.pack(">I", 2) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    png(tmp_path / "deep.png", wide(values, 257), head)
    key *= 3
    head = struct.pack(">I", 6) + b"tRNS" + key + struct.pack(">I", zlib.crc32(b"tRNS" + key))
    png(tmp_path / "deep_rgb.png", wide(np.stack([values] * 3, -1), 257), head)
    for name in ("grey.png", "rgb.png", "palette.png", "palette.gif", "deep.png", "deep_rgb.png"):
        seen = np.asarray(read_rgb(tmp_path / name))
        assert np.array_equal(seen, np.stack([np.where(GREY > 90, 255, 200)] * 3, -1)), name


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr"])
def test_other_modes_are_what_pillow_makes_of_them(tmp_path, mode):
    image = Image.fromarray(COLOUR).convert(mode)
    image.save(tmp_path / "a.tif")
    assert np.array_equal(read_rgb(tmp_path / "a.tif"), image.convert("RGB"))


def test_textures_keep_their_transparency():
    stored = io.BytesIO()
    hidden("RGBA").save(stored, "png")
    assert np.asarray(to_rgba(decode_image(stored, "a.png"), "a.png"))[0, [0, 127], 3].tolist() == [
        255, 0]


def test_a_png_with_a_huge_text_is_refused_with_its_name(tmp_path):
    content = b"comment\0\0" + zlib.compress(bytes(4_000_000))
    text = (struct.pack(">I", len(content)) + b"zTXt" + content
            + struct.pack(">I", zlib.crc32(b"zTXt" + content)))
    png(tmp_path / "text.png", wide(GREY, 257), text)
    with pytest.raises(ValueError, match=r"text\.png: damaged or not an image"):
        read_rgb(tmp_path / "text.png")
    with pytest.raises(ValueError, match=r"text\.png: damaged or not an image"):
        VideoSource(tmp_path, frames=1, size=32).clip(f"train/{tmp_path.name}_00000")
