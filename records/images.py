"""Pictures of the user's: opened in one place, in few formats and of bounded size."""
from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from records.files import Unreadable, regular_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's others start programs
IMAGES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}  # suffixes that are read of a folder
FILM_MM = math.hypot(36, 24)
MAX_PIXELS = 250_000_000  # a phone's 200 million fit; 0.75 GB once decoded
_PHOTOMETRIC = 262  # a tag of TIFF
_EXIF, _WIDTH, _HEIGHT, _FILM_FOCAL = 0x8769, 0xA002, 0xA003, 0xA405  # tags of EXIF
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is below a phone's; ours is checked first


def read_rgb(path: Path, px: int | None = None) -> Image.Image:
    """The picture, upright. Raises what read_image and to_rgb raise."""
    return to_rgb(read_image(path, px), str(path))


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB, what is transparent on white. Errors: to_rgba's."""
    if image.mode in ("RGB", "L", "P", "CMYK", "YCbCr") and not image.has_transparency_data:
        return image.convert("RGB")
    colours = to_rgba(image, name)
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), colours).convert("RGB")


def to_rgba(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGBA: of 16 bits a channel the upper eight. Unreadable, with `name`, for 32 bits."""
    if image.mode in ("I", "F"):
        raise Unreadable(f"{name}: has 32-bit pixels, of which none is known to be white; save it "
                         "with 8 or 16 bits a channel")
    clear = image.info.get("transparency")
    if image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0:  # a TIFF whose 0 is white
            values = ~values
        colours = Image.fromarray((values >> 8).astype(np.uint8)).convert("RGBA")
        colours.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
        return colours
    if isinstance(clear, tuple) and max(clear) > 255:  # of a PNG with 16 bits a channel
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")


def read_image(path: Path, px: int | None = None) -> Image.Image:
    """The picture, upright and decoded, in its own mode; a JPEG not much larger than `px`.
    Unreadable for what is damaged, too large, no regular file, or not of FORMATS."""
    with regular_file(path).open("rb") as file:
        return decode_image(file, str(path), px)


def size_and_focal(path: Path) -> tuple[int, int, float | None]:
    """(width, height) in px as stored, and the focal length in px by EXIF's FocalLengthIn35mmFilm.

    None without it, and for a picture that is cut out of the one that the camera took. 35 mm film
    has a diagonal of 43.3 mm. For a picture that `read_image` reads.
    """
    with warnings.catch_warnings(), regular_file(path).open("rb") as file:
        warnings.simplefilter("ignore")
        image = Image.open(file, formats=FORMATS)
        try:
            exif = image.getexif().get_ifd(_EXIF)
            film, *taken = (float(exif.get(tag, 0)) for tag in (_FILM_FOCAL, _WIDTH, _HEIGHT))
        except Exception:  # damaged EXIF, of which there are many kinds
            film, taken = 0.0, []
    width, height = image.size
    shape = max(width, height) / min(width, height)
    cut = all(taken) and taken and abs(max(taken) / min(taken) / shape - 1) > 0.02
    plausible = 5 <= film <= 2000 and not cut  # 0: unknown, by the standard
    return width, height, film * math.hypot(width, height) / FILM_MM if plausible else None


def decode_image(file: IO[bytes], name: str, px: int | None = None) -> Image.Image:
    """As `read_image`, of an open file; `name` for errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise Unreadable(f"{name}: got {image.width} x {image.height} px, expected at most "
                                f"{MAX_PIXELS // 1_000_000} million; make it smaller")
            if px:
                image.draft("RGB", (2 * px, 2 * px))
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return image
    except (MemoryError, Unreadable):
        raise
    except Exception as error:  # a decoder's errors are of many kinds
        reason = ("unknown format" if isinstance(error, UnidentifiedImageError)
                  else " ".join(str(error).split())[:200])
        raise Unreadable(f"{name}: damaged or not an image ({reason}); formats that are read: "
                         f"{', '.join(FORMATS)}") from error
