"""export check reads weights and scales however they are spelled, subgraphs and local functions."""
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from export.graph.check import check_qdq, summary
from export.graph.flat import FlatIndex
from tests.onnx_graphs import model_of, quantised_linear, value, weight_dq
from vega3d import main

make = helper.make_node
INT8 = "1 of 1 layers with weights are INT8"
W_T = np.random.default_rng(1).integers(-127, 128, (12, 16)).astype(np.int8)
FLOAT = np.random.default_rng(1).normal(size=(16, 12)).astype(np.float32)
SCALES = np.full(12, 0.01, np.float32)


def constant(name: str, **attribute) -> onnx.NodeProto:
    return make("Constant", [], [name], f"make_{name}", **attribute)


def sparse(values: np.ndarray) -> onnx.SparseTensorProto:
    places = np.arange(values.size)
    return helper.make_sparse_tensor(
        onnx.numpy_helper.from_array(values.ravel(), "v"),
        onnx.numpy_helper.from_array(places, "i"), values.shape)


def sparse_scales() -> onnx.ModelProto:
    model = quantised_linear(without=["ws"])
    tensor = sparse(SCALES)
    tensor.values.name = "ws"
    model.graph.sparse_initializer.append(tensor)
    return model


def moved(op: str, *others: str, start: str = "Wd", **attributes) -> onnx.NodeProto:
    return make(op, [start, *others], ["moved"], "mover", **attributes)


SPELLINGS = {
    "transposed": quantised_linear([weight_dq(axis=0), moved("Transpose", perm=[1, 0])], "moved",
                                   W=W_T, ws=SCALES),
    "transposed int8": quantised_linear(
        [make("Transpose", ["W0"], ["W"], perm=[1, 0]), weight_dq()], W0=W_T, without=["W"]),
    "float under Q": quantised_linear(
        [make("QuantizeLinear", ["F", "ws", "wz"], ["Wq"], axis=1), weight_dq("Wq")], F=FLOAT),
    "moved between Q and DQ": quantised_linear(
        [make("QuantizeLinear", ["F", "ws", "wz"], ["Wq"], axis=0),
         make("Transpose", ["Wq"], ["Wt"]), weight_dq("Wt")], F=FLOAT.T.copy()),
    "cast": quantised_linear([weight_dq(), moved("Cast", to=TensorProto.FLOAT)], "moved"),
    "unsqueezed": quantised_linear([weight_dq(), moved("Unsqueeze", "axes")], "moved",
                                   axes=np.array([0])),
    "reshaped": quantised_linear([weight_dq(axis=0), moved("Reshape", "shape")], "moved", axis=0,
                                 W=np.zeros((12, 16, 1), np.int8), ws=SCALES,
                                 shape=np.array([12, 16]),
                                 last=[make("Gemm", ["flat", "moved"], ["y"], "linear", transB=1),
                                       make("Flatten", ["xd"], ["flat"], axis=2)]),
    "squeezed and transposed": quantised_linear(
        [weight_dq(axis=1), make("Squeeze", ["Wd", "axes"], ["W2"]),
         moved("Transpose", start="W2", perm=[1, 0])], "moved",
        W=W_T[None], ws=SCALES, axes=np.array([0])),
    "sliced": quantised_linear([weight_dq(), moved("Slice", "start", "end")], "moved",
                               start=np.array([0, 0]), end=np.array([16, 12])),
    "split": quantised_linear([weight_dq(), make("Split", ["Wd", "sizes"], ["a", "b"], axis=1)],
                              "a", sizes=np.array([8, 4])),
    "scale identity": quantised_linear([make("Identity", ["s0"], ["ws"]), weight_dq()], s0=SCALES,
                                       without=["ws"]),
    "scale product": quantised_linear([make("Mul", ["s0", "s1"], ["ws"]), weight_dq()], s0=SCALES,
                                      s1=np.float32(2), without=["ws"]),
    "scale expanded": quantised_linear([make("Expand", ["s0", "n"], ["ws"]), weight_dq()],
                                       s0=np.float32(0.1), n=np.array([12]), without=["ws"]),
    "scale squeezed": quantised_linear(
        [make("Squeeze", ["s0"], ["ws"]), weight_dq()], s0=SCALES[None], without=["ws"]),
    "scale cast": quantised_linear([make("Cast", ["s0"], ["ws"], to=1), weight_dq()],
                                   s0=SCALES.astype(np.float16), without=["ws"]),
    "value_float": quantised_linear([constant("xs", value_float=0.02), weight_dq()],
                                    without=["xs"]),
    "value_floats": quantised_linear([constant("ws", value_floats=[0.01] * 12), weight_dq()],
                                     without=["ws"]),
    "value_ints": quantised_linear(
        [constant("z0", value_ints=[0] * 12), make("Cast", ["z0"], ["wz"], to=TensorProto.INT8),
         weight_dq()], without=["wz"]),
    "value_int": quantised_linear(
        [constant("z0", value_int=0), make("Cast", ["z0"], ["xz"], to=TensorProto.INT8),
         weight_dq()], without=["xz"]),
    "sparse_value": quantised_linear([constant("ws", sparse_value=sparse(SCALES)), weight_dq()],
                                     without=["ws"]),
    "sparse initializer": sparse_scales(),
    "value": quantised_linear(
        [constant("W", value=onnx.numpy_helper.from_array(W_T.T.copy())), weight_dq()],
        without=["W"]),
    "no zero point": quantised_linear([weight_dq(zero="")], without=["wz"]),
    "no zero point, int8 behind Identity": quantised_linear(
        [make("Identity", ["W0"], ["W"]), weight_dq(zero="")], W0=W_T.T.copy(),
        without=["wz", "W"]),
    "axis from the end": quantised_linear([weight_dq(axis=-1)]),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_a_weight_or_scale_is_read_however_it_is_spelled(name):
    model = SPELLINGS[name]
    assert list(map(str, check_qdq(model, "trt10", want_int8=True))) == []
    assert summary(model) == INT8


SQUARE = W_T[:12, :12].copy()
WRONG = {
    "transposed": quantised_linear([weight_dq(axis=1), moved("Transpose", perm=[1, 0])], "moved",
                                   W=SQUARE, ws=SCALES),
    "transposed int8": quantised_linear([make("Transpose", ["W0"], ["W"]), weight_dq(axis=0)],
                                        W0=SQUARE, without=["W"]),
    "reshaped": quantised_linear([weight_dq(axis=0), moved("Reshape", "shape")], "moved", axis=0,
                                 W=np.zeros((4, 3, 12), np.int8), ws=np.ones(4, np.float32),
                                 shape=np.array([12, 12])),
    "cast and transposed": quantised_linear(
        [weight_dq(axis=1), make("Cast", ["Wd"], ["c"], to=1), moved("Transpose", start="c")],
        "moved", W=SQUARE, ws=SCALES),
    "gemm": quantised_linear([weight_dq(axis=1)], W=SQUARE, last=[
        make("Gemm", ["flat", "Wd"], ["y"], "linear", transB=1),
        make("Flatten", ["xd"], ["flat"], axis=2)]),
}


@pytest.mark.parametrize("name", WRONG)
def test_scales_along_the_wrong_axis_fail_through_every_mover(name):
    found = {(violation.node, violation.rule) for violation in check_qdq(WRONG[name])}
    assert ("wdq", "axis") in found


def test_a_scale_of_the_wrong_sign_fails_behind_identity():
    model = quantised_linear([make("Neg", ["s0"], ["ws"]), weight_dq()], s0=SCALES, without=["ws"])
    assert {v.rule for v in check_qdq(model)} == {"scale"}


def test_a_zero_point_behind_cast_is_read():
    model = quantised_linear([make("Cast", ["z0"], ["xz"], to=TensorProto.INT8), weight_dq()],
                             z0=np.int64(5), without=["xz"])
    assert {(v.node, v.rule) for v in check_qdq(model)} == {("q", "zero-point"),
                                                            ("dq", "zero-point")}


def branches(residual: bool) -> onnx.ModelProto:
    """If with an INT8 Linear in either branch, whose tensors have the same names; or a Q/DQ Add."""
    def branch() -> onnx.GraphProto:
        linear = quantised_linear([weight_dq()])
        graph = onnx.GraphProto()
        graph.CopyFrom(linear.graph)
        del graph.input[:]
        if residual:
            graph.node.add(op_type="Add", input=["xd", "x"], output=["unread"])
        return graph
    node = make("If", ["flag"], ["y"], "choose", then_branch=branch(), else_branch=branch())
    return model_of([node], {"flag": np.array(True)})


def test_branches_are_read_and_their_nameless_nodes_named():
    good, bad = branches(False), branches(True)
    assert check_qdq(good) == [] and summary(good) == "2 of 2 layers with weights are INT8"
    assert {(v.node, v.rule) for v in check_qdq(bad)} == {
        ("node 4 (Add) in then_branch of choose", "placement"),
        ("node 4 (Add) in else_branch of choose", "placement")}


def test_a_branch_may_dequantise_what_was_quantised_outside():
    body = helper.make_graph([make("DequantizeLinear", ["xq", "xs", "xz"], ["y"], "inner")], "b",
                             [], [value("y", [1, 4, 16])])
    model = model_of(
        [make("QuantizeLinear", ["x", "xs", "xz"], ["xq"], "q"),
         make("If", ["flag"], ["y"], "choose", then_branch=body, else_branch=body)],
        {"xs": np.float32(0.02), "xz": np.int8(0), "flag": np.array(True)},
        outputs=[value("y", [1, 4, 16])])
    assert check_qdq(model) == []


def test_nameless_nodes_are_named_by_position():
    model = quantised_linear()
    for node in model.graph.node:
        node.name = ""
    model.graph.node.append(make("Add", ["xd", "x"], ["z"]))
    assert [str(v)[:24] for v in check_qdq(model)] == ["node 4 (Add): placement:"]


def functions(*bodies: list[onnx.NodeProto]) -> onnx.ModelProto:
    """y = f{last}(x); each function has the nodes of a body, from a to b."""
    protos = [helper.make_function(
        "here", f"f{i}", ["a"], ["b"], body,
        [helper.make_opsetid("", 17), helper.make_opsetid("here", 1)])
        for i, body in enumerate(bodies)]
    call = make(f"f{len(bodies) - 1}", ["x"], ["y"], "call", domain="here")
    return model_of([call], outputs=[value("y", [1, 4, 16])], functions=protos, domains=["here"])


def test_local_functions_are_inlined_and_refused_where_they_are_not_read():
    model = functions([make("Relu", ["a"], ["b"])])
    assert check_qdq(model) == [] and "1 local functions inlined" in summary(model)
    assert "does not read local functions" in str(check_qdq(model, "trt8.6")[0])
    foreign = functions([make("Relu", ["a"], ["b"], domain="com.microsoft")])
    assert {v.rule for v in check_qdq(foreign)} & {"operator", "valid"}


def test_local_functions_that_grow_without_bound_are_refused_at_once():
    double = [[make("Relu", ["a"], ["b"])]] + [
        [make(f"f{i}", ["a"], ["t"], domain="here"), make(f"f{i}", ["t"], ["b"], domain="here")]
        for i in range(60)]
    assert any("nodes once inlined" in str(v) for v in check_qdq(functions(*double)))
    assert any("recursive" in str(v) or "calls itself" in str(v) for v in check_qdq(functions(
        [make("f0", ["a"], ["b"], domain="here")])))


def test_constants_too_large_to_compute_are_left_alone():
    model = quantised_linear([make("ConstantOfShape", ["n"], ["ws"]), weight_dq()],
                             n=np.array([2**40]), without=["ws"])
    assert {v.rule for v in check_qdq(model)} == {"scale"}
    assert FlatIndex(model).value("ws") is None


def test_a_chain_of_20000_constants_is_left_alone():
    chain = [make("Identity", [f"s{i}"], [f"s{i + 1}"]) for i in range(20_000)]
    model = model_of([*chain, make("QuantizeLinear", ["x", "s20000"], ["y"])],
                     {"s0": np.float32(1)})
    assert {v.rule for v in check_qdq(model)} == {"scale", "pair"}


CPU = {  # constants of a Linear that onnxruntime runs -> what is advised
    "uint8, asymmetric": (quantised_linear(xz=np.uint8(117)), set()),
    "int8": (quantised_linear(), {"type"}),
    "int32 bias": (quantised_linear(
        [weight_dq(), make("DequantizeLinear", ["B", "ws", "bz"], ["Bd"], "bdq", axis=0)],
        last=[make("MatMul", ["xd", "Wd"], ["m"], "linear"), make("Add", ["m", "Bd"], ["y"], "a")],
        xz=np.uint8(128), B=np.arange(12, dtype=np.int32), bz=np.zeros(12, np.int32)),
        {"placement"}),
    "dynamic": (model_of(
        [make("DynamicQuantizeLinear", ["x"], ["xq", "s", "z"]),
         make("MatMulInteger", ["xq", "W", "z"], ["i"]), make("Cast", ["i"], ["y"], to=1)],
        {"W": W_T.T.copy()}), {"operator"}),
    "com.microsoft": (model_of(
        [make("FusedMatMul", ["x", "F"], ["y"], domain="com.microsoft")], {"F": FLOAT},
        domains=["com.microsoft"]), {"operator"}),
    "opset 21": (model_of([make("MatMul", ["x", "F"], ["y"])], {"F": FLOAT}, opset=21), set()),
    "opset 23": (model_of([make("MatMul", ["x", "F"], ["y"])], {"F": FLOAT}, opset=23), set()),
}


@pytest.mark.parametrize("name", CPU)
def test_what_onnxruntime_runs_is_told_apart_from_what_is_advised_against(name, tmp_path, capsys):
    model, advice = CPU[name]
    onnx.save(model, tmp_path / "m.onnx")
    main(["export", "check", str(tmp_path / "m.onnx"), "--target", "cpu"])
    out = capsys.readouterr().out
    found = check_qdq(model, "cpu")
    assert {v.rule for v in found} == advice and all(v.is_advice for v in found)
    assert ("runs, but advised against" if advice else "runs on cpu") in out


def test_what_onnxruntime_does_not_run_is_refused_in_its_words(tmp_path, capsys):
    model = model_of([make("NoSuchOp", ["x"], ["y"], domain="nobody")], domains=["nobody"])
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SystemExit) as stop:
        main(["export", "check", str(tmp_path / "m.onnx"), "--target", "cpu"])
    line = capsys.readouterr().err
    assert stop.value.code == 2 and "onnxruntime cannot load it" in line and "NoSuchOp" in line
    assert "m.onnx" in line and len(line.splitlines()) == 1
