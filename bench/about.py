"""What a result is about: the run, its student and its teacher, as one row."""
from pathlib import Path

from distill.config import load_config
from records.files import sha256
from records.results import Row
from student.vit import load_student


def about_run(folder: Path) -> Row:
    """The row of kind `run`. Raises ValueError if the folder is no run or has no student."""
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder}: no run here (no config.yaml); make one with: vega3d distill run")
    folder = folder.resolve()  # runs/latest is a link: the result is of the run it names now
    config, student = load_config(folder / "config.yaml"), load_student(folder / "student")
    tap = config.teacher.tap
    clips = config.scenes.path or f"{config.scenes.train} rooms x {config.scenes.clips_per_room} clips"
    return {"kind": "run", "run": str(folder), "student": f"ViT-{student.config.size.title()}",
            "student_sha256": sha256(folder / "student" / "student.safetensors"), "depth": student.config.depth,
            "parameters_m": sum(p.numel() for p in student.parameters()) / 1e6, "feature_width": student.config.out_dim,
            "generator": Path(config.teacher.generator).name, "block": tap.block, "t": tap.k / 1000, "mode": tap.frames,
            "noise_draws": tap.seeds, "trained_on": str(clips), "frames_per_clip": config.scenes.frames,
            "seeds": len(config.seeds)}
