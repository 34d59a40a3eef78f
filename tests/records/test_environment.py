"""`vega3d env`: facts about this machine that an issue needs, without names of its user."""
import os
import re
import shutil
import sys
from pathlib import Path

import vega3d
from records import environment


def facts(text: str) -> dict[str, str]:
    return dict(line.split(": ", 1) for line in text.splitlines())


def test_it_prints_versions_processor_folders_and_memory(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("VEGA3D_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "weights").write_bytes(bytes(3_000_000))
    vega3d.main(["env"])
    found = facts(capsys.readouterr().out)
    assert re.fullmatch(r"\d+\.\d+\.\d+, commit (unknown|[0-9a-f]{12}\+?)", found["vega3d-edge"])
    assert found["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert "CPUExecutionProvider" in found["onnxruntime providers"]
    packages = found["packages"].split()
    for name in ("numpy", "torch", "diffusers", "onnx", "nncf"):
        assert packages[packages.index(name) + 1][0].isdigit(), name
    assert f"{tmp_path / 'cache'}, 3 MB" in found["cache"]
    free = shutil.disk_usage(tmp_path).free / 1e9
    assert abs(float(found["working folder"].split()[0]) - free) < 1
    assert "OMP_NUM_THREADS=1" in found["variables"]
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    assert float(re.search(r"of ([\d.]+) GB", found["memory"])[1]) == round(total, 1)


def test_gpus_and_a_jetson_are_named_and_the_home_folder_is_not(monkeypatch, tmp_path):
    answers = {"nvidia-smi": "NVIDIA H100, 570.86, 9.0, 81559 MiB, 80000 MiB\nNVIDIA H100, 570.86, "
                             "9.0, 81559 MiB, 70000 MiB", "nvpmodel": "NV Power Mode: MAXN\n0"}
    monkeypatch.setattr(environment, "output_of", lambda command: answers.get(command[0], ""))
    read = environment.text_of
    monkeypatch.setattr(environment, "text_of",
                        lambda path: "# R36 (release)\nmore" if "tegra" in path else read(path))
    monkeypatch.setenv("HOME", str(tmp_path / "somebody"))
    monkeypatch.delenv("VEGA3D_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    text = environment.report()
    assert text.count("gpu: NVIDIA H100, SM 9.0") == 2 and "70000 MiB of 81559 MiB free" in text
    assert "jetson: R36 (release); NV Power Mode: MAXN 0" in text
    assert "somebody" not in text and f"cache: {Path('~/.cache/vega3d-edge')}" in text
