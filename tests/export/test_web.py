"""Presets and the live page: one file with named outputs that says what torch says, and a page that
shows just that."""
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image

import vega3d
from bench.recipes.chromium import CHROMIUM, browser
from export.parity import GateError
from export.pipeline import Exporter
from export.presets import PRESETS, export_preset
from export.source import load_trained_run, to_input
from export.web import vendor
from export.web.page import CLIP, STATIC, write_page
from export.web.serve import serve_folder, server
from infer.model import Model
from infer.pictures import depth_colours, match, normal_colours, to_bytes
from records.files import sha256
from student.config import HeadsShape
from student.heads import OUTPUTS, Heads, fit_pca, save_heads
from tests.colours import contrast
from tests.export_run import EXPORTED, exported_run, gate

ROOT = Path(vega3d.__file__).parent


@cache
def run_with_heads() -> Path:
    """A copy of the exported run whose student has (untrained, but not blank) heads."""
    folder = shutil.copytree(exported_run(), exported_run().with_name("with_heads"))
    add_heads(folder, seed=0)
    return folder


def add_heads(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    opened = load_trained_run(folder)
    heads = Heads(HeadsShape(in_dim=64, width=16, descriptor_dim=16, student=opened.student_sha256))
    with torch.inference_mode():
        fit_pca(heads, opened.student(torch.from_numpy(to_input(opened.heldout.frames[:8]))))
    heads.depth.smooth.bias.data += 0.7
    save_heads(heads, folder / "student")


def exporter(folder: Path) -> Exporter:
    made = Exporter(load_trained_run(folder), EXPORTED, log=lambda _: None)
    made.gate = gate()  # the same student and frames
    return made


@pytest.fixture
def own_run(tmp_path) -> Path:
    return shutil.copytree(run_with_heads(), tmp_path / "run")


@cache
def web_files() -> dict[str, Path]:
    return {made.path.name: made.path for made in export_preset(exporter(run_with_heads()), "web")}


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_one_file_gives_features_and_all_that_an_app_draws():
    frames = to_input(load_trained_run(run_with_heads()).heldout.frames[:1])
    assert set(web_files()) == set(PRESETS["web"])
    for path in web_files().values():
        found = dict(
            zip(("features", *OUTPUTS),
                session(path).run(["features", *OUTPUTS], {"frames": frames}), strict=True))
        assert [found[name].shape for name in OUTPUTS] == [(1, 1, 56, 56), (1, 3, 56, 56),
                                                           (1, 16, 28, 28), (1, 3, 14, 14)]
        assert all(value.dtype == np.float32 for value in found.values())
        assert abs(np.linalg.norm(found["descriptors"], axis=1) - 1).max() < 0.01


def test_the_layout_is_that_of_the_hub():
    folder = next(iter(web_files().values())).parent.parent
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "vega3d-edge" and set(
        config["outputs"]) == {"features", *OUTPUTS}
    assert config["outputs"]["depth"]["unit"] == "m"
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["do_normalize"] is False and processor["crop_size"] == {
        "height": 224, "width": 224
    }
    assert "library_name: transformers.js" in (folder / "README.md").read_text()
    for name in ("model.onnx", "model_fp16.onnx"):  # static for browsers and phones
        shape = session(folder / "onnx" / name).get_inputs()[0].shape
        assert shape == [1, 3, 224, 224]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_what_transformers_js_takes_by_default_is_there(preset, own_run):
    """Its names for files: https://huggingface.co/docs/transformers.js/guides/dtypes."""
    suffix = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "int8": "_int8"}
    made = export_preset(exporter(own_run), preset)
    folder = made[0].path.parent.parent
    chosen = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert "device" not in chosen  # nobody knows the reader's GPU
    for asked in (chosen, *chosen.get("device_config", {}).values()):
        assert (folder / "onnx" / f"model{suffix[asked['dtype']]}.onnx").is_file()
    assert {file.path.name for file in made} == set(PRESETS[preset])
    for file in made:
        given = session(file.path).get_inputs()[0].shape
        open_batch = file.path.name == "model_quantized.onnx"  # fixed, it would run in float
        assert given[1:] == [3, 224, 224] and isinstance(given[0], str) == open_batch
        assert file.facts["input"]["shape"][0] == ("dynamic" if open_batch else 1)


def test_a_preset_for_several_frames_a_call(own_run):
    four = Exporter(load_trained_run(own_run), replace(EXPORTED, batch=4), log=lambda _: None)
    four.gate = gate()
    made, = export_preset(four, "mobile")
    frames = to_input(four.run.heldout.frames[:4])
    depth, = session(made.path).run(["depth"], {"frames": frames})
    assert depth.shape == (4, 1, 56, 56)


def test_the_half_file_is_half_and_its_heads_are_not():
    model = onnx.load(web_files()["model_fp16.onnx"])
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    heads = [
        kind for name, kind in kinds.items()
        if name.startswith("heads.") and name.endswith("weight")
    ]
    assert heads and set(heads) == {onnx.TensorProto.FLOAT}
    assert kinds["blocks.0.attn.qkv.weight_t"] == onnx.TensorProto.FLOAT16
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_files_are_kept_until_the_heads_change(own_run):
    first = export_preset(exporter(own_run), "mobile")
    again = export_preset(exporter(own_run), "mobile")
    assert [m.reused for m in first + again] == [False, True]
    add_heads(own_run, seed=1)
    changed, = export_preset(exporter(own_run), "mobile")
    assert not changed.reused and changed.facts["sha256"] != first[0].facts["sha256"]


def test_a_file_that_says_something_else_gets_no_name(own_run, monkeypatch):
    import export.presets as presets

    def wrong(heads, *args):
        with torch.no_grad():
            heads.depth.smooth.bias += 0.05
        model = traced(heads, *args)
        with torch.no_grad():
            heads.depth.smooth.bias -= 0.05
        return model

    traced = presets.traced
    monkeypatch.setattr(presets, "traced", wrong)
    with pytest.raises(GateError,
                       match=r"differ from the student's: depth_ratio 0\.05000 > 0\.001$"):
        export_preset(exporter(own_run), "mobile")
    assert not (own_run / "export" / "mobile" / "onnx").exists() or not list(
        own_run.glob("export/mobile/onnx/*.onnx"))


def test_a_student_without_heads_says_how_to_train_them(own_run):
    (own_run / "student" / "heads.safetensors").unlink()
    with pytest.raises(ValueError, match="no heads here; train them with: vega3d distill heads"):
        export_preset(exporter(own_run), "mobile")


# --- the folder


@pytest.fixture
def no_runtime(tmp_path) -> Path:
    """Stands in for onnxruntime-web where only the folder is looked at."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in (*vendor.FILES, "NOTICE"):
        (folder / (f"{name}.gz" if name.endswith(".wasm") else name)).write_text("stand-in")
    return folder


def test_the_page_is_whole_and_takes_nothing_from_outside(tmp_path, no_runtime):
    folder, _ = write_page(exporter(run_with_heads()), no_runtime, tmp_path / "page")
    script = (folder / "sw.js").read_text()
    listed = set(json.loads(re.search(r"FILES = (\[.*\]);", script)[1])) - {"./"}
    there = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert listed <= there and there - listed == {"sw.js", "serve.py", "ort/NOTICE"}
    facts = json.loads((folder / "page.json").read_text())
    for model in facts["models"]:
        assert sha256(folder / model["file"]) == model["sha256"]
    for backend in facts["runtime"].values():
        assert all((folder / path).is_file() for path in backend.values())
    for name in ("index.html", "style.css", "app.js", "worker.js", "network.js", "sources.js",
                 "xr.js", "sw.js"):
        assert not re.search(r"""https?://|["'(]//""", (folder / name).read_text()), name


def test_a_page_replaces_a_page_and_nothing_else(tmp_path, no_runtime):
    folder, _ = write_page(exporter(run_with_heads()), no_runtime, tmp_path / "page")
    (folder / "old.js").write_text("")
    write_page(exporter(run_with_heads()), no_runtime, folder)
    assert not (folder / "old.js").exists() and (folder / "index.html").is_file()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="holds something that is no page of ours"):
        write_page(exporter(run_with_heads()), no_runtime, mine)
    assert (mine / "thesis.tex").is_file()


def test_npm_out_of_reach_is_one_line_that_names_the_way_round(monkeypatch, tmp_path):
    def unreachable(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(vendor.shutil, "which", lambda _: None)
    monkeypatch.setattr(vendor.urllib.request, "urlopen", unreachable)
    with pytest.raises(ValueError,
                       match=r"npm cannot be reached \(no route to host\).* --ort FILE\.tgz"):
        vendor.runtime()
    (tmp_path / "other.tgz").write_bytes(b"something else")
    with pytest.raises(ValueError, match="sha512 differs"):
        vendor.runtime(tmp_path / "other.tgz")
    with pytest.raises(ValueError, match="no such file"):
        vendor.runtime(tmp_path / "gone.tgz")
    assert not list(tmp_path.glob("vega3d-edge/*"))


def test_the_server_lets_wasm_have_threads(tmp_path):
    (tmp_path / "a.mjs").write_text("export {}")
    with serving(tmp_path) as address, urllib.request.urlopen(f"{address}/a.mjs") as answer:
        assert answer.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert answer.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert answer.headers["Content-Type"] == "text/javascript"
    busy = server(tmp_path)
    with pytest.raises(ValueError, match=f"port {busy.server_port} cannot be used"):
        serve_folder(tmp_path, busy.server_port)
    busy.server_close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_what_is_behind_it(scheme):
    style = (STATIC /
             "style.css").read_text().split("@media (prefers-color-scheme: dark)")[scheme == "dark"]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", style.split("}")[0]))
    assert {"ink", "muted", "accent", "page", "card", "soft", "warn"} <= colours.keys()
    pairs = [(words, behind) for words in ("ink", "muted", "warn")
             for behind in ("page", "card", "soft")]
    for words, behind in [*pairs, ("on-accent", "accent")]:
        assert contrast(colours[words], colours[behind]) >= 4.5, f"{words} on {behind}"


# --- the page in a browser


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The open page: (browser, its folder). Chromium, WASM, two threads."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here; the folder is checked above")
    try:
        runtime = vendor.runtime()
    except ValueError as error:
        pytest.skip(f"onnxruntime-web is not here: {error}")
    folder, _ = write_page(exporter(run_with_heads()), runtime,
                           tmp_path_factory.mktemp("web") / "page")
    with serving(folder) as address, browser() as chromium:
        chromium.open(f"{address}/?backend=wasm&threads=2")
        chromium.wait("window.page?.state.view", 120)
        yield chromium, folder, address


def clip_frame(i: int) -> np.ndarray:
    facts = json.loads(CLIP.read_text())
    sheet = np.asarray(Image.open(CLIP.with_name(facts["file"])).convert("RGB"))
    y, x = (n * facts["side"] for n in divmod(i, facts["columns"]))
    return sheet[y:y + 224, x:x + 224].transpose(2, 0, 1)


@pytest.mark.parametrize(("model", "mean", "most"), [("fp16", 0.3, 4), ("int8", 1.5, 16)])
def test_the_overlay_is_what_python_draws(page, model, mean, most):
    chromium, folder, _ = page
    chromium.ask(
        f"""(() => {{ const select = document.getElementById('model'); select.value = '{model}';
        page.state.view = null; select.dispatchEvent(new Event('change')); }})()""")
    chromium.wait("page.state.view && document.getElementById('message').textContent === ''")
    file = folder / next(m["file"] for m in json.loads((folder / "page.json").read_text())["models"]
                         if m["name"] == model)
    answers = {name: value[0] for name, value in Model(file)(clip_frame(5)[None]).items()}
    wanted = {
        "depth": depth_colours(answers["depth"][0]), "normals": normal_colours(answers["normals"]),
        "geometry": to_bytes(answers["colours"])
    }
    for mode, picture in wanted.items():
        shown = np.array(chromium.ask(f"page.frame(5, '{mode}').then(f => f.overlay)")).reshape(
            *picture.shape[:2], 4)
        off = np.abs(shown[..., :3] - picture.astype(int))
        assert picture.std() > 1 and off.mean() < mean and np.percentile(
            off, 99) <= most, (mode, off.mean(), off.max())
        assert np.abs(shown[..., :3] - np.roll(picture, 7, 1).astype(int)).mean() > off.mean()


def test_a_tapped_place_is_found_where_python_finds_it(page):
    chromium, folder, _ = page
    chromium.ask(
        "(async () => { window.a = await page.frame(0); window.b = await page.frame(30); })()")
    name = chromium.ask("document.getElementById('model').value")
    file = folder / next(m["file"] for m in json.loads((folder / "page.json").read_text())["models"]
                         if m["name"] == name)
    first, second = Model(file)(clip_frame(0)[None]), Model(file)(clip_frame(30)[None])
    for x, y in ((0.31, 0.52), (0.8, 0.4), (0.02, 0.97)):
        found = chromium.ask(
            f"page.find(b.answers.descriptors, page.describe(a.answers.descriptors, {x}, {y}))")
        u, v, likeness = match(first["descriptors"][0], second["descriptors"][0], x, y)
        assert found["likeness"] == pytest.approx(likeness.max(), abs=0.02)
        back = chromium.ask("page.leadsBack(a.answers.descriptors, "
                            f"{x}, {y}, b.answers.descriptors, {json.dumps(found)})")
        u2, v2, _ = match(second["descriptors"][0], first["descriptors"][0], found["x"], found["y"])
        distance = np.hypot(u2 - x, v2 - y)
        assert abs(distance - 0.1) < 0.04 or back == (distance < 0.1)
        assert (found["x"], found["y"]) == pytest.approx((u, v), abs=0.04)


def test_the_page_says_what_it_runs_on_and_keeps_quiet(page):
    chromium, _, _ = page
    assert chromium.ask("crossOriginIsolated")
    assert chromium.ask("document.getElementById('fact-backend').textContent") == "WASM, 2 threads"
    assert "WASM was asked for" in chromium.ask("document.getElementById('why').textContent")
    assert chromium.complaints == []
    for width in (360, 390, 768, 1280):
        chromium.window(width, 800, phone=width < 700)
        wide, inside = chromium.ask("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= inside, width


def test_bad_input_is_told_in_words_and_the_page_goes_on(page):
    chromium, _, _ = page
    message = "document.getElementById('message').textContent"
    chromium.ask(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('', "
        "'NotAllowedError'));document.getElementById('use-camera').click()")
    chromium.wait(f"{message}.includes('camera was not allowed')")
    for name, kind, told in (("broken.png", "image/png", "not a whole picture"),
                             ("broken.mp4", "video/mp4", "no video that this browser plays")):
        chromium.ask(
            f"""(() => {{ const d = new DataTransfer(), f = document.getElementById('file');
            d.items.add(new File([new Uint8Array(60)], '{name}', {{ type: '{kind}' }})); f.files = d.files;
            f.dispatchEvent(new Event('change')); }})()""")
        chromium.wait(f"{message}.includes('{told}')")
    chromium.ask("document.getElementById('use-clip').click()")
    chromium.wait(f"{message} === '' && page.state.source.name === 'bundled clip'")
    assert chromium.complaints == []


def test_after_one_visit_it_works_without_a_server(page):
    chromium, _, address = page
    chromium.wait("await navigator.serviceWorker.ready")
    chromium.wait(
        "await caches.keys().then(async ([k]) => (await (await caches.open(k)).keys()).length > 15)"
    )
    chromium.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0,
                  uploadThroughput=0)
    try:
        chromium.open(f"{address}/?backend=wasm&threads=2&again")
        chromium.wait("window.page?.state.view", 120)
        assert chromium.ask("crossOriginIsolated")
    finally:
        chromium.call("Network.emulateNetworkConditions", offline=False, latency=0,
                      downloadThroughput=-1, uploadThroughput=-1)


# --- consumers


@pytest.fixture
def two_photos(tmp_path) -> list[Path]:
    paths = [tmp_path / f"{i}.png" for i in (0, 30)]
    for path, i in zip(paths, (0, 30), strict=True):
        Image.fromarray(clip_frame(i).transpose(1, 2, 0)).save(path)
    return paths


def test_the_python_example_says_what_the_file_says(two_photos):
    command = [
        sys.executable, "examples/geometry.py",
        str(web_files()["model.onnx"]), *map(str, two_photos)
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    depth = Model(web_files()["model.onnx"])(clip_frame(0)[None])["depth"][0, 0]
    low, high, middle = map(float, re.findall(r"\d+\.\d+", done.stdout.splitlines()[0]))
    assert (low, high, middle) == pytest.approx((depth.min(), depth.max(), depth[28, 28]),
                                                abs=0.006)
    assert len(done.stdout.splitlines()) == 5
    assert len((ROOT / "examples" / "geometry.py").read_text().splitlines()) <= 60


def test_the_cpp_example_says_what_the_file_says(tmp_path):
    headers = [Path(p) for p in (os.environ.get("ORT_INCLUDE", ""), "/usr/include/onnxruntime",
               Path.home() / ".cache" / "vega3d-edge" / "onnxruntime-headers")]
    include = next((p for p in headers if (p / "onnxruntime_cxx_api.h").is_file()), None)
    library = next(Path(ort.__file__).parent.glob("capi/libonnxruntime.so.*"), None)
    compiler = shutil.which("g++") or shutil.which("clang++")
    if not (include and library and compiler):
        pytest.skip(
            f"compiler {compiler}, onnxruntime's headers {include}, its library {library}: all are "
            "needed (headers: sh examples/cpp/headers.sh DIR, then ORT_INCLUDE=DIR)")
    for name in ("libonnxruntime.so", "libonnxruntime.so.1"):
        (tmp_path / name).symlink_to(library)
    program = tmp_path / "geometry"
    subprocess.run([
        compiler, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", f"-isystem{include}",
        "examples/cpp/geometry.cpp", f"-L{tmp_path}", "-lonnxruntime", f"-Wl,-rpath,{tmp_path}",
        "-o",
        str(program)
    ], cwd=ROOT, check=True)
    Image.fromarray(clip_frame(0).transpose(1, 2, 0)).save(tmp_path / "photo.ppm")
    done = subprocess.run([program, web_files()["model.onnx"], tmp_path / "photo.ppm"],
                          capture_output=True, text=True)
    answers = {k: v[0] for k, v in Model(web_files()["model.onnx"])(clip_frame(0)[None]).items()}
    said = list(map(float, re.findall(r"-?\d+\.\d+", done.stdout)))
    assert said == pytest.approx([answers["depth"].mean(), answers["depth"][0, 28, 28],
                                  *answers["normals"][:, 28, 28]], abs=2e-3), done.stderr
    (tmp_path / "cut.ppm").write_bytes(b"P6 224 224 255\n" + bytes(99))
    cut = subprocess.run([program, web_files()["model.onnx"], tmp_path / "cut.ppm"],
                         capture_output=True, text=True)
    assert cut.returncode == 1 and "ends early" in cut.stderr


class serving:
    """A folder under http://127.0.0.1:PORT while the block runs."""

    def __init__(self, folder: Path):
        self.server = server(folder)

    def __enter__(self) -> str:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{self.server.server_port}"

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
