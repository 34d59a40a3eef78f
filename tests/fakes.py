"""Small true things for the tests: clips of analytic geometry, and a Wan checkpoint in the official
layout."""
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from scenes.clip import Clip, SceneObject
from scenes.furniture.pack import CLASSES
from teacher.wan_nano.pretrain import save_generator


class FakeRooms:
    """Clips of a slanted textured wall with a coloured square before it; the camera slides right.
    224 px."""

    def __init__(self, train: int = 6, val: int = 2, test: int = 3, frames: int = 5,
                 labelled: bool = True):
        self.counts = {"train": train, "val": val, "test": test}
        self.frames, self.labelled = frames, labelled

    def ids(self, split: str) -> list[str]:
        return [f"{split}/{i:03d}" for i in range(self.counts[split])]

    @lru_cache  # noqa: B019 (lives as long as the test)
    def clip(self, clip_id: str) -> Clip:
        rng = np.random.default_rng([ord(c) for c in clip_id])
        t, side, focal = self.frames, 224, 200.0
        intrinsics = np.array([[focal, 0, side / 2], [0, focal, side / 2], [0, 0, 1]])
        poses = np.tile(np.eye(4), (t, 1, 1))
        poses[:, 0, 3] = 0.05 * np.arange(t)
        u, v = np.meshgrid(np.arange(side) + 0.5, np.arange(side) + 0.5)
        slope, far, texture = rng.uniform(0.1,
                                          0.6), rng.uniform(3,
                                                            5), rng.integers(40, 216, (64, 64, 3))
        frames, depth = np.zeros((t, 3, side, side), np.uint8), np.zeros((t, side, side),
                                                                         np.float32)
        ids = np.ones((t, side, side), np.int32)
        for i in range(t):
            shift = poses[i, 0, 3]
            # plane z = far + slope x, x = X + shift
            z = (far + slope * shift) / (1 - slope * (u - side / 2) / focal)
            x, y = z * (u - side / 2) / focal + shift, z * (v - side / 2) / focal
            picture = texture[(y * 8).astype(int) % 64, (x * 8).astype(int) % 64]
            near = (abs(1.5 *
                        (u - side / 2) / focal + shift) < 0.3) & (abs(1.5 *
                                                                      (v - side / 2) / focal) < 0.3)
            z, picture = np.where(near, 1.5, z), np.where(near[..., None], [200, 40, 40], picture)
            ids[i][near] = 2
            depth[i], frames[i] = z, picture.transpose(2, 0, 1)
        if not self.labelled:
            return Clip(clip_id, frames)
        normal = np.array([slope, 0, -1]) / np.hypot(slope, 1)
        normals = np.where(ids[:, None] == 2,
                           np.array([0, 0, -1]).reshape(1, 3, 1, 1), normal.reshape(1, 3, 1, 1))
        things = [SceneObject(1, "wall", "wall", (0, 0, far), (9, 9, 0.1)),
                  SceneObject(2, "chair", "red square", (0, 0, 1.5), (0.6, 0.1, 0.6))]
        assert {"wall", "chair"} <= set(CLASSES)
        return Clip(clip_id, frames, depth,
                    np.round(127 * normals).astype(np.int8), ids, intrinsics, poses, things)


def save_tiny_wan(folder: Path, blocks: int = 3, seed: int = 0) -> Path:
    """A random checkpoint of Wan's classes, a few hundred thousand parameters, 224 px -> 14x14
    tokens of width 32."""
    torch.manual_seed(seed)
    vae = AutoencoderKLWan(base_dim=4, z_dim=4, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
                           latents_mean=[0.1] * 4, latents_std=[0.5] * 4,
                           temperal_downsample=[False, True, True])
    transformer = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=4,
                                        out_channels=4, text_dim=32, freq_dim=16, ffn_dim=64,
                                        num_layers=blocks, rope_max_seq_len=32)
    folder.mkdir(parents=True, exist_ok=True)
    save_generator(folder, vae, transformer)
    return folder


def save_tiny_text_encoder(folder: Path, width: int = 32, kind: str = "umt5") -> Path:
    """A random text encoder (umt5 or clip) and a tokenizer of three words, in text_encoder/ and
    tokenizer/."""
    from tokenizers import Tokenizer, models, processors
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    torch.manual_seed(1)
    encoder = UMT5EncoderModel(
        UMT5Config(vocab_size=8, d_model=width, d_kv=8, d_ff=16, num_layers=1,
                   num_heads=2)) if kind == "umt5" else CLIPTextModel(
                       CLIPTextConfig(vocab_size=8, hidden_size=width, intermediate_size=16,
                                      num_hidden_layers=1, num_attention_heads=2,
                                      max_position_embeddings=7, eos_token_id=1, bos_token_id=1))
    encoder.save_pretrained(folder / "text_encoder")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.post_processor = processors.TemplateProcessing(single="$A </s>",
                                                         special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>",
                            unk_token="<unk>",
                            model_max_length=7).save_pretrained(folder / "tokenizer")
    return folder


def save_tiny_5b(folder: Path) -> Path:
    """Wan2.2-5B's shape in small: residual VAE on 2x2 patches, so 32 px to a token."""
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=4, z_dim=6, dim_mult=[1, 2, 2, 2], num_res_blocks=1,
                           is_residual=True, patch_size=2, in_channels=12, out_channels=12,
                           decoder_base_dim=4, latents_mean=[0.0] * 6, latents_std=[1.0] * 6,
                           temperal_downsample=[False, True, True])
    transformer = WanTransformer3DModel(num_attention_heads=2, attention_head_dim=16, in_channels=6,
                                        out_channels=6, text_dim=32, freq_dim=16, ffn_dim=64,
                                        num_layers=2, rope_max_seq_len=32)
    folder.mkdir(parents=True, exist_ok=True)
    save_generator(folder, vae, transformer)
    return folder
