"""`vega3d distill run`, and `distill run` as a console script of its own."""
from pathlib import Path

import tyro

from distill.config import RunConfig, load_config


def run(args: list[str]) -> None:
    """Train the teacher, distil the student, write a run folder. --config FILE.yaml gives the defaults of the rest."""
    base = RunConfig()
    if "--config" in args:
        at = args.index("--config")
        if at + 1 == len(args):
            raise ValueError("--config: expected a YAML file after it")
        base = load_config(Path(args[at + 1]))
        args = args[:at] + args[at + 2:]
    config = tyro.cli(RunConfig, default=base, args=args, prog="vega3d distill run", description=run.__doc__)
    from distill.run import run as run_all  # after --help: torch and diffusers take seconds

    folder = run_all(config)
    print(f"run folder: {folder}\nnext: vega3d export trt --int8")


VERBS = {"run": run}
PARSES_ITSELF = {"run"}
