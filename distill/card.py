"""The results of a run as text: its model card, and the table that is printed at its end."""
from collections.abc import Sequence
from pathlib import Path

from distill.config import RunConfig


def write_card(folder: Path, config: RunConfig, spec: dict, rows: Sequence[dict]) -> None:
    """Writes folder/MODEL_CARD.md. spec: of the generator's tap; rows: those of accuracy.json."""
    lines = _facts(folder.name, config, spec)
    if rows:
        lines += _dense_scores(rows)
    for row in rows:
        if "match_descriptor" in row:
            lines += _heads_scores(row)
    lines += [
        "## Limits", "",
        "Trained on rendered rooms or the clips named above; real photographs differ. Features are "
        "per frame:",
        "no tracking, no metric scale guarantee. Licence of the weights: Apache-2.0.", ""
    ]
    (folder / "MODEL_CARD.md").write_text("\n".join(lines))


def accuracy_table(rows: Sequence[dict]) -> str:
    """The rows of accuracy.json for a terminal."""
    lines = [f"{'features':16} {'seed':>4} {'delta1':>7} {'abs_rel':>8} {'normal':>7} {'mIoU':>6} "
             f"{'recovery':>9}"]
    for r in rows:
        if "miou" in r:
            recovery = f"{r['recovery']:9.2f}" if "recovery" in r else " " * 9
            lines.append(f"{r['features']:16} {r['seed']:4} {r['delta1']:7.3f} {r['abs_rel']:8.3f} "
                         f"{r['normal_deg']:6.1f}° {r['miou']:6.3f} {recovery}")
    for r in rows:
        if "match_descriptor" in r:
            lines.append(
                f"student's heads: delta1 {r['delta1']:.3f}, normals {r['normal_deg']:.1f}°, "
                f"matches {r['match_descriptor']:.2f} (RGB patches {r['match_rgb']:.2f}, chance "
                f"{r['match_chance']:.2f})")
    return "\n".join(lines)


def _facts(name: str, config: RunConfig, spec: dict) -> list[str]:
    scenes, student, generator = config.scenes, config.student, config.teacher.generator
    clips = scenes.path or f"{scenes.train} rendered rooms x {scenes.clips_per_room} clips"
    tap = (f"block {spec['block']}, t = {spec['k'] / 1000}, {spec['frames']} mode, mean of "
           f"{spec['seeds']} noise draws")
    return [
        f"# {name}: ViT-{student.model.size.title()} student of {generator}", "",
        "One RGB frame [3,224,224] in [0,1] -> a video generator's features [D,14,14], "
        "standardised.", "",
        f"- Teacher: {generator} (weights {spec['weights']}), {tap}",
        f"- Clips: {clips}, {scenes.frames} frames each",
        f"- Start: {student.init} weights",
        f"- Training: {student.epochs} epochs of batches of {student.batch}, seeds "
        f"{', '.join(map(str, config.seeds))}",
        "- Configuration: config.yaml; machine and versions: env.json", ""
    ]


def _dense_scores(rows: Sequence[dict]) -> list[str]:
    lines = ["## Held-out rooms and furniture", "",
             "| features | seed | delta1 | abs_rel | normal, deg | mIoU | cosine | recovery |",
             "|---|---|---|---|---|---|---|---|"]
    for r in rows:
        if "miou" in r:
            lines.append(
                f"| {r['features']} | {r['seed']} | {r['delta1']:.3f} | {r['abs_rel']:.3f} | "
                f"{r['normal_deg']:.1f} | {r['miou']:.3f} | {_or_dash(r, 'cosine_mean')} | "
                f"{_or_dash(r, 'recovery')} |")
    return [*lines, ""]


def _heads_scores(row: dict) -> list[str]:
    return [
        "## The student's heads (student/heads.safetensors), same rooms", "",
        f"- depth delta1 {row['delta1']:.3f}, abs_rel {row['abs_rel']:.3f}; normals "
        f"{row['normal_deg']:.1f} deg",
        "- cells matched within one of 14x14 cells, first frame to last and back: "
        f"{row['match_descriptor']:.3f} (the features {row['match_features']:.3f}, RGB patches "
        f"{row['match_rgb']:.3f}, same position {row['match_same_place']:.3f}, chance "
        f"{row['match_chance']:.3f})", ""
    ]


def _or_dash(row: dict, key: str) -> str:
    return f"{row[key]:.3f}" if key in row else "-"
