"""Small inputs for tests: clips of analytic geometry, and random Wan checkpoints."""
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel

from scenes.clip import Clip, SceneObject
from scenes.furniture.pack import CLASSES
from teacher.wan_nano.pretrain import save_generator


class FakeRooms:
    """224 px clips of a slanted textured wall behind a red square; the camera slides right."""

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
        slope, far = rng.uniform(0.1, 0.6), rng.uniform(3, 5)
        texture = rng.integers(40, 216, (64, 64, 3))
        frames = np.zeros((t, 3, side, side), np.uint8)
        depth, ids = np.zeros((t, side, side), np.float32), np.ones((t, side, side), np.int32)
        ray_x, ray_y = (u - side / 2) / focal, (v - side / 2) / focal
        for i in range(t):
            shift = poses[i, 0, 3]
            # plane z = far + slope x, x = X + shift
            z = (far + slope * shift) / (1 - slope * ray_x)
            x, y = z * ray_x + shift, z * ray_y
            wall = texture[(y * 8).astype(int) % 64, (x * 8).astype(int) % 64]
            square = (abs(1.5 * ray_x + shift) < 0.3) & (abs(1.5 * ray_y) < 0.3)
            ids[i][square] = 2
            depth[i] = np.where(square, 1.5, z)
            frames[i] = np.where(square[..., None], [200, 40, 40], wall).transpose(2, 0, 1)
        if not self.labelled:
            return Clip(clip_id, frames)
        normal = np.array([slope, 0, -1]) / np.hypot(slope, 1)
        facing = np.array([0, 0, -1]).reshape(1, 3, 1, 1)
        normals = np.where(ids[:, None] == 2, facing, normal.reshape(1, 3, 1, 1))
        objects = [SceneObject(1, "wall", "wall", (0, 0, far), (9, 9, 0.1)),
                   SceneObject(2, "chair", "red square", (0, 0, 1.5), (0.6, 0.1, 0.6))]
        assert {"wall", "chair"} <= set(CLASSES)
        normals = np.round(127 * normals).astype(np.int8)
        return Clip(clip_id, frames, depth, normals, ids, intrinsics, poses, objects)


def save_tiny_wan(folder: Path, blocks: int = 3, seed: int = 0) -> Path:
    """A random Wan checkpoint of a few 100,000 parameters; 224 px -> 14x14 tokens of width 32."""
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
    """A random umt5 or clip in text_encoder/ and a tokenizer of three words in tokenizer/."""
    from tokenizers import Tokenizer, models, processors
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        PreTrainedTokenizerFast,
        UMT5Config,
        UMT5EncoderModel,
    )

    torch.manual_seed(1)
    if kind == "umt5":
        encoder = UMT5EncoderModel(UMT5Config(vocab_size=8, d_model=width, d_kv=8, d_ff=16,
                                              num_layers=1, num_heads=2))
    else:
        encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=8, hidden_size=width, intermediate_size=16, num_hidden_layers=1,
            num_attention_heads=2, max_position_embeddings=7, eos_token_id=1, bos_token_id=1))
    encoder.save_pretrained(folder / "text_encoder")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "<unk>": 2}, unk_token="<unk>"))
    words.post_processor = processors.TemplateProcessing(single="$A </s>",
                                                         special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", pad_token="<pad>",
                                        unk_token="<unk>", model_max_length=7)
    tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def save_tiny_5b(folder: Path) -> Path:
    """Wan2.2-5B's layout, small: residual VAE on 2x2 patches, so 32 px a token."""
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


def tiny_transformer(**knobs) -> WanTransformer3DModel:
    torch.manual_seed(3)
    return WanTransformer3DModel(
        **{
            "num_attention_heads": 2, "attention_head_dim": 16, "in_channels": 4, "out_channels": 4,
            "text_dim": 32, "freq_dim": 16, "ffn_dim": 64, "num_layers": 2, "rope_max_seq_len": 32,
            **knobs
        }).eval()
