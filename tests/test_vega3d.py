import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vega3d

ROOT = Path(vega3d.__file__).parent


def exit_of(capsys, *args):
    with pytest.raises(SystemExit) as stopped:
        vega3d.main(args)
    return stopped.value.code, capsys.readouterr()


def test_help_names_every_command_and_imports_none():
    code = ("import sys, vega3d; vega3d.main(['--help']); "
            "print([m for m in ('torch', 'tyro', 'scenes') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT,
                         check=True).stdout
    assert all(command in out for command in vega3d.COMMANDS) and out.endswith("[]\n")


@pytest.mark.parametrize("args", [[], ["distill"], ["distill", "run"], ["bench", "latency"]])
def test_the_version_is_that_of_the_package(capsys, args):
    vega3d.main([*args, "--version"])
    declared = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared and capsys.readouterr().out == f"vega3d-edge {declared[1]}\n"


def test_help_names_every_subcommand():
    for command, (listed, _) in vega3d.COMMANDS.items():
        verbs = importlib.import_module(vega3d.MODULES.get(command, f"{command}.cli")).VERBS
        without = command in ("infer", "verify", "env")
        assert without or listed.split(", ") == [verb for verb in verbs if verb]


@pytest.mark.parametrize("command", vega3d.COMMANDS)
def test_help_imports_no_heavy_package(command):
    code = f"""
import importlib, sys, vega3d
verbs = importlib.import_module("{vega3d.MODULES.get(command, command + '.cli')}").VERBS
for args in (["{command}"], *(["{command}", verb] for verb in verbs if verb)):
    try:
        vega3d.main([*args, "--help"])
    except SystemExit as stopped:
        assert not stopped.code, args
    heavy = {{"torch", "diffusers", "transformers", "onnx"}} & sys.modules.keys()
    assert not heavy, f"vega3d {{' '.join(args)}} --help imports {{heavy}}"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_a_missing_path_is_said_before_torch_is_imported(tmp_path):
    code = """
import sys, vega3d
for line in sys.argv[1:]:
    try:
        vega3d.main(line.split())
    except SystemExit as stopped:
        assert stopped.code == 2, line
    assert "torch" not in sys.modules, f"vega3d {line} imports torch"
"""
    lines = ("bench", "bench latency gone", "bench accuracy --run gone", "bench real gone",
             "bench real . gone.onnx", "bench report --results gone", "distill adapt gone",
             "distill plan --run gone", "distill run --scenes.path gone",
             "distill run --scenes.furniture gone", "distill run --features gone",
             "teacher train --clips gone", "teacher train --fusion gone",
             "teacher train --out /dev/null", "export onnx --size 480x480")
    done = subprocess.run([sys.executable, "-c", code, *lines], capture_output=True, text=True,
                          cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    printed = done.stderr.splitlines()
    assert len(printed) == len(lines) and all(line.startswith("vega3d: ") for line in printed)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("args", "message"), [
    (["nosuch"], "no command 'nosuch'; commands: scenes, teacher, distill"),
    (["scenes", "nosuch"], "scenes: no subcommand 'nosuch'; subcommands: render, show, pack"),
    (["scenes"], "scenes: no subcommand given; subcommands: render, show, pack"),
    (["distill", "run", "--scenes.path", "/nowhere"], "/nowhere"),
    (["distill", "run", "--config", "/nowhere.yaml"], "/nowhere.yaml: no such config file"),
    (["distill", "run", "--config"], "expected a YAML file after it"),
    (["scenes", "show", "/nowhere.safetensors"], "/nowhere.safetensors"),
    (["export", "onnx", "--run", "/nowhere"], "/nowhere"),
    (["bench", "--run", "/nowhere"], "/nowhere"),
    (["distill", "run", "--config="], "--config: expected a YAML file after it"),
    (["distill", "run", "--config=/nowhere.yaml"], "/nowhere.yaml: no such config file"),
    (["distill", "run", "--config=a", "--config", "b"], "--config: given 2 times"),
    (["distill", "run", "--tap=automatic"], "--tap: expected auto"),
    (["teacher", "train", "--recipe=large"], "no recipe 'large'"),
    (["export", "onnx", "--precision"], "--precision: is empty"),
])
def test_a_wrong_call_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, printed = exit_of(capsys, *args)
    assert code == 2
    assert message in printed.err and printed.err.startswith("vega3d: ")
    assert len(printed.err.splitlines()) == 1 and "Traceback" not in printed.err + printed.out


@pytest.mark.parametrize(("args", "message"), [
    (["distill", "run", "--seeds"], "seeds is (), expected one or more"),
    (["teacher", "train", "--tasks"], "tasks is empty"),
    (["teacher", "probe", "--levels"], "at least one mode and one level"),
    (["bench", "latency", "--batch"], "bench.batch is ()"),
])
def test_a_list_option_without_a_value_is_refused(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    code, printed = exit_of(capsys, *args)
    assert code == 2 and message in printed.err
    assert "Traceback" not in printed.err and "Error parsing" not in printed.err


def test_an_unknown_option_is_named(capsys):
    code, printed = exit_of(capsys, "scenes", "render", "--nn", "3")
    assert code == 2 and "--nn" in printed.err + printed.out


def test_a_failed_gate_is_exit_code_3_and_an_interrupt_130(capsys, monkeypatch):
    from export.parity import GateError

    def failing(error):
        def run(command, args):
            raise error
        return run

    monkeypatch.setattr(vega3d, "_run", failing(GateError("int8: cosine 0.2, expected 0.99")))
    assert exit_of(capsys, "export", "onnx")[0] == 3
    monkeypatch.setattr(vega3d, "_run", failing(KeyboardInterrupt()))
    code, printed = exit_of(capsys, "distill", "run")
    assert code == 130 and "resumes" in printed.err


def test_an_error_of_ours_is_one_line_and_exit_code_70_and_a_traceback_only_on_request(
        capsys, monkeypatch):
    def run(command, args):
        raise RuntimeError("a bug\nof ours\x1b[2J")

    monkeypatch.setattr(vega3d, "_run", run)
    code, printed = exit_of(capsys, "distill", "run")
    assert code == 70 and len(printed.err.splitlines()) == 1 and "\x1b" not in printed.err
    assert "internal error (RuntimeError: a bug of ours" in printed.err
    assert "VEGA3D_DEBUG" in printed.err
    monkeypatch.setenv("VEGA3D_DEBUG", "1")
    with pytest.raises(RuntimeError):
        vega3d.main(["distill", "run"])


def test_a_progress_bar_goes_away_on_an_error(capsys, monkeypatch):
    from records.progress import track

    def run(command, args):
        for _ in track(range(3), "rendering"):
            raise ValueError("clip 1: damaged")

    monkeypatch.setattr(vega3d, "_run", run)
    code, printed = exit_of(capsys, "distill", "run")
    assert (code, printed.err) == (2, "vega3d: clip 1: damaged\n")
    assert "rendering" not in printed.out
    assert list(track(range(3), "rendering")) == [0, 1, 2]
    assert "rendering" in capsys.readouterr().out


def test_every_command_in_the_readme_is_one_that_exists(capsys):
    fences = re.findall(r"```\w*\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line for line in "\n".join(fences).splitlines() if line.startswith("vega3d ")]
    commands = {tuple(line.split("#")[0].split()[1:3]) for line in lines}
    assert {("distill", "run"), ("export", "trt"), ("bench",), ("bench", "real")} <= commands
    for command in commands:
        assert exit_of(capsys, *command, "--help")[0] == 0, command


def test_a_comment_above_an_option_is_not_its_neighbour_s_help_too():
    """tyro takes a comment above a field for those on the next lines too, until one has its own."""
    shared = re.compile(r"^    #.*\n    \w+: [^#\n]+\n    ([a-z]\w*): [^#\n]+$", re.MULTILINE)
    packages = [ROOT / name for name in (*vega3d.COMMANDS, "student")]
    files = [path for package in packages for path in package.rglob("*.py")]
    found = {str(path): shared.findall(path.read_text()) for path in files}
    assert len(files) > 100 and not any(found.values()), found


def test_the_readme_shows_what_the_result_files_say():
    from bench.tables.fill import fill

    text = (ROOT / "README.md").read_text()
    assert text.count("<!-- results:") == 1 and fill(text, ROOT / "bench" / "results") == text


def test_everything_that_is_tracked_stays_under_100_megabytes():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / f for f in listed.stdout.split("\0") if f]
    assert len(files) > 100 and sum(f.stat().st_size for f in files if f.is_file()) <= 100e6
    assert not [f for f in files if f.suffix in (".pt", ".pth", ".pkl", ".bin", ".ckpt")]


@pytest.mark.parametrize(("output", "code", "line"), [
    ("", 141, ""), ("> /dev/full", 2, "vega3d: standard output: No space left"),
    (">&-", 0, "")])
def test_output_that_cannot_be_written_ends_the_command_without_a_traceback(output, code, line):
    """Standard output is a pipe whose other end is closed, unless the shell redirects it. Also
    where the encoding lacks the help's characters."""
    read, write = os.pipe()
    os.close(read)
    command = f'"{sys.executable}" vega3d.py --help {output}'
    done = subprocess.run(["bash", "-c", command], stdout=write, stderr=subprocess.PIPE, text=True,
                          cwd=ROOT, env={**os.environ, "PYTHONIOENCODING": "ascii",
                                         "PYTHONUNBUFFERED": "1"})
    os.close(write)
    assert done.returncode == code and done.stderr.startswith(line), done.stderr
    assert len(done.stderr.splitlines()) == bool(line)
