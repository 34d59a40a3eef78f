"""The memory plan against independent counts."""
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from teacher.language.memory_plan import PAPER, QWEN2_7B, dummy_batch, plan, processes, saved_bytes
from teacher.language.model import LanguageShape, LanguageTeacher

SMALL = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 128, "num_hidden_layers": 3,
         "num_attention_heads": 4, "num_key_value_heads": 4}
SHAPE = LanguageShape(8, 8, grid=14)
RECIPE = Path(__file__).parents[2] / "bench" / "recipes" / "paper_fsdp.yaml"


def test_the_7b_has_the_published_number_of_weights():
    w, i, v, kv = 3584, 18944, 152064, 512
    layer = w * (w + 1) + 2 * kv * (w + 1) + w * w + 3 * w * i + 2 * w
    qwen = 28 * layer + 2 * v * w + w
    assert qwen == 7_615_616_512  # the published checkpoint's own count
    extra = sum(p.numel() for p in LanguageTeacher(_lm(SMALL), SHAPE, []).parameters()) - sum(
        p.numel() for p in _lm(SMALL).parameters())
    assert plan(world=8).parameters > qwen and extra > 0
    assert plan(world=8).parameters - qwen < 0.02 * qwen  # fusion and ground head are small


def test_counted_activations_are_what_a_real_step_saves():
    planned = plan(frames=2, words=16, shape=SHAPE, lm=SMALL, recompute=False, world=1)
    torch.manual_seed(0)
    model = LanguageTeacher(_lm(SMALL), SHAPE, [0] * 24).to(torch.bfloat16).train()
    real = saved_bytes(lambda: model(*dummy_batch(model, 2, 16, 1, "cpu")))
    assert abs(planned.activations - real) < 0.1 * real, (planned.activations, real)


def test_sharded_parts_shrink_and_others_stay():
    one, eight = plan(world=1, frames=4), plan(world=8, frames=4)
    assert eight.weights == pytest.approx(one.weights * 2 / 8)  # float32 on many, bf16 on one
    assert eight.moments == pytest.approx(one.moments * 2 / 8)
    assert eight.activations == one.activations and eight.gathered > 0 == one.gathered


def test_adapters_and_recomputing_save_what_they_should():
    full, lora = plan(frames=4, world=1), plan("lora", frames=4, world=1)
    stored = plan(frames=4, world=1, recompute=False)
    assert lora.trained < 0.03 * full.trained and lora.moments < 0.03 * full.moments
    assert stored.activations > 5 * full.activations and stored.layer == 0 < full.layer
    assert full.total == pytest.approx(sum(getattr(full, n) for n in (
        "weights", "gradients", "moments", "gathered", "activations", "layer", "logits", "towers")))


def test_the_paper_recipe_fits_on_its_gpus():
    """Bar: one step of 32 frames x 196 tokens within 140 GB; on eight GPUs within their 80 GB."""
    assert PAPER.grid == 14 and QWEN2_7B["num_hidden_layers"] == 28
    assert plan(world=1).total < 140e9
    assert plan(world=processes(RECIPE)).total < 80e9


def test_launch_files_that_do_not_shard_are_named(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        processes(tmp_path / "none.yaml")
    other = tmp_path / "ddp.yaml"
    other.write_text(RECIPE.read_text().replace("distributed_type: FSDP",
                                                "distributed_type: MULTI_GPU"))
    with pytest.raises(ValueError, match="expected FSDP"):
        processes(other)
    other.write_text("distributed_type: [")
    with pytest.raises(ValueError, match="accelerate cannot read it"):
        processes(other)


def _lm(sizes):
    return Qwen2ForCausalLM(
        Qwen2Config(**sizes, tie_word_embeddings=False, attn_implementation="sdpa"))
