"""A picture file -> the frame that the model takes: upright, the middle square, 224 px."""
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MOST_PIXELS = 250_000_000      # a phone's 200 million and some; 0.75 GB once decoded
Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit is lower than a phone's, and ours is checked before any decoding


def read_photo(path: Path, px: int) -> np.ndarray:
    """uint8 RGB [3,px,px]. Raises ValueError, in one line, for a file that is missing, broken, huge or no picture."""
    if not path.is_file():
        raise ValueError(f"{path}: no such photo")
    try:
        image: Image.Image = Image.open(path)
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{path}: got {image.width} x {image.height} px, expected at most "
                             f"{MOST_PIXELS // 1_000_000} million; make it smaller")
        image.draft("RGB", (2 * px, 2 * px))  # a JPEG is decoded no larger than needed
        image = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a whole picture ({' '.join(str(error).split())})") from error
    square = ImageOps.fit(image, (px, px), Image.Resampling.BICUBIC)
    return np.asarray(square).transpose(2, 0, 1)
