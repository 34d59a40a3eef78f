"""Attention for questions about shared tokens against the mask over the complete sequence."""
import pytest
import torch

from teacher.language.attention import NAME, question_mask
from teacher.language.lm import load_lm, recompute, tune
from teacher.language.model import LanguageShape, LanguageTeacher
from tests.language_fakes import save_tiny_lm

P, Q, L = 7, 3, 5


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory):
    return save_tiny_lm(tmp_path_factory.mktemp("lm"), request.param)  # 4 heads, 2 of keys


def teacher(folder, implementation: str = NAME, dtype=torch.float32) -> LanguageTeacher:
    torch.manual_seed(0)
    model = LanguageTeacher(load_lm(str(folder))[0], LanguageShape(5, 6), [])
    assert model.lm.config._attn_implementation == NAME
    model.lm.set_attn_implementation(implementation)
    return model.train().to(dtype)


def states_and_gradients(model: LanguageTeacher, shared: int = P, questions: int = Q
                         ) -> list[torch.Tensor]:
    """The questions' states, and gradients of the shared tokens', questions' and all weights."""
    draw = torch.Generator().manual_seed(1)
    inputs = [torch.randn(2, *size, 24, generator=draw).to(model.newline.dtype).requires_grad_()
              for size in ((shared,), (questions, L))]
    hidden = model._run_decoder(*inputs)[1]
    (hidden * torch.randn(hidden.shape, generator=draw)).sum().backward()
    weights = [p.grad for p in model.lm.parameters() if p.grad is not None]
    return [hidden, *(x.grad for x in inputs), *weights]


def assert_equal(found, expected, **tolerance):
    assert len(found) == len(expected) > 3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


def test_states_and_gradients_are_those_of_the_complete_mask(folder):
    model, other = teacher(folder), teacher(folder, "sdpa")
    masks = [question_mask(m.lm.get_decoder(), P, Q, L, "cpu") for m in (model, other)]
    assert [m.shape[2:] for m in masks] == [(L, P + L), (P + Q * L, P + Q * L)]
    assert_equal(states_and_gradients(model), states_and_gradients(other), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("shared", "questions"), [(P, 1), (0, Q), (1, 2)])
def test_one_question_and_no_shared_tokens(folder, shared, questions):
    found, expected = (states_and_gradients(teacher(folder, name), shared, questions)
                       for name in (NAME, "sdpa"))
    assert_equal(found, expected, atol=1e-5, rtol=1e-5)


def test_half_precision_recomputation_and_adapters(folder):
    """In bfloat16 the questions' attention takes another path: flash attention's on a GPU."""
    found = []
    for name, dtype in ((NAME, torch.bfloat16), ("sdpa", torch.bfloat16), ("sdpa", torch.float32)):
        model = teacher(folder, name, dtype)
        tune(model.lm, "lora", rank=2)
        recompute(model.lm)
        found.append(states_and_gradients(model.to(dtype)))
    half, masked, exact = ([x.float() for x in part] for part in found)
    for a, b, c in zip(half, masked, exact, strict=True):
        assert (a - c).norm() <= 1.5 * (b - c).norm() + 1e-3 * c.norm()


def test_other_uses_of_the_language_model_are_as_before(folder):
    """Left padding and generation with a cache."""
    ids = torch.randint(5, 40, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    found = []
    for name in (NAME, "sdpa"):
        lm = teacher(folder, name).lm.eval()
        found.append((lm(ids, attention_mask=mask).logits[:, -1],
                      lm.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)))
    torch.testing.assert_close(*found)


def test_the_complete_mask_by_its_definition(folder):
    decoder = teacher(folder, "sdpa").lm.get_decoder()
    mask = question_mask(decoder, 3, 2, 2, torch.device("cpu"))[0, 0]
    owner = [None] * 3 + [0, 0, 1, 1]
    for i in range(7):
        for j in range(7):
            assert mask[i, j] == (j <= i and (j < 3 or owner[i] == owner[j])), (i, j)
