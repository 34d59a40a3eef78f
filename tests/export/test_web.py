"""Presets, one file with named outputs equal to torch's, and the live page that shows them."""
import base64
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import threading
import urllib.error
import urllib.request
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from string import Template
from typing import Any

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
from infer.pictures import depth_colours, normal_colours, to_bytes
from records.files import cache_folder, sha256
from student.config import HeadsShape
from student.heads import Heads, fit_pca, save_heads
from tests.colours import contrast
from tests.export_run import EXPORTED, exported_run, gate
from tests.point_match import match

ROOT = Path(vega3d.__file__).parent
SHAPE = HeadsShape(in_dim=64, width=16, descriptor_dim=16, canonical_focal=224.0)
OUTPUTS = SHAPE.outputs


@cache
def run_with_heads() -> Path:
    """A copy of the exported run whose student has (untrained, but not blank) heads."""
    folder = shutil.copytree(exported_run(), exported_run().with_name("with_heads"))
    add_heads(folder, seed=0)
    return folder


def add_heads(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    opened = load_trained_run(folder)
    heads = Heads(replace(SHAPE, student=opened.student_sha256))
    with torch.inference_mode():
        fit_pca(heads, opened.student(torch.from_numpy(to_input(opened.heldout.frames[:8]))))
    heads.depth.scale[2].bias.data += 0.7
    save_heads(heads, folder / "student")


def exporter(folder: Path) -> Exporter:
    exporter = Exporter(load_trained_run(folder), EXPORTED, log=lambda _: None)
    exporter.gate = gate()  # the same student and frames
    return exporter


@pytest.fixture
def run_copy(tmp_path) -> Path:
    return shutil.copytree(run_with_heads(), tmp_path / "run")


@cache
def web_files() -> dict[str, Path]:
    exported = export_preset(exporter(run_with_heads()), "web")
    return {file.path.name: file.path for file in exported}


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_one_file_has_the_features_and_all_head_outputs():
    frames = to_input(load_trained_run(run_with_heads()).heldout.frames[:1])
    assert set(web_files()) == set(PRESETS["web"])
    for path in web_files().values():
        names = ["features", *OUTPUTS]
        outputs = dict(zip(names, session(path).run(names, {"frames": frames}), strict=True))
        assert [outputs[name].shape for name in OUTPUTS] == [
            (1, 1, 112, 112), (1, 3, 56, 56), (1, 16, 28, 28), (1, 3, 14, 14), (1, 1, 112, 112)]
        assert all(value.dtype == np.float32 for value in outputs.values())
        assert abs(np.linalg.norm(outputs["descriptors"], axis=1) - 1).max() < 0.01


def test_the_layout_is_that_of_hugging_face():
    folder = next(iter(web_files().values())).parent.parent
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "vega3d-edge"
    assert set(config["outputs"]) == {"features", *OUTPUTS}
    assert config["outputs"]["depth"]["unit"] == "m" and config["canonical_focal"] == 224
    for path in web_files().values():
        metadata = session(path).get_modelmeta().custom_metadata_map
        assert json.loads(metadata["canonical_focal"]) == 224
        assert json.loads(path.with_name(path.name + ".json").read_text())["canonical_focal"] == 224
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    assert processor["do_normalize"] is False
    assert processor["crop_size"] == {"height": 224, "width": 224}
    assert "library_name: transformers.js" in (folder / "README.md").read_text()
    for name in ("model.onnx", "model_fp16.onnx"):  # static for browsers and phones
        shape = session(folder / "onnx" / name).get_inputs()[0].shape
        assert shape == [1, 3, 224, 224]


@pytest.mark.parametrize("preset", list(PRESETS))
def test_the_file_that_transformers_js_loads_by_default_exists(preset, run_copy):
    """Its file names: https://huggingface.co/docs/transformers.js/guides/dtypes."""
    suffix = {"fp32": "", "fp16": "_fp16", "q8": "_quantized", "int8": "_int8"}
    exported = export_preset(exporter(run_copy), preset)
    folder = exported[0].path.parent.parent
    default = json.loads((folder / "config.json").read_text())["transformers.js_config"]
    assert "device" not in default  # the user's GPU is unknown
    for config in (default, *default.get("device_config", {}).values()):
        assert (folder / "onnx" / f"model{suffix[config['dtype']]}.onnx").is_file()
    assert {file.path.name for file in exported} == set(PRESETS[preset])
    for file in exported:
        batch, *frame = session(file.path).get_inputs()[0].shape
        open_batch = file.path.name == "model_quantized.onnx"  # fixed, it would run in float
        assert frame == [3, 224, 224] and isinstance(batch, str) == open_batch
        assert file.facts["input"]["shape"][0] == ("dynamic" if open_batch else 1)


def test_heads_of_the_first_edition_export_as_they_did(run_copy):
    """No canonical camera: depth at 56x56, no confidence, no key."""
    opened = load_trained_run(run_copy)
    first = HeadsShape(in_dim=64, width=16, descriptor_dim=16, student=opened.student_sha256)
    heads = Heads(first).eval()
    save_heads(heads, run_copy / "student")
    (file,) = export_preset(exporter(run_copy), "mobile")
    outputs = [output.name for output in session(file.path).get_outputs()]
    assert outputs == ["features", "depth", "normals", "descriptors", "colours"]
    frames = to_input(opened.heldout.frames[:1])
    (depth,) = session(file.path).run(["depth"], {"frames": frames})
    with torch.inference_mode():
        features = opened.student(torch.from_numpy(frames))
        expected = heads(features, torch.from_numpy(frames))[0].numpy()
    np.testing.assert_allclose(depth, expected, rtol=1e-3)
    assert depth.shape == (1, 1, 56, 56) and "canonical_focal" not in file.facts


def test_a_preset_for_several_frames_a_call(run_copy):
    four = Exporter(load_trained_run(run_copy), replace(EXPORTED, batch=4), log=lambda _: None)
    four.gate = gate()
    (file,) = export_preset(four, "mobile")
    frames = to_input(four.run.heldout.frames[:4])
    (depth,) = session(file.path).run(["depth"], {"frames": frames})
    assert depth.shape == (4, 1, 112, 112)


def test_fp16_file_has_float32_heads():
    model = onnx.load(web_files()["model_fp16.onnx"])
    dtypes = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    heads = [dtype for name, dtype in dtypes.items()
             if name.startswith("heads.") and name.endswith("weight")]
    assert heads and set(heads) == {onnx.TensorProto.FLOAT}
    assert dtypes["blocks.0.attn.qkv.weight_t"] == onnx.TensorProto.FLOAT16
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT


def test_files_are_kept_until_the_heads_change(run_copy):
    first = export_preset(exporter(run_copy), "mobile")
    again = export_preset(exporter(run_copy), "mobile")
    assert [m.reused for m in first + again] == [False, True]
    add_heads(run_copy, seed=1)
    changed, = export_preset(exporter(run_copy), "mobile")
    assert not changed.reused and changed.facts["sha256"] != first[0].facts["sha256"]


def test_an_edit_of_export_makes_a_preset_again(run_copy, monkeypatch):
    export_preset(exporter(run_copy), "mobile")
    monkeypatch.setattr("export.presets.source_digest", lambda: "of edited code")
    reused = [export_preset(exporter(run_copy), "mobile")[0].reused for _ in range(2)]
    assert reused == [False, True]


def test_a_file_with_other_outputs_is_not_written(run_copy, monkeypatch):
    import export.presets as presets

    def traced_with_error(heads, *args):
        with torch.no_grad():
            heads.depth.scale[2].bias += 0.05
        model = traced(heads, *args)
        with torch.no_grad():
            heads.depth.scale[2].bias -= 0.05
        return model

    traced = presets.traced
    monkeypatch.setattr(presets, "traced", traced_with_error)
    with pytest.raises(GateError,
                       match=r"differ from the student's: depth_ratio 0\.05000 > 0\.001$"):
        export_preset(exporter(run_copy), "mobile")
    assert not (run_copy / "export" / "mobile" / "onnx").exists() or not list(
        run_copy.glob("export/mobile/onnx/*.onnx"))


def test_a_student_without_heads_says_how_to_train_them(run_copy):
    (run_copy / "student" / "heads.safetensors").unlink()
    with pytest.raises(ValueError, match="no heads here; train them with: vega3d distill heads"):
        export_preset(exporter(run_copy), "mobile")


# --- the folder


@pytest.fixture
def fake_runtime(tmp_path) -> Path:
    """A fake onnxruntime-web, for tests of the folder alone."""
    folder = tmp_path / "runtime"
    folder.mkdir()
    for name in vendor.STORED:
        content = f"stand-in {name}".encode()
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    (folder / "stray.txt").write_text("not of the package")
    return folder


def test_the_page_is_complete_and_loads_nothing_from_elsewhere(tmp_path, fake_runtime):
    folder, _ = write_page(exporter(run_with_heads()), fake_runtime, tmp_path / "page")
    script = (folder / "sw.js").read_text()
    files = listed_files(script)
    assert files.pop("./") == files["index.html"]
    listed = set(files)
    for name, digest in files.items():
        content = (folder / name).read_bytes()
        content = gzip.decompress(content) if name.endswith(".gz") else content
        assert hashlib.sha256(content).hexdigest() == digest, name
    present = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert listed <= present and present - listed == {
        "sw.js", "serve.py", "ort/NOTICE", ".vega3d-files.json"}
    facts = json.loads((folder / "page.json").read_text())
    for model in facts["models"]:
        assert sha256(folder / model["file"]) == model["sha256"]
    for backend in facts["runtime"].values():
        assert all((folder / path).is_file() for path in backend.values())
    for name in ("index.html", "style.css", "app.js", "worker.js", "network.js", "sources.js",
                 "xr.js", "sw.js"):
        assert not re.search(r"""https?://|["'(]//""", (folder / name).read_text()), name


def listed_files(script: str) -> dict[str, str]:
    """The files of a service worker and the SHA-256 of each."""
    return json.loads(re.search(r"FILES = (\{.*?\});", script, re.S)[1])


def test_a_page_replaces_a_page_and_nothing_else(tmp_path, fake_runtime):
    folder, _ = write_page(exporter(run_with_heads()), fake_runtime, tmp_path / "page")
    (folder / "CNAME").write_text("example.org")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    write_page(exporter(run_with_heads()), fake_runtime, folder)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    (folder / "style.css").write_text("body { color: hotpink }")
    with pytest.raises(ValueError, match=r"style\.css: exists .* changed since"):
        write_page(exporter(run_with_heads()), fake_runtime, folder)
    assert "hotpink" in (folder / "style.css").read_text()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "page.json").write_text("{}")  # the name alone does not make it a page of ours
    with pytest.raises(ValueError, match="is not empty and not a page of ours"):
        write_page(exporter(run_with_heads()), fake_runtime, mine)
    assert [p.name for p in mine.iterdir()] == ["page.json"]


def test_unreachable_npm_is_one_line_with_the_alternative(monkeypatch, tmp_path):
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


def test_a_damaged_file_of_onnxruntime_web_is_not_used(monkeypatch, tmp_path):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path))
    content = {name: f"content of {name}".encode() for name in vendor.FILES}
    monkeypatch.setattr(vendor, "FILES", {name: hashlib.sha256(data).hexdigest()
                                          for name, data in content.items()})
    package = tmp_path / "package.tgz"
    with tarfile.open(package, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"package/dist/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    monkeypatch.setattr(vendor, "INTEGRITY", base64.b64encode(
        hashlib.sha512(package.read_bytes()).digest()).decode())
    fetched = []
    monkeypatch.setattr(vendor, "_download", lambda folder: fetched.append(1) or package)
    folder = vendor.runtime()
    assert vendor.runtime() == folder and len(fetched) == 1
    stored = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(stored) == set(vendor.STORED)
    for count, name in enumerate(stored, 2):
        (folder / name).write_bytes(stored[name][:-1] + b"?")
        vendor.runtime()
        assert len(fetched) == count and (folder / name).read_bytes() == stored[name], name
    (folder / "NOTICE").unlink()
    vendor.runtime()
    assert len(fetched) == count + 1


# --- the service worker, in Node with caches and a network of the test


def in_worker(tmp_path: Path, server: dict[str, bytes], steps: str, build: str = "b1",
              files: dict[str, bytes] | None = None) -> dict:
    """Runs `steps` beside sw.js of `files`, at http://localhost/app/; returns what they report."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node here; the list of files is checked above")
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in (files or server).items()}
    script = Template((STATIC / "sw.js").read_text()).substitute(build=build,
                                                                 files=json.dumps(digests))
    (tmp_path / "sw.js").write_text(script)
    parts = (Path(__file__).with_name("service_worker.mjs").read_text(), steps,
             "console.log(JSON.stringify(report));")
    (tmp_path / "run.mjs").write_text("\n".join(parts))
    content = {name: data.decode() for name, data in server.items()}
    done = subprocess.run([node, tmp_path / "run.mjs", tmp_path / "sw.js", json.dumps(content)],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PAGE = {"index.html": b"<p>hello", "app.js": b"go()", "page.json": b"{}"}


def test_the_worker_keeps_a_complete_page_and_deletes_no_cache_of_others(tmp_path):
    report = in_worker(tmp_path, PAGE, """
store.set("another-project", new Map()); store.set("vega3d-edge http://localhost/ b0", new Map());
store.set("vega3d-edge " + scope + " b0", new Map());
report.install = await fire("install"); await fire("activate"); report.caches = [...store.keys()];
report.online = await ask(scope + "app.js");
report.folder = [await ask("http://localhost/other.js"), await ask(scope + "data.json")];
offline = true;
report.offline = [await ask(scope + "index.html?x=1"), await ask(scope + "app.js")];
""")
    ours = "vega3d-edge http://localhost/app/ b1"
    assert report == {
        "install": "ok", "online": [200, "go()", True],
        "caches": ["another-project", "vega3d-edge http://localhost/ b0", ours],
        "folder": ["untouched", "untouched"],
        "offline": [[200, "<p>hello", True], [200, "go()", True]]}


@pytest.mark.parametrize("change", [{"app.js": b"of another build"}, {"app.js": None}])
def test_the_worker_refuses_a_page_that_is_half_deployed(tmp_path, change):
    half = {name: data for name, data in {**PAGE, **change}.items() if data is not None}
    report = in_worker(tmp_path, half, """
report.install = await fire("install"); report.caches = [...store.keys()];
""", files=PAGE)
    assert report["install"].startswith("app.js is not of build b1") and report["caches"] == []
    # installed before: the page's own build stays consistent
    report = in_worker(tmp_path, PAGE, f"""
await fire("install"); const half = {json.dumps({k: v.decode() for k, v in half.items()})};
for (const url of Object.keys(network)) delete network[url];
for (const name in half) network[scope + name] = half[name];
report.app = await ask(scope + "app.js");
""")
    assert report["app"] == [200, "go()", True]


def test_the_worker_does_not_answer_for_another_project_on_its_port(tmp_path):
    report = in_worker(tmp_path, PAGE, """
await fire("install");
for (const url of Object.keys(network)) delete network[url];
for (const name of ["", "index.html", "app.js"]) network[scope + name] = "theirs";
const asked = ["index.html", "app.js", "page.json"].map((name) => ask(scope + name));
report.answers = await Promise.all(asked);
""")
    assert report["answers"] == [[200, "theirs", False], [200, "theirs", False],
                                 [404, "none", False]]


# --- the page's modules, in Node


def in_node(tmp_path: Path, module: str, script: str) -> Any:
    """What `script` leaves in `report`; it imports export/web/static/MODULE.js as `it`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("no Node here")
    shutil.copyfile(STATIC / f"{module}.js", tmp_path / f"{module}.mjs")
    (tmp_path / "run.mjs").write_text(f"let report; const it = await import('./{module}.mjs');\n"
                                      f"{script}\nconsole.log(JSON.stringify(report));")
    done = subprocess.run([node, tmp_path / "run.mjs"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_result_is_a_row_of_the_table_in_the_documentation(tmp_path):
    row = in_node(tmp_path, "result", """
const times = [...Array(10).fill(900), ...Array(100).keys()];
const model = { label: "FP16", sha256: "ab".repeat(32) };
report = it.row({ device: "Pixel | 9", browser: "Chrome 156", provider: "WebGPU", model, times });
""")
    assert row == "| Pixel   9 | Chrome 156 | WebGPU | FP16 | 50.0 | 95.0 | abababababab |"
    header = re.search(r"^\| device .*", (ROOT / "docs" / "phones.md").read_text(), re.MULTILINE)
    assert header and header[0].count("|") == row.count("|")


def test_the_worker_is_replaced_after_so_many_runs_and_opened_as_before(tmp_path):
    report = in_node(tmp_path, "network", """
report = [];
let workers = 0;
globalThis.Worker = class {
  constructor() { this.name = ++workers; }
  terminate() { report.push(`end ${this.name}`); }
  postMessage({ id, open, names }) {
    report.push(open ? `open ${open.model} on ${this.name}` : `${names} on ${this.name}`);
    setTimeout(() => this.onmessage({ data: { id, outputs: {} } }));
  }
};
const network = new it.Network(), image = { data: new Uint8ClampedArray(4) };
await network.open({ model: "m", recycle: 2 });
for (const name of ["a", "b", "c"]) await network.run(image, [name]);
await Promise.all(["d", "e", "f"].map((name) => network.run(image, [name])));
""")
    assert report == ["open m on 1", "a on 1", "b on 1", "end 1", "open m on 2", "c on 2", "d on 2",
                      "e on 2", "f on 2"]  # not while others wait for an answer


# --- the server


def get(address: str, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.putrequest("GET", path, skip_host="Host" in headers)
    for name, value in headers.items():
        connection.putheader(name, value)
    connection.endheaders()
    response = connection.getresponse()
    return response.status, dict(response.getheaders()), response.read()


def test_the_server_gives_files_of_its_folder_to_this_machine_alone(tmp_path):
    folder = tmp_path / "page"
    for name in ("index.html", "worker.js", "ort/a.mjs", ".secret", "empty/.keep"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"content of {name}")
    (tmp_path / "outside.txt").write_text("outside")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    (folder / "inner.txt").symlink_to(folder / "worker.js")
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder / "loop")
    os.mkfifo(folder / "pipe")
    with serving(folder) as address:
        port = address.rpartition(":")[2]
        assert serving_host(address) == "127.0.0.1"
        status, headers, content = get(address, "/?backend=wasm")
        assert (status, content) == (200, b"content of index.html")
        assert headers["X-Content-Type-Options"] == "nosniff"
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "connect-src 'self'" in policy
        assert "'unsafe-eval'" not in policy
        assert "'unsafe-eval'" in get(address, "/ort/a.mjs")[1]["Content-Security-Policy"]
        for path in ("/worker.js", "/inner.txt"):
            assert get(address, path)[0] == 200, path
        for path in ("/link.txt", "/up/outside.txt", "/up/", "/loop", "/pipe", "/empty/", "/ort/",
                     "/.secret", "/empty/.keep", "/../outside.txt", "/%2e%2e/outside.txt",
                     "/..%2foutside.txt", "/a%00b", "/" + "a" * 5000, "/index.html/"):
            status, headers, content = get(address, path)
            assert status == 404 and b"outside" not in content.replace(path.encode(), b""), path
            assert headers["X-Content-Type-Options"] == "nosniff"
        for host in ("localhost", "LOCALHOST:1", f"127.0.0.1:{port}", "[::1]", f"[::1]:{port}"):
            assert get(address, "/worker.js", Host=host)[0] == 200, host
        for host in ("example.org", f"example.org:{port}", f"localhost.example.org:{port}", "",
                     "127.0.0.1.nip.io", "0.0.0.0"):
            assert get(address, "/worker.js", Host=host)[0] == 421, host


def serving_host(address: str) -> str:
    return address.removeprefix("http://").rpartition(":")[0]


def test_a_taken_port_and_a_missing_folder_are_one_line_and_exit_code_2(tmp_path, monkeypatch,
                                                                        capsys):
    script = tmp_path / "serve.py"  # a page's copy
    shutil.copyfile(ROOT / "export" / "web" / "serve.py", script)
    busy = server(tmp_path)
    for arguments, why in ((["--port", busy.server_port], "cannot be used (Address already in"),
                           (["--port", 99999], "port 99999 cannot be used"),
                           ([tmp_path / "gone"], "gone: no such folder")):
        monkeypatch.setattr(sys, "argv", [str(script), *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(str(script), run_name="__main__")
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and why in error and len(error.splitlines()) == 1, error
    with pytest.raises(SystemExit) as stopped:  # before the page is built
        vega3d.main(["export", "web", "--run", str(tmp_path), "--serve", "--port",
                     str(busy.server_port)])
    assert stopped.value.code == 2
    assert f"port {busy.server_port} cannot be used" in capsys.readouterr().err
    busy.server_close()


def test_the_server_lets_wasm_have_threads(tmp_path):
    (tmp_path / "a.mjs").write_text("export {}")
    with serving(tmp_path) as address, urllib.request.urlopen(f"{address}/a.mjs") as response:
        assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert response.headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        assert response.headers["Content-Type"] == "text/javascript"
    busy = server(tmp_path)
    with pytest.raises(ValueError, match=f"port {busy.server_port} cannot be used"):
        serve_folder(tmp_path, busy.server_port)
    busy.server_close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_contrasts_with_its_background(scheme):
    style = (STATIC / "style.css").read_text()
    style = style.split("@media (prefers-color-scheme: dark)")[scheme == "dark"]
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", style.split("}")[0]))
    assert {"ink", "muted", "accent", "page", "card", "soft", "warn"} <= colours.keys()
    pairs = list(product(("ink", "muted", "warn"), ("page", "card", "soft")))
    for text, background in [*pairs, ("on-accent", "accent")]:
        assert contrast(colours[text], colours[background]) >= 4.5, f"{text} on {background}"


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


@pytest.mark.parametrize(("model", "mean", "p99"), [("fp16", 0.3, 4), ("int8", 1.5, 16)])
def test_the_overlay_is_what_python_draws(page, model, mean, p99):
    chromium, folder, _ = page
    chromium.evaluate(
        f"""(() => {{ const select = document.getElementById('model'); select.value = '{model}';
        page.state.view = null; select.dispatchEvent(new Event('change')); }})()""")
    chromium.wait("page.state.view && document.getElementById('message').textContent === ''")
    file = folder / next(m["file"] for m in json.loads((folder / "page.json").read_text())["models"]
                         if m["name"] == model)
    outputs = {name: value[0] for name, value in Model(file)(clip_frame(5)[None]).items()}
    expected = {
        "depth": depth_colours(outputs["depth"][0]), "normals": normal_colours(outputs["normals"]),
        "geometry": to_bytes(outputs["colours"]),
    }
    for mode, picture in expected.items():
        overlay = np.array(chromium.evaluate(f"page.frame(5, '{mode}').then(f => f.overlay)"))
        shown = overlay.reshape(*picture.shape[:2], 4)[..., :3]
        error = np.abs(shown - picture.astype(int))
        assert picture.std() > 1 and error.mean() < mean, (mode, error.mean())
        assert np.percentile(error, 99) <= p99, (mode, error.max())
        assert np.abs(shown - np.roll(picture, 7, 1).astype(int)).mean() > error.mean()


def test_a_tapped_point_is_matched_where_python_matches_it(page):
    chromium, folder, _ = page
    chromium.evaluate(
        "(async () => { window.a = await page.frame(0); window.b = await page.frame(30); })()")
    name = chromium.evaluate("document.getElementById('model').value")
    file = folder / next(m["file"] for m in json.loads((folder / "page.json").read_text())["models"]
                         if m["name"] == name)
    first, second = Model(file)(clip_frame(0)[None]), Model(file)(clip_frame(30)[None])
    for x, y in ((0.31, 0.52), (0.8, 0.4), (0.02, 0.97)):
        found = chromium.evaluate(
            f"page.find(b.outputs.descriptors, page.describe(a.outputs.descriptors, {x}, {y}))")
        u, v, likeness = match(first["descriptors"][0], second["descriptors"][0], x, y)
        assert found["likeness"] == pytest.approx(likeness.max(), abs=0.02)
        back = chromium.evaluate("page.leadsBack(a.outputs.descriptors, "
                            f"{x}, {y}, b.outputs.descriptors, {json.dumps(found)})")
        u2, v2, _ = match(second["descriptors"][0], first["descriptors"][0], found["x"], found["y"])
        distance = np.hypot(u2 - x, v2 - y)
        assert abs(distance - 0.1) < 0.04 or back == (distance < 0.1)
        assert (found["x"], found["y"]) == pytest.approx((u, v), abs=0.04)


def test_the_page_names_its_backend_and_logs_no_error(page):
    chromium, _, _ = page
    assert chromium.evaluate("crossOriginIsolated")
    backend = chromium.evaluate("document.getElementById('fact-backend').textContent")
    assert backend == "WASM, 2 threads"
    assert "WASM was asked for" in chromium.evaluate("document.getElementById('why').textContent")
    assert chromium.errors == []
    for width in (360, 390, 768, 1280):
        chromium.set_viewport(width, 800, phone=width < 700)
        content, window = chromium.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert content <= window, width


def test_only_what_is_drawn_is_read_back_from_a_graphics_processor(page):
    chromium, _, _ = page
    read = chromium.evaluate("""(async () => {
        const { state } = page, provider = state.provider, read = [];
        Object.assign(state, { provider: 'WebGPU', points: [], keepNext: false });
        for (const mode of ['depth', 'geometry']) {
            state.mode = mode;
            read.push(Object.keys((await page.frame(3, mode)).outputs));
        }
        document.getElementById('now').click();
        while (!state.points.length) await new Promise(requestAnimationFrame);
        read.push(Object.keys(state.view.outputs), page.wanted());
        Object.assign(state, { provider, points: [], mode: 'normals' });
        return read; })()""")
    assert read == [["depth"], ["colours"], *[["colours", "descriptors"]] * 2]


def test_a_result_is_copied_as_a_row_of_the_documents_table(page):
    chromium, _, _ = page
    chromium.evaluate("page.state.times = [1, 2, 3]")
    assert chromium.evaluate("page.copyResult()") is None
    assert "57 more frames" in chromium.evaluate("document.getElementById('message').textContent")
    chromium.evaluate("page.state.times = [...Array(10).fill(900), ...Array(100).keys()]")
    row = chromium.evaluate("page.copyResult()")
    model = chromium.evaluate("page.state.model")
    head = "| device | browser | runs on | file | median, ms | p95, ms | file's SHA-256 |"
    assert head in (ROOT / "docs" / "phones.md").read_text()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == head.count("|") - 1 and all(cells)
    assert cells[2:] == ["WASM, 2 threads", model["label"], "50.0", "95.0", model["sha256"][:12]]
    assert "Linux" in cells[0] and re.fullmatch(r"[\w ]*Chrom\w+ \d+", cells[1])
    chromium.evaluate("document.getElementById('message').textContent = ''")


def test_a_network_that_is_recycled_gives_the_same_outputs_and_a_fall_back_is_announced(page):
    chromium, _, address = page
    chromium.open(f"{address}/?threads=2&recycle=3&plain")  # no WebGPU in this Chromium
    chromium.wait("window.page?.state.view", 120)
    fallback = chromium.evaluate("document.getElementById('fallback').textContent")
    assert re.fullmatch(r"Runs on the processor \(WASM\), slower .*: .*WebGPU.*\.", fallback)
    started = """const Before = Worker; window.started = 0;
        window.Worker = class extends Before { constructor(...a) { super(...a); started++; } };"""
    same = chromium.evaluate(f"""(async () => {{
        {started}
        const sums = [];
        for (let i = 0; i < 9; i++) sums.push((await page.frame(7)).outputs.depth.data.join());
        return new Set(sums).size; }})()""")
    assert same == 1 and chromium.evaluate("started") >= 2
    chromium.open(f"{address}/?backend=wasm&threads=2")
    chromium.wait("window.page?.state.view", 120)
    assert chromium.evaluate("document.getElementById('fallback').textContent") == ""
    assert {error.partition(" (")[0] for error in chromium.errors} <= {"No available adapters."}
    chromium.errors.clear()


def test_bad_input_gives_a_message_and_the_page_goes_on(page):
    chromium, _, _ = page
    message = "document.getElementById('message').textContent"
    chromium.evaluate(
        "navigator.mediaDevices.getUserMedia = () => "
        "Promise.reject(new DOMException('', 'NotAllowedError'));"
        "document.getElementById('use-camera').click()")
    chromium.wait(f"{message}.includes('camera was not allowed')")
    for name, kind, error in (("broken.png", "image/png", "not a complete picture"),
                              ("broken.mp4", "video/mp4", "not a video that this browser plays")):
        chromium.evaluate(
            f"""(() => {{ const d = new DataTransfer(), f = document.getElementById('file');
            d.items.add(new File([new Uint8Array(60)], '{name}', {{ type: '{kind}' }}));
            f.files = d.files; f.dispatchEvent(new Event('change')); }})()""")
        chromium.wait(f"{message}.includes('{error}')")
    chromium.evaluate("document.getElementById('use-clip').click()")
    chromium.wait(f"{message} === '' && page.state.source.name === 'bundled clip'")
    assert chromium.errors == []


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
        assert chromium.evaluate("crossOriginIsolated")
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


def test_python_example_prints_the_outputs_of_the_model(two_photos):
    command = [sys.executable, "examples/geometry.py", str(web_files()["model.onnx"]),
               *map(str, two_photos), "448"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    depth = Model(web_files()["model.onnx"])(clip_frame(0)[None])["depth"][0, 0]
    depth = depth * 448 / 224  # of a camera of twice the canonical focal length
    low, high, middle = map(float, re.findall(r"\d+\.\d+", done.stdout.splitlines()[0]))
    assert (low, high, middle) == pytest.approx((depth.min(), depth.max(), depth[56, 56]),
                                                abs=0.006)
    assert len(done.stdout.splitlines()) == 5
    assert len((ROOT / "examples" / "geometry.py").read_text().splitlines()) <= 70


def test_cpp_example_prints_the_outputs_of_the_model(tmp_path):
    headers = [Path(p) for p in (os.environ.get("ORT_INCLUDE", ""), "/usr/include/onnxruntime",
               cache_folder() / "onnxruntime-headers")]
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
        "-o", str(program)], cwd=ROOT, check=True)
    Image.fromarray(clip_frame(0).transpose(1, 2, 0)).save(tmp_path / "photo.ppm")
    done = subprocess.run([program, web_files()["model.onnx"], tmp_path / "photo.ppm", "112"],
                          capture_output=True, text=True)
    outputs = Model(web_files()["model.onnx"])(clip_frame(0)[None])
    depth, normals = outputs["depth"][0, 0], outputs["normals"][0]
    printed = list(map(float, re.findall(r"-?\d+\.\d+", done.stdout)))
    depth = depth * 112 / 224
    expected = [depth.mean(), depth[56, 56], *normals[:, 28, 28]]
    assert printed == pytest.approx(expected, abs=2e-3), done.stderr
    (tmp_path / "cut.ppm").write_bytes(b"P6 224 224 255\n" + bytes(99))
    cut = subprocess.run([program, web_files()["model.onnx"], tmp_path / "cut.ppm"],
                         capture_output=True, text=True)
    assert cut.returncode == 1 and "ends early" in cut.stderr
    without = subprocess.run([program, web_files()["model.onnx"], tmp_path / "photo.ppm"],
                             capture_output=True, text=True)
    assert without.stderr == "no focal length was given; 224.0 px is assumed\n"


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
