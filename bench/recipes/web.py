"""Speed of `vega3d export web`'s page in headless Chromium (WASM), by model file and threads.
`python -m bench.recipes.web --run runs/latest` writes bench/results/web.json."""
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

import numpy as np

from bench.recipes.chromium import Browser, browser
from export.web.serve import server
from records.environment import environment
from records.results import ROOT, Row, measured, save
from vega3d import run_recipe

RESULTS = ROOT / "bench" / "results" / "web.json"
WARM_UP, FRAMES, LIVE_S = 5, 40, 3.0
_TIMES = f"""(async () => {{
    const times = [], count = page.state.facts.clip.frames;
    for (let i = 0; i < {WARM_UP + FRAMES}; i++)
        times.push((await page.frame(i % count)).milliseconds);
    return times.slice({WARM_UP});
}})()"""


def main(run: Path = Path("runs/latest"), threads: tuple[int, ...] = (1, 2),
         out: Path = RESULTS) -> None:
    """Measures RUN/export/page, with the web preset's FP32 file added."""
    page, fp32 = run / "export" / "page", run / "export" / "web" / "onnx" / "model.onnx"
    if not (page / "page.json").is_file() or not fp32.is_file():
        raise ValueError(f"{page}: no page here; make one with: vega3d export web --run "
                         f"{quote(str(run))}")
    env = environment()
    with TemporaryDirectory() as scratch, browser() as chromium:
        env["chromium"] = chromium.call("Browser.getVersion")["product"]
        folder = Path(scratch) / "page"
        folder_mb = sum(path.stat().st_size for path in page.rglob("*") if path.is_file()) / 1e6
        names, rows = _with_fp32(page, fp32, folder), list[Row]()
        for row in measure(chromium, folder, names, threads, folder_mb):
            rows.append(row)
            # after every row, so that a killed measurement leaves a file
            save(measured("web", rows, env), out)
            print(f"{row['precision']:5} {row['threads']} threads  {row['latency_ms']:6.1f} ms  "
                  f"p90 {row['p90_ms']:6.1f}  {row['frames_per_s']:5.1f} frames/s  first overlay "
                  f"{row['first_overlay_s']:.1f} s  load {row['load_average']:.1f}", flush=True)
    print(out)


def measure(chromium: Browser, folder: Path, names: list[str], threads: tuple[int, ...],
            folder_mb: float) -> Iterator[Row]:
    """A row for each model and number of threads. latency_ms: the network alone; frames_per_s: the
    live page, drawing included; first_overlay_s: from opening the address, with nothing cached but
    the disk."""
    serving = server(folder)
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    try:
        for name in names:
            for count in threads:
                yield _row(chromium, f"http://127.0.0.1:{serving.server_port}", name, count,
                           folder_mb)
    finally:
        serving.shutdown()
        serving.server_close()


def _row(chromium: Browser, address: str, name: str, threads: int, folder_mb: float) -> Row:
    begin = time.perf_counter()
    # plain: without the service worker's cache
    chromium.open(f"{address}/?plain&backend=wasm&model={name}&threads={threads}")
    chromium.wait("window.page?.state.view")
    first = time.perf_counter() - begin
    time.sleep(LIVE_S)
    live = chromium.evaluate("(r => 1000 * (r.length - 1) / (r.at(-1) - r[0]))(page.state.rates)")
    backend = chromium.evaluate("document.getElementById('fact-backend').textContent")
    model = chromium.evaluate(f"page.state.facts.models.find(m => m.name === '{name}')")
    times = np.array(chromium.evaluate(_TIMES, seconds=300))
    return {
        "model": "ViT student with heads", "artefact": Path(model["file"]).name,
        "sha256": model["sha256"], "precision": name, "backend": f"onnxruntime-web {backend}",
        "threads": threads, "batch": 1, "latency_ms": float(np.median(times)),
        "p90_ms": float(np.percentile(times, 90)), "frames": FRAMES, "frames_per_s": live,
        "first_overlay_s": first, "size_mb": model["size_mb"], "folder_mb": folder_mb,
        "load_average": os.getloadavg()[0], "complaints": "; ".join(chromium.errors)
    }


def _with_fp32(page: Path, fp32: Path, folder: Path) -> list[str]:
    """A copy of the page that offers the FP32 file too; the names of its models."""
    shutil.copytree(page, folder)
    shutil.copyfile(fp32, folder / "model" / "onnx" / fp32.name)
    facts = json.loads((folder / "page.json").read_text())
    sidecar = json.loads(fp32.with_name(f"{fp32.name}.json").read_text())
    facts["models"].append({"name": "fp32", "label": "FP32", "file": f"model/onnx/{fp32.name}",
                            "for": [], "what": "32-bit", "size_mb": sidecar["size_mb"],
                            "sha256": sidecar["sha256"]})
    (folder / "page.json").write_text(json.dumps(facts))
    return ["int8", "fp32", "fp16"]


if __name__ == "__main__":
    run_recipe(main)
