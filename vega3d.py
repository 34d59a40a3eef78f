"""The front door: `vega3d ROOM VERB …`. Each room's cli.py holds its verbs; a room is imported when
it is used."""
import importlib
import os
import sys
from collections.abc import Sequence

ROOMS = {
    "scenes": "render | show | pack | ask  furnished rooms and your own videos as clips",
    "teacher": "fetch | prompt | train | search | pretrain | probe  the generator, its taps, the "
               "fused teacher",
    "distill": "run | heads                 train the teacher, distil the student, write a run "
               "folder",
    "export": "onnx | trt | check | web    ONNX, INT8, TensorRT and a live page, each behind a "
              "parity gate",
    "infer": "MODEL PHOTO -o DIR          depth, normals, features of a photo; needs no torch",
    "bench": "[latency | accuracy | compare | report | tables]  what it costs, what it keeps; one "
             "page",
}
HELP = "usage: vega3d ROOM VERB [OPTIONS]      (vega3d ROOM VERB --help lists the options)\n\n" + "\n".join(
    f"  {room:8} {what}" for room, what in ROOMS.items()) + """

a first line:
  vega3d distill run                  teacher trained, student distilled -> runs/latest
  vega3d export trt --int8            newest run -> ONNX -> INT8 -> TensorRT engine, parity-gated
  vega3d bench                        latency and accuracy -> bench/results.json, bench/report.html
"""


def main(argv: Sequence[str] | None = None) -> None:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return
    if args[0] not in ROOMS:
        fail(f"no room called {args[0]!r}; there are: {', '.join(ROOMS)}")
    try:
        _run(args[0], args[1:])
    except KeyboardInterrupt:
        fail("interrupted; the same command resumes", code=130)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in (*ROOMS, "student", "records"):
            raise
        fail(f"{args[0]} needs the package {error.name}: pip install 'vega3d-edge[train]'")
    except (ValueError, OSError) as error:
        if os.environ.get("VEGA3D_DEBUG"):
            raise
        fail(_one_line(error), code=getattr(error, "exit_code", 2))  # a parity gate's is 3


def distill_main() -> None:
    main(["distill", *sys.argv[1:]])


def fail(message: str, code: int = 2) -> None:
    """One clear line on stderr, then exit."""
    print(f"vega3d: {message}", file=sys.stderr)
    raise SystemExit(code)


def _run(room: str, args: list[str]) -> None:
    import tyro  # after --help: it costs a third of a second

    module = importlib.import_module(f"{room}.cli")
    verbs = module.VERBS
    verb = args.pop(0) if args and args[0] in verbs else ""
    if verb not in verbs:
        named = [v for v in verbs if v]
        asked = args[0] if args else ""
        if asked in ("-h", "--help"):
            print(f"usage: vega3d {room} VERB [OPTIONS]\n\n" + "\n".join(
                f"  {v:10} {(verbs[v].__doc__ or '').strip().splitlines()[0]}" for v in named))
            return
        fail(f"{room}: no verb {asked!r}; there are: {', '.join(named)}")
    if verb in getattr(module, "PARSES_ITSELF", ()):
        verbs[verb](args)
    else:
        tyro.cli(verbs[verb], prog=f"vega3d {room} {verb}".strip(), args=args)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or ''}: {error.strerror}".lstrip(": ")
    return " ".join(str(error).split())


if __name__ == "__main__":
    main()
