"""Wide rows are held in registers while our compiled code is made, and only then."""
from types import SimpleNamespace

import pytest
import sympy
import torch
from torch._inductor.runtime.hints import ReductionHint
from torch._inductor.virtualized import V

from teacher.fast import inductor, wan_blocks
from teacher.fast.inductor import persistent_reductions


def held(elements: int, hint: ReductionHint = ReductionHint.INNER,
         cooperative: bool = False) -> bool:
    graph = SimpleNamespace(sizevars=SimpleNamespace(statically_known_leq=lambda a, b: a <= b,
                                                      optimization_hint=lambda n: n))
    features = SimpleNamespace(get_reduction_hint=lambda: hint,
                               reduction_numel=sympy.Integer(elements), numel=10**6)
    with V.set_graph_handler(graph):
        return bool(V.choices.should_use_persistent_reduction(features, cooperative))


@pytest.mark.parametrize("widest", [None, 2048])
def test_rows_up_to_the_widest_and_nothing_else(widest):
    assert not held(1536)                                                  # the compiler by itself
    with persistent_reductions(widest):
        limit = widest or inductor.WIDEST
        assert held(1536) and held(limit) and held(64) and not held(limit + 1)
        assert held(1536, ReductionHint.DEFAULT) and not held(1000, ReductionHint.DEFAULT)
        assert not held(1536, ReductionHint.OUTER) and not held(1536, cooperative=True)
    assert not held(1536) and held(1024)


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
    seen = []

    def look(graph, _inputs):
        seen.append(held(1536))
        return graph.forward

    module = torch.nn.Linear(2, 2)
    wan_blocks.compile_forward(module, look)
    module(torch.rand(3, 2))
    assert seen == [True] and not held(1536)
