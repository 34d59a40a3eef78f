"""What rooms teach without looking at the picture: depth and normals of each row, from renders.
`python -m bench.real.prior` writes rooms_prior.json beside this file."""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from records.files import read_json, write_json
from scenes.dense import STRIDE
from scenes.rooms.source import RoomSource

FILE = Path(__file__).with_name("rooms_prior.json")
ROOMS = RoomSource(train=150, val=0, test=0, frames=3, seed=1802)


@dataclass(frozen=True)
class Prior:
    constant_m: float    # geometric mean of all depths
    rows_m: np.ndarray   # [56] geometric mean of each row, top to bottom
    normals: np.ndarray  # [56,3] mean unit normal of each row, camera axes


def load_prior() -> Prior:
    facts = read_json(FILE, "restore it, or run: python -m bench.real.prior", kind=dict)
    return Prior(facts["constant_m"], np.array(facts["rows_m"]), np.array(facts["normals"]))


def fit(source: RoomSource = ROOMS) -> Prior:
    """Over all frames of the source's training rooms."""
    logs, normals = [], []
    for clip_id in source.ids("train"):
        clip = source.clip(clip_id)
        assert clip.depth is not None and clip.normals is not None
        cut = slice(STRIDE // 2, None, STRIDE)
        depth = clip.depth[:, cut, cut]
        logs.append(np.log(np.where(depth > 0, depth, np.nan)))
        normals.append(clip.normals[:, :, cut, cut].astype(float).mean((0, 3)))     # [3,56]
    log = np.concatenate(logs)                                                      # [N,56,56]
    mean = np.mean(normals, 0).T                                                    # [56,3]
    return Prior(float(np.exp(np.nanmean(log))), np.exp(np.nanmean(log, (0, 2))),
                 mean / np.linalg.norm(mean, axis=1, keepdims=True))


if __name__ == "__main__":
    prior = fit()
    write_json({"made_by": f"python -m bench.real.prior: {ROOMS.train} rendered rooms x "
                           f"{ROOMS.frames} frames, seed {ROOMS.seed}, training furniture",
                "constant_m": round(prior.constant_m, 4), "rows_m": prior.rows_m.round(4).tolist(),
                "normals": prior.normals.round(4).tolist()}, FILE)
    print(FILE)
