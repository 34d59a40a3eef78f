"""How much of the generator's gain the shipped student and its INT8 file keep.

    python -m bench.recipes.shipped_recovery RUN --out shipped_recovery.json

RUN is a finished `vega3d distill run` on rendered rooms. In its dense teachers, those of each of
its seeds, the features of student/weights/vit-ti and of infer/model replace the generator's. OUT
has these rows below those of RUN's teachers and controls.
"""
from pathlib import Path

from tyro.conf import Positional

from bench.accuracy.student_features import FileTower, load_file, stored_stream
from bench.artefacts import find
from distill.run import open_distill_run
from distill.stages import score_student
from infer.model import SHIPPED as SHIPPED_INT8
from records.environment import environment
from records.files import read_json, spec_digest
from records.results import measured, save
from student.config import SHIPPED
from student.vit import load_student
from teacher.data.dataset import Examples
from teacher.data.feature_store import FeatureStore, fill
from vega3d import run_recipe


def main(run: Positional[Path], out: Path = Path("shipped_recovery.json")) -> None:
    opened = open_distill_run(run)
    student = load_student(SHIPPED, spec_digest(opened.tower.spec)).to(opened.device)
    recorded = read_json(run / "accuracy.json", "run again: vega3d distill run", kind=list)
    file, ids = find(SHIPPED_INT8)[0][0], opened.source.ids("test")
    tower = FileTower("shipped_int8", file.sha256, student.config.out_dim, load_file(file))
    store = FeatureStore(run / "bench" / "features", tower.spec,
                         opened.stores["generative"].spec["source"])
    fill(store, tower, opened.source, ids, opened.device)
    test = Examples(opened.source, ids, {**opened.stores, "int8": store}, opened.device)
    rows = [row for row in recorded if row["head"] == "dense" and "student" not in row["features"]]
    for seed in opened.config.seeds:
        for name, stream in {"shipped_fp32": None,
                             "shipped_int8": stored_stream(student, "int8")}.items():
            rows.append(score_student(opened, student, name, test, seed, recorded, stream))
    save(measured(out.stem, rows, environment()), out)


if __name__ == "__main__":
    run_recipe(main)
