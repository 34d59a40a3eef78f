"""Pictures of the user's: opened in one place, in few formats and of bounded size."""
import warnings
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from records.files import regular_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # Pillow's others start programs
MAX_PIXELS = 250_000_000  # a phone's 200 million fit; 0.75 GB once decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is below a phone's; ours is checked first


def read_image(path: Path, px: int | None = None) -> Image.Image:
    """The picture, upright and decoded, in its own mode; a JPEG not much larger than `px`.

    Raises ValueError naming a file that is damaged, too large, no regular file, or of a format
    other than FORMATS; OSError for a missing one.
    """
    with regular_file(path).open("rb") as file:
        return decode_image(file, str(path), px)


def decode_image(file: IO[bytes], name: str, px: int | None = None) -> Image.Image:
    """As `read_image`, of an open file called `name` in errors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            image = Image.open(file, formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise _TooLarge(f"{name}: got {image.width} x {image.height} px, expected at most "
                                f"{MAX_PIXELS // 1_000_000} million; make it smaller")
            if px:
                image.draft("RGB", (2 * px, 2 * px))
            ImageOps.exif_transpose(image, in_place=True)
            image.load()
            return image
    except (MemoryError, _TooLarge):
        raise
    except Exception as error:  # a decoder's errors are of many kinds
        reason = ("unknown format" if isinstance(error, UnidentifiedImageError)
                  else " ".join(str(error).split())[:200])
        raise ValueError(f"{name}: damaged or not an image ({reason}); formats that are read: "
                         f"{', '.join(FORMATS)}") from error


class _TooLarge(ValueError):
    pass
