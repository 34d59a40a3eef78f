"""What comes before the model: a camera's frame as the student wants it. Timed apart, for it is the app's to choose."""
import numpy as np
from PIL import Image

from bench.timing import Plan, Subject, measure, summary
from records.results import Row

CAMERA = (480, 640)  # height, width, px


def to_frame(photo: np.ndarray, size: int = 224) -> np.ndarray:
    """uint8 [H,W,3] -> the middle square, float32 [1,3,size,size] in [0,1]."""
    h, w = photo.shape[:2]
    side = min(h, w)
    top, left = (h - side) // 2, (w - side) // 2
    square = Image.fromarray(photo[top:top + side, left:left + side])
    small = np.asarray(square.resize((size, size), Image.Resampling.BILINEAR), np.float32)
    return np.ascontiguousarray(small.transpose(2, 0, 1)[None]) / 255


def preprocess_row(plan: Plan) -> Row:
    """One camera frame, made ready on the CPU."""
    photo = np.random.default_rng(0).integers(0, 256, (*CAMERA, 3), np.uint8)
    subject = Subject({}, lambda: to_frame(photo))
    measure([subject], plan)
    return {"kind": "preprocess", "artefact": f"{CAMERA[1]}x{CAMERA[0]} camera frame", "stage": "preprocess",
            "backend": "pillow", "device": "cpu", "precision": "uint8", "batch": 1, "frames": 1, "timer": "wall clock",
            **summary(subject)}
