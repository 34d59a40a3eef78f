"""Other diffusion generators as geometry towers, from local folders in the diffusers layout."""
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLTemporalDecoder,
    CogVideoXTransformer3DModel,
    DDPMScheduler,
    LTXVideoTransformer3DModel,
    UNet2DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from safetensors import SafetensorError

from records.files import folder_digest
from teacher.towers.diffusion import CogVideoXTower, DiffusionTower, LTXTower, SVDTower, UNetTower
from teacher.towers.image_encoders import ENCODERS, ImageTower, load_encoder
from teacher.towers.prompt import load_prompt

TOWERS: dict[str, tuple[Any, Any, Any]] = {  # kind -> tower, VAE, net
    "unet": (UNetTower, AutoencoderKL, UNet2DConditionModel),
    "svd": (SVDTower, AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel),
    "cogvideox": (CogVideoXTower, AutoencoderKLCogVideoX, CogVideoXTransformer3DModel),
    "ltx": (LTXTower, AutoencoderKLLTXVideo, LTXVideoTransformer3DModel),
}


def load_generator(kind: str, folder: Path, k: int | None = None, **knobs: Any) -> DiffusionTower:
    """kind: one of TOWERS; knobs as DiffusionTower's. Raises ValueError naming what the folder
    lacks."""
    tower, vae_kind, net_kind = TOWERS[kind]
    part = "unet" if issubclass(tower, UNetTower) else "transformer"
    wanted = ["vae/config.json", f"{part}/config.json"]
    wanted += ["image_encoder/config.json", "feature_extractor/preprocessor_config.json"
               ] if kind == "svd" else ["prompt.safetensors"]
    wanted += ["scheduler/scheduler_config.json"] if kind != "ltx" else []
    if missing := [p for p in wanted if not (folder / p).is_file()]:
        raise ValueError(
            f"{folder}: no {', '.join(missing)}; expected a diffusers folder of {kind}" +
            ("" if kind == "svd" else f" with its prompt (vega3d teacher prompt {folder})"))
    knobs |= {"k": k, "digest": folder_digest(folder)}
    try:
        vae, net = (_part(c, folder, p) for c, p in ((vae_kind, "vae"), (net_kind, part)))
        if kind != "ltx":
            knobs["schedule"] = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
        if kind == "svd":
            from transformers import CLIPVisionModelWithProjection

            said = json.loads(
                (folder / "feature_extractor" / "preprocessor_config.json").read_text())
            image = CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder",
                                                                  dtype=torch.float32)
            more = (image, said["image_mean"], said["image_std"])
    except (OSError, KeyError, TypeError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: not a whole {kind} checkpoint ({str(error).strip().splitlines()[0]})"
        ) from error
    if kind == "svd":
        return SVDTower(vae, net, *more, **knobs)
    return tower(vae, net, load_prompt(folder / "prompt.safetensors"), **knobs)


def _part(kind: Any, folder: Path, part: str) -> Any:
    found = kind.load_config(folder, subfolder=part).get("_class_name")
    if found != kind.__name__:
        raise ValueError(f"{part}/ is a {found}, expected {kind.__name__}")
    model, info = kind.from_pretrained(folder, subfolder=part, torch_dtype=torch.float32,
                                       use_safetensors=True, output_loading_info=True)
    if lost := sorted(info["missing_keys"]):
        raise ValueError(f"{part}/ lacks {len(lost)} weights, {lost[0]} first")
    return model


def load_tower(name: str) -> ImageTower | DiffusionTower:
    """dinov2:FOLDER, dinov3:, vjepa2:, unet:, svd:, cogvideox: or ltx:, with that tower's defaults.
    ValueError else."""
    kind, _, folder = name.partition(":")
    if kind in ENCODERS and folder:
        return load_encoder(kind, Path(folder))
    if kind in TOWERS and folder:
        return load_generator(kind, Path(folder))
    raise ValueError(
        f"{name}: not a tower; expected KIND:FOLDER with KIND one of "
        f"{', '.join([*ENCODERS, *TOWERS])}"
    )
