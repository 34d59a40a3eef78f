"""One training step of a 7B-shaped teacher on one GPU, random weights, 32 frames x 196 tokens: language_7b.py OUT

Weights, gradients and Adam's moments in bf16 (PLAN: teacher.plan's count beside what was measured), layers recomputed;
the Wan2.1-1.3B-shaped generator's weights are held too, as they are in training.
"""
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from records.environment import environment
from records.results import Row, measured, save
from teacher.ground import ground_loss
from teacher.language import LanguageShape, LanguageTeacher
from teacher.lm import Tune, recompute, tune
from teacher.plan import GB, PAPER, QWEN2_7B, WAN_TAPPED, made_up_batch, plan

FRAMES, WORDS = 32, 128


def step(how: Tune, lm_sizes: dict[str, Any] = QWEN2_7B, shape: LanguageShape = PAPER) -> Row:
    """A row: the second step's time and the peak, beside the plan."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            lm = Qwen2ForCausalLM(Qwen2Config(**lm_sizes, tie_word_embeddings=False))
            tune(lm, how)
            recompute(lm)
            model = LanguageTeacher(lm, shape, [0] * 24).train()
            towers = torch.empty(int(WAN_TAPPED)) if device.type == "cuda" else torch.empty(1)
    finally:
        torch.set_default_dtype(torch.float32)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, fused=True)
    sight, asked = made_up_batch(model, FRAMES, WORDS, 1, device)
    asked.targets[..., 0] = True
    for _ in range(2):
        _wait(device)
        begin = time.monotonic()
        heard = model(sight, asked)
        assert heard.ground is not None
        words = model.logits(heard.hidden[0, 0, :16]).float().logsumexp(-1).mean()
        loss = ground_loss(heard.ground, asked.targets, asked.candidates >= 0) + words
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        _wait(device)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    made = plan(how, 1, FRAMES, WORDS, shape=shape, lm=lm_sizes)
    del towers
    return {"tune": how, "parameters": made.parameters, "trained": made.trained, "frames": FRAMES,
            "visual_tokens": FRAMES * shape.grid * (shape.grid + 1), "step_ms": (time.monotonic() - begin) * 1e3,
            "peak_gb": peak / GB, "planned_gb": made.total / GB, "loss": float(loss)}


def main(out: Path) -> None:
    rows: list[Row] = []
    for how in ("lora", "full"):
        try:
            rows.append(step(how))  # type: ignore[arg-type]
        except torch.OutOfMemoryError as error:
            rows.append({"tune": how, "peak_gb": None, "failed": str(error).splitlines()[0]})
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        results = measured("language_7b", rows, environment())
        save(replace(results, command=" ".join(["bench/h200/language_7b.py", *sys.argv[1:]])), out / "language_7b.json")
        print(rows[-1], flush=True)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
