"""wan-nano's transformer: Wan's video transformer in a small size, trained by flow matching.

x_t = (1-t) z + t eps, target eps - z (arXiv 2210.02747); t is logit-normal, shifted towards noise
with the number of tokens (arXiv 2403.03206, section 5.3.2). Clips and single frames alternate.
"""
from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from torch import Tensor, nn

TEXT_DIM = 32
# at this size (8x8 frames) an unshifted t was found to teach the layout of rooms
UNSHIFTED_TOKENS = 64


def build_transformer(width: int = 256, depth: int = 10) -> WanTransformer3DModel:
    """`depth` blocks of `width` channels (heads of 64), patch (1,2,2), initialised as the identity;
    256 x 10 has 10 M parameters, 384 x 12 has 27 M."""
    model = WanTransformer3DModel(num_attention_heads=width // 64, attention_head_dim=64,
                                  in_channels=16, out_channels=16, text_dim=TEXT_DIM, freq_dim=128,
                                  ffn_dim=width * 13 // 4, num_layers=depth, rope_max_seq_len=64)
    # adaLN-zero: every block starts as the identity, the output as zero (arXiv 2212.09748)
    nn.init.zeros_(model.condition_embedder.time_proj.weight)
    nn.init.zeros_(model.condition_embedder.time_proj.bias)
    nn.init.zeros_(model.proj_out.weight)
    nn.init.zeros_(model.proj_out.bias)
    for module in (model, *model.blocks):
        nn.init.zeros_(module.scale_shift_table)
    return model


def empty_prompt() -> Tensor:
    """The one prompt wan-nano is trained with, [1,1,TEXT_DIM]."""
    return torch.zeros(1, 1, TEXT_DIM)


class FlowLoss(nn.Module):
    """(normalised latents z [B,16,F,h,w], noise like z, t [B] in (0,1)) -> velocity MSE."""

    prompt: Tensor

    def __init__(self, transformer: WanTransformer3DModel):
        super().__init__()
        self.transformer = transformer
        self.register_buffer("prompt", empty_prompt())

    def forward(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        share = t.view(-1, 1, 1, 1, 1)
        velocity = self.transformer(hidden_states=(1 - share) * z + share * noise,
                                    timestep=1000 * t,
                                    encoder_hidden_states=self.prompt.expand(len(z), -1, -1),
                                    return_dict=False)[0]
        return F.mse_loss(velocity.float(), (noise - z).float())


def flow_batch(latents: Tensor, count: int, seed: int, step: int, focus: float = 0.0,
               focus_range: tuple[float, float] = (0.3, 0.7)) -> tuple[Tensor, ...]:
    """(z, noise, t, rows) of a step: `count` rows of latents [N,16,F,h,w], on their device.

    t is logit-normal, shifted towards noise; a share `focus` of it is uniform in `focus_range`.
    """
    draw = torch.Generator(device=latents.device).manual_seed(seed * 1_000_003 + step)
    rows = torch.randint(len(latents), (count,), generator=draw, device=latents.device)
    z = latents[rows].float()
    noise = torch.randn(z.shape, generator=draw, device=z.device)
    t = shifted(torch.randn(count, generator=draw, device=z.device).sigmoid(), z.shape[2:])
    if focus > 0:
        low, high = focus_range
        near = low + (high - low) * torch.rand(count, generator=draw, device=z.device)
        t = torch.where(torch.rand(count, generator=draw, device=z.device) < focus, near, t)
    return z, noise, t, rows


def shifted(t: Tensor, grid: Sequence[int]) -> Tensor:
    """t in [0,1] shifted towards noise for latents of size `grid` (F,h,w); 0 and 1 stay.

    Latents are correlated: at equal t, more of them hide less of a layout. A token is 2x2 latents.
    """
    shift = max(1.0, (prod(grid) / 4 / UNSHIFTED_TOKENS) ** 0.5)
    return shift * t / (1 + (shift - 1) * t)


@torch.inference_mode()
def sample(transformer: WanTransformer3DModel, shape: tuple[int, ...], device: torch.device,
           steps: int = 60, seed: int = 0) -> Tensor:
    """Generates normalised latents `shape` [B,16,F,h,w]: Heun's method from t=1 to 0."""
    dtype = next(transformer.parameters()).dtype
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(device)
    prompt = empty_prompt().to(device, dtype).expand(shape[0], -1, -1)

    def velocity(x: Tensor, t: float) -> Tensor:
        timestep = torch.full((len(x),), 1000 * t, device=device)
        return transformer(hidden_states=x.to(dtype), timestep=timestep,
                           encoder_hidden_states=prompt, return_dict=False)[0].float()

    times = shifted(torch.linspace(1, 0, steps + 1), shape[2:]).tolist()
    for now, then in pairwise(times):
        slope = velocity(x, now)
        ahead = x + (then - now) * slope
        x = x + (then - now) * (slope + velocity(ahead, max(then, 1e-3))) / 2
    return x
