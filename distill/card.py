"""The model card of a run, and the table of its scores."""
from collections.abc import Iterable, Sequence
from pathlib import Path

from distill.config import RunConfig
from records.files import write_if_changed

COLUMNS = {"delta1": 3, "abs_rel": 3, "normal_deg": 1, "miou": 3, "cosine_mean": 3, "recovery": 3}


def write_card(folder: Path, config: RunConfig, spec: dict, rows: Sequence[dict]) -> None:
    """Writes folder/MODEL_CARD.md. spec: of the generator's tap; rows: those of accuracy.json."""
    scenes, student, generator = config.scenes, config.student, config.teacher.generator
    clips = scenes.path or f"{scenes.train} rendered rooms x {scenes.clips_per_room} clips"
    lines = [
        f"# {folder.name}: ViT-{student.model.size.title()} student of {generator}", "",
        "One RGB frame [3,224,224] in [0,1] -> features of a video generator [D,14,14], "
        "standardised per channel.", "",
        f"- **Teacher:** {generator} (weights {spec['weights']}), block {spec['block']}, t = "
        f"{spec['k'] / 1000}, {spec['frames']} mode, mean of {spec['seeds']} noise draws",
        f"- **Clips:** {clips}, {scenes.frames} frames each",
        f"- **Initial weights:** {student.init}",
        f"- **Training:** {student.epochs} epochs of batch {student.batch}, seeds "
        f"{', '.join(map(str, config.seeds))}",
        "- **Configuration:** config.yaml; machine and versions in env.json", ""
    ]
    if rows:
        lines += ["## Held-out rooms and furniture", "", accuracy_table(rows), ""]
    lines += [
        "## Limits", "",
        "Trained on the clips named above only; depth of photographs is not usable with heads from",
        "rendered rooms. Features are per frame: no tracking, no guaranteed metric scale.",
        "Licence of the weights: Apache-2.0.", ""
    ]
    write_if_changed("\n".join(lines), folder / "MODEL_CARD.md")


def accuracy_table(rows: Sequence[dict]) -> str:
    """Markdown: scores by seed and features, and those of the student's heads."""
    lines = [_line("features", "seed", COLUMNS), "|---" * (2 + len(COLUMNS)) + "|"]
    for row in rows:
        if "miou" in row:
            scores = [f"{row[k]:.{n}f}" if k in row else "-" for k, n in COLUMNS.items()]
            lines.append(_line(row["features"], row["seed"], scores))
    for row in rows:
        if "match_descriptor" in row:
            lines += ["", "Heads (student/heads.safetensors): depth delta1 "
                      f"{row['delta1']:.3f}, abs_rel {row['abs_rel']:.3f}; normals "
                      f"{row['normal_deg']:.1f} deg; cells matched within one of 14x14, first to "
                      f"last frame and back: {row['match_descriptor']:.3f} (features "
                      f"{row['match_features']:.3f}, RGB patches {row['match_rgb']:.3f}, same "
                      f"position {row['match_same_place']:.3f}, chance {row['match_chance']:.3f})"]
    return "\n".join(lines)


def _line(features: str, seed: str | int, scores: Iterable[str]) -> str:
    return f"| {features:17} | {seed:>4} | " + " | ".join(f"{s:>7}" for s in scores) + " |"
