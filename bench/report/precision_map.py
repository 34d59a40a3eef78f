"""The report's precision maps: for each exported file a grid of blocks and layers, each cell its
precision."""
from collections.abc import Sequence

from bench.report.axes import WIDTH, chart, text
from bench.report.html import Html, el
from bench.report.layer_precision import SLOTS
from records.results import Results, Row

LEFT, TOP, HEIGHT = 40, 34, 17  # chart units: of the block numbers, of the layer names, of a row
SHORT = {"fp32": "32", "fp16": "16", "bf16": "16", "int8": "8"}
# outside the blocks: one cell for a row
SPANS = {"patch_embed": (0, len(SLOTS)), "head": (1, len(SLOTS) - 1)}
CLASS = {"int8": "int8", "fp16": "half", "bf16": "half", "fp32": "full"}


def precision_maps(results: Results) -> list[tuple[Row, Html]]:
    """(a layer row of the file, its map) for each file whose layers do not all compute alike."""
    rows = results.of("layer")
    found = []
    for artefact in dict.fromkeys(row["artefact"] for row in rows):
        own = [row for row in rows if row["artefact"] == artefact]
        if len({row["precision"] for row in own}) > 1:
            found.append((own[0], _map(own)))
    return found


def _map(rows: Sequence[Row]) -> Html:
    blocks = sorted({row["block"] for row in rows})
    width = (WIDTH - LEFT - 6) / len(SLOTS)
    depth = max(blocks)
    parts: list[Html] = [text(LEFT + (i + 0.5) * width, TOP - 8, slot, "small", "middle")
                         for i, slot in enumerate(SLOTS)]
    for y, block in enumerate(blocks):
        top = TOP + y * HEIGHT
        name = "patch" if block < 0 else "head" if block == depth else f"{block}"
        parts.append(text(LEFT - 6, top + 12, name, "small", "end"))
        for row in (row for row in rows if row["block"] == block):
            column, span = SPANS.get(row["slot"]) or (SLOTS.index(row["slot"]), 1)
            parts += [
                el("rect", x=LEFT + column * width + 1, y=top + 1, width=span * width - 2,
                   height=HEIGHT - 2, rx=3, class_=f"cell {CLASS.get(row['precision'], 'full')}"),
                text(LEFT + (column + span / 2) * width, top + 12.5,
                     SHORT.get(row["precision"], "?"), "cellmark", "middle")
            ]
    return chart("Precision of every layer", _said(rows), TOP + len(blocks) * HEIGHT + 4, parts)


def _said(rows: Sequence[Row]) -> str:
    """In words, for who cannot see the grid."""
    parts = []
    for slot in dict.fromkeys(row["slot"] for row in rows):
        kinds: dict[str, int] = {}
        for row in rows:
            if row["slot"] == slot:
                kinds[row["precision"]] = kinds.get(row["precision"], 0) + 1
        parts.append(f"{slot}: " + ", ".join(f"{kind} in {count}" for kind, count in kinds.items()))
    return "; ".join(parts)
