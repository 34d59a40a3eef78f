"""Compiled modules: one program a size, long rows in registers, errors in one line."""
from types import SimpleNamespace

import pytest
import sympy
import torch
import torch.nn.functional as F
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V

from teacher.fast import inductor
from teacher.fast.inductor import CompiledModule, fast_kernels, persistent_reductions
from teacher.towers.tap import Tap
from teacher.towers.wan import load_wan


def persists(elements: int, hint: ReductionHint = ReductionHint.INNER,
             cooperative: bool = False) -> bool:
    graph = SimpleNamespace(sizevars=SimpleNamespace(statically_known_leq=lambda a, b: a <= b,
                                                      optimization_hint=lambda n: n))
    features = SimpleNamespace(get_reduction_hint=lambda: hint,
                               reduction_numel=sympy.Integer(elements), numel=10**6)
    with V.set_graph_handler(graph):
        return bool(V.choices.should_use_persistent_reduction(features, cooperative))


@pytest.mark.parametrize("widest", [None, 2048])
def test_rows_up_to_the_widest_and_nothing_else(widest):
    assert not persists(1536)  # the compiler by itself
    with persistent_reductions(widest):
        limit = widest or inductor.WIDEST
        assert persists(1536) and persists(limit) and persists(64) and not persists(limit + 1)
        assert persists(1536, ReductionHint.DEFAULT) and not persists(1000, ReductionHint.DEFAULT)
        assert not persists(1536, ReductionHint.OUTER) and not persists(1536, cooperative=True)
    assert not persists(1536) and persists(1024)


def test_without_it_the_compiler_decides(monkeypatch):
    monkeypatch.setattr(inductor, "WIDEST", 0)
    before = V.choices
    with persistent_reductions():
        assert V.choices is before
    monkeypatch.delattr(type(V), "set_choices_handler")                    # another PyTorch
    with persistent_reductions(2048):
        assert V.choices is before


def test_a_forward_is_compiled_under_that_choice():
    torch._dynamo.reset()
    decisions = []

    def look(graph, _inputs):
        decisions.append(persists(1536))
        return graph.forward

    module = CompiledModule(torch.nn.Linear(2, 2), look)
    module(torch.rand(3, 2))
    assert decisions == [True] and not persists(1536)


def test_the_encoder_is_one_program(tiny_wan):
    torch._dynamo.reset()
    graphs = []
    tower, frames = load_wan(tiny_wan, Tap(block=0, seeds=1)), torch.rand(1, 2, 3, 64, 64)
    wanted = tower.features(frames)
    tower.compile(lambda graph, _inputs: graphs.append(graph) or graph.forward)
    torch.testing.assert_close(tower.features(frames), wanted, rtol=1e-4, atol=1e-5)
    convolutions = [n for n in graphs[0].graph.nodes if n.target is torch.conv2d]
    assert tower.compiled and len(graphs) == 2 and len(convolutions) > 10


def test_a_compiler_that_fails_is_one_line():
    torch._dynamo.reset()

    def broken(_graph, _inputs):
        raise RuntimeError("no C compiler\nat all")

    module = CompiledModule(torch.nn.Linear(2, 2), broken)
    with pytest.raises(ValueError,
                       match=r"torch\.compile failed here .*set TORCH_COMPILE_DISABLE=1") as error:
        module(torch.rand(3, 2))
    assert "\n" not in str(error.value)


def test_kernel_choices_end_with_the_block():
    before = torch.backends.cudnn.benchmark
    with fast_kernels(True):
        assert torch.backends.cudnn.benchmark
        q = torch.randn(1, 1, 4, 8)
        assert F.scaled_dot_product_attention(q, q, q).isfinite().all()
    assert torch.backends.cudnn.benchmark == before
