"""Where an engine's time goes, from what trt.sh brought back: trt_layers.py trt_logs.tgz RESULT.json OUT.json

One row an engine: milliseconds of a pass by kind of work. By the kernels that CUPTI saw; where there are none, by
TensorRT's own layers (whose names tell less: what its compiler fused is one layer).
"""
import json
import re
import sys
import tarfile
from pathlib import Path

from bench.h200.trt import MODELS
from bench.h200.trt_plan import VARIANTS
from records.results import Results, Row, load, save

KINDS = (  # the first whose words are in a kernel's name; Myelin names a kernel after the steps that it fused
    # one kernel (mha), or softmax between products of two activations: "nn" among the TF32 ones, weights come as "tn"
    ("attention_ms", r"[mM][hH][aA]|flash|[sS]oftmax|Sof|ExpSum|gemm_f32f32_\w+_nn_n"),
    ("gemm_int8_ms", r"(gemm|conv|cutlass|xmma).*(i8[if]|s8_|int8|imma)|imma"),
    ("gemm_half_ms", r"(gemm|conv|cutlass|xmma).*(f16|h16|h884|hmma|16816|half)|hmma"),
    ("gemm_float_ms", r"gemm|conv|cutlass|xmma"),
    ("gelu_ms", r"[gG]elu|erf|tanh|Erf|Tan"),                       # with the quantise step after it
    ("norm_ms", r"[nN]orm|mean|Mea|Var|[rR]sqrt"),                  # with the residual add and quantise step about it
    ("quantise_reformat_ms", r"[qQ]uant|Qua|Rou|Cas|[cC]opy|[rR]eformat|[pP]ermut|[tT]ransp|Tra|nhwcTo|memcpy|[cC]lip"),
)


def kind(name: str) -> str:
    return next((kind for kind, words in KINDS if re.search(words, name)), "other_ms")


def told(name: str, content: list[dict]) -> Row:
    """The row of a file such as kernels.time-s-b32.int8-mlp.json."""
    match = re.fullmatch(r"(kernels|layers)\.time-(\w+)-b(\d+)\.(.+)\.json", name)
    if match is None:
        raise ValueError(f"{name}: not a profile of trt.py")
    source, size, batch, variant = match.groups()
    row: Row = {"model": MODELS[size], "batch": int(batch), "variant": variant,
                "precision": VARIANTS[variant].precision, "by": source,
                "launches": round(sum(part.get("count", 1) for part in content)),
                "total_ms": sum(part["ms"] for part in content)}
    for part in content:
        work = kind(part["name"] if source == "kernels" else f"{part['name']} {part['tactic']}")
        row[work] = row.get(work, 0.0) + part["ms"]
    return row


def rows(logs: Path) -> list[Row]:
    """Every engine once: by its kernels, or else by its layers; the plain ones of each place first."""
    found: dict[tuple, Row] = {}
    with tarfile.open(logs) as archive:
        names = sorted((name for name in archive.getnames() if re.search(r"(^|/)(kernels|layers)\.time-", name)),
                       key=lambda name: "kernels." not in name)
        for name in names:
            file = archive.extractfile(name)
            content = json.load(file) if file else []
            if content:
                row = told(Path(name).name, content)
                found.setdefault((row["model"], row["batch"], row["variant"]), row)
    plain = ("fp16", "int8", "fp32")
    return sorted(found.values(), key=lambda row: (row["model"], row["variant"] not in plain, row["total_ms"]))


def main(logs: Path, result: Path, out: Path) -> None:
    measured = load(result)
    command = f"python3 bench/h200/trt_layers.py {logs.name} {result.name} {out.name}; {measured.command}"
    save(Results(out.stem, command, measured.commit, measured.env, rows(logs)), out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
