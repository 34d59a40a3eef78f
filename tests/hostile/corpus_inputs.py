"""Verbs that make a folder, with an input that is missing or holds other files: none is left."""
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.hostile.case import Case
from tests.hostile.corpus_files import Make
from tests.hostile.corpus_pictures import picture
from tests.scenes.rgbd_scenes import save

# INPUT stands for the bad path; outputs are in folders that are not there
COMMANDS = (
    "scenes render --n 1 --furniture INPUT --out new/clips",
    "scenes pack --library INPUT --out new/pack.zip", "scenes show INPUT --out new/sheet.png",
    "scenes import scannet INPUT --out new/clips", "scenes import vsibench INPUT --out new/clips",
    "teacher prompt ./INPUT --out new/prompt.safetensors",
    "teacher train --clips INPUT --data new/data --out new/teacher",
    "teacher train --generator ./INPUT --out new/teacher",
    "teacher train --tuning.lm ./INPUT --out new/teacher",
    "teacher pretrain --furniture INPUT --out new/generator",
    "teacher pretrain --init INPUT --out new/generator",
    "teacher probe --rgbd INPUT --out new/probe.json",
    "teacher search --generator ./INPUT --out new/search.json --work new/work",
    "distill run --scenes.path INPUT --runs new/runs", "distill adapt INPUT --runs new/runs",
    "distill heads --student INPUT", "export onnx --run INPUT",
    "bench --run INPUT --out new/bench", "bench latency INPUT --out new/bench",
    "bench real rec INPUT --out new/real", "bench report --results INPUT --out new/report.html",
    "infer INPUT -o new/out", "infer photo.png INPUT -o new/out",
)
MORE = (  # as heavy cases: their kinds are above
    "teacher train --semantic ./INPUT --out new/teacher",
    "teacher probe --generators wan-nano --rooms INPUT --out new/probe.json",
    "teacher probe --furniture INPUT --out new/probe.json",
    "teacher search --furniture INPUT --out new/search.json --work new/work",
    "distill run --scenes.furniture INPUT --runs new/runs",
    "export trt --run INPUT --target jetson", "export web --ort INPUT --out new/page",
    "export openvino --run INPUT", "export coreml --run INPUT", "export litert --run INPUT",
    "bench accuracy --run INPUT --out new/bench", "bench real INPUT --out new/real",
)


def inputs() -> Iterator[Case]:
    for command in (*COMMANDS, *MORE):
        yield Case("input", f"{command}: missing", _with(command, lambda path: None), "INPUT",
                   heavy=command in MORE)
        yield Case("input", f"{command}: other files", _with(command, _other_files), "INPUT",
                   heavy=True)


def _other_files(path: Path) -> None:
    path.mkdir()
    (path / "README.txt").write_text("hello\n")


def _with(command: str, write: Callable[[Path], object]) -> Make:
    def make(folder: Path) -> list[str]:
        write(folder / "INPUT")
        if " rec " in command:
            save(folder / "rec", "plain", 12)
        if "photo" in command:
            (folder / "photo.png").write_bytes(picture())
        return command.split()
    return make


CORPUS = (inputs,)
