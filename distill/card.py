"""The model card of a run, filled from what the run itself recorded."""
from collections.abc import Sequence
from pathlib import Path

from distill.config import RunConfig


def write_card(folder: Path, config: RunConfig, spec: dict, rows: Sequence[dict]) -> None:
    """Writes folder/MODEL_CARD.md: what the student is, what it learned from, what it scored, what
    it is not for."""
    clips = config.scenes.path or f"{config.scenes.train} rendered rooms x {config.scenes.clips_per_room} clips"
    tap = f"block {spec['block']}, t = {spec['k'] / 1000}, {spec['frames']} mode, mean of {spec['seeds']} noise draws"
    lines = [
        f"# {folder.name}: ViT-{config.student.model.size.title()} student of "
        f"{config.teacher.generator}",
        "",
        "One RGB frame [3,224,224] in [0,1] -> a video generator's features [D,14,14], "
        "standardised.",
        "", f"- Teacher: {config.teacher.generator} (weights {spec['weights']}), {tap}",
        f"- Clips: {clips}, {config.scenes.frames} frames each",
        f"- Start: {config.student.init} weights",
        f"- Training: {config.student.epochs} epochs of batches of {config.student.batch}, seeds "
        f"{', '.join(map(str, config.seeds))}",
        "- Configuration: config.yaml; machine and versions: env.json", ""
    ]
    if rows:
        lines += ["## Held-out rooms and furniture", "",
                  "| features | seed | delta1 | abs_rel | normal, deg | mIoU | cosine | recovery |",
                  "|---|---|---|---|---|---|---|---|"]
        for r in (r for r in rows if "miou" in r):
            lines.append(
                f"| {r['features']} | {r['seed']} | {r['delta1']:.3f} | {r['abs_rel']:.3f} | "
                f"{r['normal_deg']:.1f} | {r['miou']:.3f} | {_or_dash(r, 'cosine_mean')} | "
                f"{_or_dash(r, 'recovery')} |")
        lines.append("")
    for r in (r for r in rows if "match_descriptor" in r):
        lines += [
            "## Its own heads (student/heads.safetensors), same rooms", "",
            f"- depth delta1 {r['delta1']:.3f}, abs_rel {r['abs_rel']:.3f}; normals "
            f"{r['normal_deg']:.1f} deg",
            "- places found again within one of 14x14 cells, first frame to last: "
            f"{r['match_descriptor']:.3f} (the features themselves {r['match_features']:.3f}, RGB "
            f"patches {r['match_rgb']:.3f}, staying put {r['match_same_place']:.3f}, chance "
            f"{r['match_chance']:.3f})", ""
        ]
    lines += [
        "## Limits", "",
        "Trained on rendered rooms or the clips named above; real photographs differ. Features are "
        "per frame:",
        "no tracking, no metric scale guarantee. Licence of the weights: Apache-2.0.", ""
    ]
    (folder / "MODEL_CARD.md").write_text("\n".join(lines))


def _or_dash(row: dict, key: str) -> str:
    return f"{row[key]:.3f}" if key in row else "-"
