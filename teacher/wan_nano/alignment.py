"""Representation alignment (REPA, arXiv 2410.06940) of wan-nano's training.

While the transformer learns to denoise, a projection of one block's tokens is trained to equal a
frozen image encoder's features of the clean frames. The projector is not part of the generator.
"""
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor, nn

from teacher.towers.efficientnet import SEMANTIC_DIM, SemanticEncoder
from teacher.towers.wan import normalise_latents
from teacher.wan_nano.flow import FlowLoss, flow_batch
from teacher.wan_nano.loop import Pretraining
from teacher.wan_nano.vae import encode_all

HIDDEN = 512  # of the projector


class AlignedFlowLoss(nn.Module):
    """FlowLoss + weight * (1 - cosine) of block `block`'s projected tokens to the target, of the
    samples whose t lies in `t_range`."""

    def __init__(self, transformer: WanTransformer3DModel, block: int, weight: float = 0.5,
                 t_range: tuple[float, float] = (0.0, 1.0)):
        super().__init__()
        self.flow = FlowLoss(transformer)
        self.weight, self.t_range = weight, t_range
        width = transformer.config.num_attention_heads * transformer.config.attention_head_dim
        self.projector = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, HIDDEN), nn.SiLU(),
                                       nn.Linear(HIDDEN, SEMANTIC_DIM))
        self._tokens: list[Tensor] = []
        transformer.blocks[block].register_forward_hook(self._capture)

    def _capture(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self._tokens = [output]

    def forward(self, z: Tensor, noise: Tensor, t: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """target: standardised encoder features [B,F,112,14,14] -> (total, [flow, 1 - cosine])."""
        flow = self.flow(z, noise, t)
        predicted = self.projector(self._tokens.pop()).float()               # [B,F*196,112]
        wanted = target.flatten(3).transpose(2, 3).flatten(1, 2).float()     # [B,F*196,112]
        distance = 1 - F.cosine_similarity(predicted, wanted, dim=-1).mean(1)  # [B]
        low, high = self.t_range
        inside = ((t >= low) & (t <= high)).float()
        apart = (distance * inside).sum() / inside.sum().clamp_min(1)
        return flow + self.weight * apart, torch.stack([flow.detach(), apart.detach()])


class FlowData:
    """Latents of frames [N,T,3,H,W] uint8 and of their mirror images, as clips and single frames;
    aligned: with the targets of the configured alignment."""

    def __init__(self, run: Pretraining, vae: AutoencoderKLWan, frames: Tensor, aligned: bool):
        self.config, device = run.config, run.device
        every_fourth = torch.arange(0, frames.shape[1], 4).to(frames.device)
        clips, images = [], []
        with run.autocast():
            for mirrored in (False, True):
                side = frames.flip(-1) if mirrored else frames
                clips.append(normalise_latents(encode_all(vae, side, device), vae))
                single = side[:, every_fourth].flatten(0, 1).unsqueeze(1)
                images.append(normalise_latents(encode_all(vae, single, device), vae))
        self.clips = torch.cat(clips)                                        # [2N,16,F,h,w]
        self.images = torch.cat(images)                                      # [2NF,16,1,h,w]
        self.target = AlignmentTarget(frames, device) if aligned else None

    def batch(self, seed: int, step: int) -> tuple[Tensor, ...]:
        """(z, noise, t) and, when aligning, the target: clips on even steps, else single frames.

        A batch of single frames is F times as large: every step has the same number of tokens.
        """
        config, moving = self.config, step % 2 == 0
        latents = self.clips if moving else self.images
        count = config.flow_batch * (1 if moving else self.clips.shape[2])
        z, noise, t, rows = flow_batch(latents, count, seed, step, config.t_focus, config.t_range)
        if self.target is None:
            return z, noise, t
        return z, noise, t, (self.target.of_clips if moving else self.target.of_images)(rows)

    @torch.no_grad()
    def flow_loss(self, transformer: nn.Module, batches: int = 4) -> dict[str, float]:
        """Mean flow loss by name, of clips and of single frames; the draws are always the same."""
        loss, losses = FlowLoss(transformer).to(self.clips.device), {}  # type: ignore[arg-type]
        for name, latents in (("clips", self.clips), ("images", self.images)):
            values = [loss(*flow_batch(latents, min(64, len(latents)), 99, step)[:3])
                      for step in range(batches)]
            losses[f"held_out_{name}"] = float(torch.stack(values).mean())
        return losses


class AlignmentTarget:
    """Encoder features of the frames at which latents end, standardised per channel.

    frames [N,T,3,H,W] uint8 -> float16 features [2N,F,112,14,14], F = 1 + (T-1)/4, the mirrored
    clips behind the others. Latent f stands for frames 4f-3 to 4f and is aligned to the last.
    """

    def __init__(self, frames: Tensor, device: torch.device):
        encoder = SemanticEncoder().to(device)
        last = frames[:, torch.arange(0, frames.shape[1], 4).to(frames.device)]  # [N,F,3,H,W]
        both = torch.cat([_encode(encoder, last.flatten(0, 1), mirrored, device)
                          for mirrored in (False, True)])                        # [2NF,112,14,14]
        some = both[::max(1, len(both) // 4096)].float()
        self.mean = some.mean((0, 2, 3)).view(-1, 1, 1)
        self.std = some.std((0, 2, 3)).clamp_min(1e-3).view(-1, 1, 1)
        self.features = both.unflatten(0, (-1, last.shape[1]))

    def of_clips(self, rows: Tensor) -> Tensor:
        """[B,F,112,14,14] of clips `rows`."""
        return (self.features[rows].float() - self.mean) / self.std

    def of_images(self, rows: Tensor) -> Tensor:
        """[B,1,112,14,14] of single frames `rows`, counted clip by clip."""
        return (self.features.flatten(0, 1)[rows].float() - self.mean)[:, None] / self.std


@torch.no_grad()
def _encode(encoder: SemanticEncoder, frames: Tensor, mirrored: bool, device: torch.device,
            batch: int = 512) -> Tensor:
    """[N,3,H,W] uint8 -> [N,112,14,14] float16 on `device`."""
    parts = []
    for start in range(0, len(frames), batch):
        chunk = frames[start:start + batch].to(device).float() / 255
        parts.append(encoder(chunk.flip(-1) if mirrored else chunk).half())
    return torch.cat(parts)
