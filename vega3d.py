"""The command line: `vega3d COMMAND SUBCOMMAND [OPTIONS]`.

Subcommands are the VERBS of COMMAND/cli.py, which is imported when its command runs.
"""
from __future__ import annotations

import importlib
import io
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import TextIO

from records.events import as_lines, emit, json_lines
from records.files import remove_empty
from records.interrupts import handled

# before onnxruntime and huggingface_hub are imported, by whatever package
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
# torch's advice to programmers; TF32 would change the numbers
for advice in ("TensorFloat32 tensor cores for float32", r"barrier\(\): using the device under"):
    warnings.filterwarnings("ignore", advice, UserWarning)

COMMANDS = {
    "scenes": ("render, show, pack, ask, import, census",
               "rendered rooms, your own videos and benchmarks as clips"),
    "teacher": ("fetch, prompt, train, plan, search, pretrain, probe",
                "the generator, its tap and the fused teacher"),
    "distill": ("run, adapt, heads, plan", "train teacher and student, write a run folder"),
    "export": ("onnx, openvino, trt, coreml, litert, web, check",
               "ONNX, INT8, TensorRT, phones and a web page, parity-gated"),
    "infer": ("[MODEL.onnx] PHOTO|FOLDER|VIDEO… -o DIR",
              "depth, normals and matches of photos and videos; needs no torch"),
    "bench": ("latency, accuracy, real, report, compare, advise, tables",
              "measure a run or exported files; without one: all"),
    "verify": ("[RUN]", "every file of a run against its SHA-256"),
    "env": ("", "versions, processor, GPUs, caches and free disk, to paste into an issue"),
}
LOG_JSON = "--log-json"
MAX_MESSAGE = 1200  # characters
# packages whose errors say what is wrong with a file
FOREIGN = {"onnxruntime", "onnx", "google", "safetensors_rust", "zipfile", "yaml"}
CORE = ("infer", "verify", "env")  # what runs without the extra `train`
TRAINING_PYTHON = (3, 11)
# those of other commands are COMMAND/cli.py
MODULES = {"verify": "records.outputs", "env": "records.environment"}
HELP = """usage: vega3d COMMAND SUBCOMMAND [OPTIONS]
       vega3d COMMAND --help, vega3d COMMAND SUBCOMMAND --help, vega3d --version

commands:
{commands}

every command takes --log-json: events as JSON lines on stderr

examples:
  vega3d infer photo.jpg         depth and normals by the shipped model -> out/
  vega3d distill run             train teacher and student -> runs/latest
  vega3d export trt --int8       newest run -> ONNX -> INT8 -> TensorRT engine, parity-gated
  vega3d bench                   latency and accuracy -> bench/results.json, bench/report.html
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command. Every error is one line on stderr; VEGA3D_DEBUG=1 shows the traceback.

    Exit codes: 0, 2 bad input, 70 an error of ours, 128 + a signal's number; errors may set one.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    sys.stdout, sys.stderr = map(_writable, (sys.stdout, sys.stderr))
    lines: AbstractContextManager = nullcontext()
    if LOG_JSON in args:
        args.remove(LOG_JSON)
        lines = json_lines(args, sys.stderr)
    with lines, _printing():
        _main(args)


@contextmanager
def _printing() -> Iterator[None]:
    """Ends the command here, and not after `main`, if what it printed cannot be written."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if os.environ.get("VEGA3D_DEBUG"):
            raise
        with suppress(OSError, ValueError):  # in tests it is no file; elsewhere it holds the rest
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            raise SystemExit(141) from None
        fail(f"standard output: {error.strerror}")


def _writable(stream: TextIO | None) -> TextIO:
    """Standard output or error, os.devnull if closed; what its encoding lacks is escaped."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(errors="backslashreplace")
    return stream or open(os.devnull, "w")


def _main(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP.format(commands=_command_list()))
        return
    if "--version" in args:
        from records.environment import version

        print("vega3d-edge", version("vega3d-edge") or "of a checkout that is not installed")
        return
    command = args.pop(0)
    if command not in COMMANDS:
        fail(f"no command {command[:40]!r}; commands: {', '.join(COMMANDS)}")
    if sys.version_info < TRAINING_PYTHON and command not in CORE:
        found, needed = (".".join(map(str, v[:2])) for v in (sys.version_info, TRAINING_PYTHON))
        fail(f"{command} needs Python {needed} or later, this is {found}; with it run "
             f"{', '.join(CORE)}")
    try:
        with _one_line(command), handled():
            try:
                _run(command, args)
            finally:
                remove_empty()  # folders that were made for what then failed
    except KeyboardInterrupt as error:
        fail(str(error) or "interrupted; the same command resumes", getattr(error, "code", 130))


def run_recipe(*functions: Callable[..., None]) -> None:
    """`python -m bench.recipes.NAME`: options and errors as those of a command. The first argument
    names one of several functions; a single one without parameters parses its own options."""
    import inspect

    from records.options import parse_call

    name = Path(inspect.getfile(inspect.unwrap(functions[0]))).stem
    with _one_line(name):
        if len(functions) == 1 and not inspect.signature(functions[0]).parameters:
            functions[0]()
        else:
            parse_call(functions, sys.argv[1:], f"python -m bench.recipes.{name}")()


@contextmanager
def _one_line(command: str) -> Iterator[None]:
    """Ends the process with one line and an exit code for an error of the block."""
    try:
        yield
    except Exception as error:
        if os.environ.get("VEGA3D_DEBUG") or isinstance(error, BrokenPipeError):
            raise
        line, code = _described(command, error)
        _clear_frames(error)
        fail(line, code)


def distill_main() -> None:
    """The console script `distill`: `vega3d distill`."""
    main(["distill", *sys.argv[1:]])


def fail(message: str, code: int = 2) -> None:
    """Prints one line to stderr, without control characters and of bounded length, and exits.

    Of the processes of an `accelerate launch` the first to fail prints it.
    """
    if "WORLD_SIZE" in os.environ and not _first_to_fail():
        raise SystemExit(code)
    line = " ".join(message.split())
    if len(line) > MAX_MESSAGE:
        line = f"{line[:MAX_MESSAGE // 2]} … {line[-MAX_MESSAGE // 2:]}"
    line = "".join(c if c.isprintable() else "�" for c in line)
    if as_lines():
        emit("error", message=line, code=code)
    else:
        with suppress(OSError):  # the stream is closed or full
            print("vega3d:", line, file=sys.stderr)
    raise SystemExit(code)


def _first_to_fail() -> bool:
    from teacher.training.processes import first_to_fail

    return first_to_fail()


def _command_list() -> str:
    lines = [f"  {name:9}{what}\n{'':11}{verbs}" for name, (verbs, what) in COMMANDS.items()]
    return "\n".join(lines).rstrip()


def _run(command: str, args: list[str]) -> None:
    from records.files import cache_folder
    from records.options import parse_call  # not for `vega3d --help`: a third of a second

    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))  # its list of fonts

    module = importlib.import_module(MODULES.get(command, f"{command}.cli"))
    verb = args.pop(0) if args and args[0] in module.VERBS else ""
    if verb not in module.VERBS:
        if args and args[0] in ("-h", "--help"):
            print(_verb_list(command, module))
            return
        names = ", ".join(filter(None, module.VERBS))
        given = repr(args[0]) if args else "given"
        fail(f"{command}: no subcommand {given}; subcommands: {names}")
    if verb in getattr(module, "PARSES_ITSELF", ()):
        module.VERBS[verb](args)
    else:
        parse_call([module.VERBS[verb]], args, f"vega3d {command} {verb}".strip())()


def _verb_list(command: str, module: ModuleType) -> str:
    lines = [f"usage: vega3d {command} SUBCOMMAND [OPTIONS]", ""]
    for verb, function in module.VERBS.items():
        if verb:
            lines.append(f"  {verb:10} {(function.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join(lines)


def _described(command: str, error: Exception) -> tuple[str, int]:
    """One line about an error that ended a command, and the exit code."""
    kind, text = type(error).__name__, str(error)
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        if package not in (*COMMANDS, "student", "records"):
            remedy = ("pip install 'vega3d-edge[train]'" if command in COMMANDS
                      else f"see bench/recipes/{command}.py")
            return f"{command} needs the package {error.name}: {remedy}", 2
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
        if isinstance(error, FileExistsError) and not os.path.isdir(error.filename or ""):
            reason = "exists and is no folder"
        text = f"{error.filename or ''}: {reason}".lstrip(": ")
    elif isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        text = f"out of memory ({text or kind}); use a smaller file, batch or number of workers"
    elif not (isinstance(error, (ValueError, OSError)) or text.startswith("Symlink loop")
              or type(error).__module__.partition(".")[0].strip("_") in FOREIGN):
        return (f"internal error ({kind}: {text}); VEGA3D_DEBUG=1 shows where; please report it",
                70)
    return text or kind, getattr(error, "exit_code", 2)  # a parity gate's is 3


def _clear_frames(error: BaseException | None) -> None:
    """Ends generators that the failed frames still hold: progress bars that would draw again."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


if __name__ == "__main__":
    main()
