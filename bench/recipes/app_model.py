"""An app's outputs on held-out rooms: by the torch model and by every exported preset.

    python -m bench.recipes.app_model RUN [RUN ...] --out bench/results/app_model.json

RUN: finished `vega3d distill run`s; `vega3d export onnx --preset edge` writes the files. Columns:
those of distill.heads.score; delta1_vs_fp32: a file's delta1 less that of the torch model.
"""
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from distill.heads import Predict, predictions, score
from distill.run import open_distill_run
from export.graph.session import OnnxModel
from records.environment import environment
from records.files import sha256
from records.options import RecipeParser
from records.results import Row, measured, save
from student.heads import StudentWithHeads, load_heads
from vega3d import run_recipe


def main() -> None:
    parser = RecipeParser("app_model", __doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = [row for run in args.runs for row in app_rows(run)]
    save(measured(args.out.stem, rows, environment()), args.out)


def app_rows(folder: Path) -> Iterator[Row]:
    """The torch model's row of each seed, and after the first seed's one of each preset's file."""
    run = open_distill_run(folder)
    test = run.examples("test")
    for seed in run.config.seeds:
        student, of = run.student(seed), run.student_folder(seed)
        heads = load_heads(of, sha256(of / "student.safetensors")).to(run.device)
        models: dict[Path, Predict] = {
            of / "student.safetensors": predictions(StudentWithHeads(student, heads))}
        if seed == run.config.seeds[0]:
            models |= {path: onnx_predictions(path, run.device)
                       for path in sorted(folder.glob("export/*/onnx/*.onnx"))}
        fp32 = None
        for path, predict in models.items():
            found = score(predict, test, heads.shape, student)
            fp32 = found["delta1"] if fp32 is None else fp32
            yield {"model": str(path.relative_to(folder)), "sha256": sha256(path), "seed": seed,
                   **found, "match": found["match_descriptor"],
                   "delta1_vs_fp32": found["delta1"] - fp32}


def onnx_predictions(path: Path, device: torch.device) -> Predict:
    model = OnnxModel(path, optimise=True)
    names = [output.name for output in model.session.get_outputs()]

    def predict(frames: Tensor) -> dict[str, Tensor]:
        outputs = model.outputs(frames.cpu().numpy())
        return {name: torch.from_numpy(x).to(device)
                for name, x in zip(names, outputs, strict=True)}

    return predict


if __name__ == "__main__":
    run_recipe(main)
