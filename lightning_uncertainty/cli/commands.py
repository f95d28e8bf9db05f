"""Every command that `lightning-uncertainty` has."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from lightning_uncertainty.cli._compare import CompareCLI
from lightning_uncertainty.cli._completion import options, script, subparsers
from lightning_uncertainty.cli._mistakes import errors_as_sentences
from lightning_uncertainty.cli.trainer import MultiTaskCLI
from lightning_uncertainty.dashboards import read_run, save_wandb_workspace, write_report
from lightning_uncertainty.examples.demo import demo
from lightning_uncertainty.predictions.written import write_gathered

__all__ = ["completion", "demo", "example", "gather", "main", "report", "workspace"]

PROGRAM = "lightning-uncertainty"
TRAINER_COMMANDS = {
    "fit": "Train the model of a YAML file: `fit --config X.yaml`.",
    "validate": "Evaluate it on the validation data: `validate --config X.yaml --ckpt_path Y.ckpt`.",
    "test": "Evaluate it on the test data, likewise.",
    "predict": "Write what it predicts and how surely, likewise.",
    "compare": "Train it under several weightings and seeds: `compare --config X.yaml --weightings Y.yaml`.",
}


def example(of: Literal["penguins", "scenes"] = "penguins") -> None:
    """Print a YAML file for `fit`, complete and with comments: `example > penguins.yaml`.

    Args:
        of: what it trains on.
    """
    print(files("lightning_uncertainty.examples").joinpath(f"{of}.yaml").read_text(encoding="utf-8"), end="")


def report(run: Path, out: Path = Path("report.html")) -> None:
    """Write one HTML page of what a run logged, which needs no server and no account.

    Args:
        run: folder of a run of CSVLogger or TensorBoardLogger, or of an offline wandb run.
        out: the page.

    Raises:
        SystemExit: there is no such run or no place for the page, or a package is not installed.
    """
    with errors_as_sentences(ModuleNotFoundError, OSError, ValueError):
        write_report(read_run(run), out)
    print(f"Report: {out.resolve()}")


def gather(folder: Path, out: Path = Path("predictions.pt"), dataloader: int = 0) -> None:
    """Write what `predict` has predicted, in all its processes, into one file, in the order of the data.

    The file is for torch.load: the places of the rows in the dataset under `indices`, and under `predictions` by task
    mean, aleatoric, epistemic and total.

    Args:
        folder: that `predict`, or a PredictionWriter, has written.
        out: the file.
        dataloader: which of several dataloaders.

    Raises:
        SystemExit: there are no predictions, or not all, or nothing tells their order, or no place for the file.
    """
    with errors_as_sentences(OSError, ValueError):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_gathered(folder, out, dataloader=dataloader)
    print(f"Predictions in the order of the data, for torch.load: {out.resolve()}")


def workspace(
    entity: str,
    project: str,
    tasks: dict[str, list[str]] | list[str] | str,
    prefix: str = "",
    more: dict[str, list[str]] | None = None,
    pictures: str = "pictures/",
    log: str = "sigma,weight",
) -> None:
    """Save a view in a wandb project that shows all tasks in one chart.

    Args:
        entity: user or team that owns the project.
        project: name of the project.
        tasks: names, separated by commas; or names with those of their metrics, which get charts of their own:
            "{depth: [MeanAbsoluteError], normals: []}".
        prefix: that of the UncertaintyMonitor.
        more: charts of other keys by title, as of what an adopted module logs by itself: "{host: [train_loss]}".
        pictures: prefix of the PredictionImages.
        log: what is on a log axis, separated by commas: sigma, weight, and loss where all losses stay positive.

    Raises:
        SystemExit: wandb has no account here or refuses, there is no task, or a package is not installed.
    """
    names = _names(tasks) if isinstance(tasks, str) else tasks
    with errors_as_sentences(ModuleNotFoundError, RuntimeError, ValueError):
        options: dict[str, Any] = {"prefix": prefix, "more": more, "pictures": pictures, "log": _names(log)}
        print(f"Workspace: {save_wandb_workspace(entity, project, names, **options)}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def completion() -> None:
    """Print a script that has bash and zsh complete commands and options, without starting Python."""
    from jsonargparse import auto_cli, capture_parser

    parsers = capture_parser(lambda: auto_cli(commands(), prog=PROGRAM))
    trainer = capture_parser(lambda: MultiTaskCLI())
    comparing = capture_parser(CompareCLI)
    known = {**subparsers(parsers), **subparsers(trainer), "compare": comparing}
    print(script(PROGRAM, {name: options(known[name]) for name in commands()}))


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: jsonargparse is not installed, or an argument or a configuration is wrong.
    """
    try:
        from jsonargparse import auto_cli
    except ModuleNotFoundError:
        raise SystemExit("the command line needs jsonargparse: pip install 'lightning-uncertainty[cli]'") from None
    if not getattr(sys.flags, "safe_path", False) and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does; a script's own folder is where it was installed
    for message in (".*treespec, LeafSpec", "LightningCLI's args parameter"):  # Lightning's own
        warnings.filterwarnings("ignore", message=message)
    command = "".join(sys.argv[1:2])
    if command == "--version":
        print(f"{PROGRAM} {version(PROGRAM)}")
    elif command in TRAINER_COMMANDS:
        _run_trainer_command(command)
    else:
        auto_cli(commands(), prog=PROGRAM)


def commands() -> dict[str, Any]:
    """Return every command; those of the Trainer have a parser of their own and are here to be listed."""
    commands: dict[str, Callable[..., None]] = {"demo": demo, "example": example}
    for name, description in TRAINER_COMMANDS.items():
        commands[name] = lambda: None
        commands[name].__doc__ = description
    return {**commands, "gather": gather, "report": report, "workspace": workspace, "completion": completion}


def _run_trainer_command(command: str) -> None:
    with errors_as_sentences(TypeError, ValueError):
        if command == "compare":
            with _interruptible():
                CompareCLI().compare()
        else:
            MultiTaskCLI(parser_kwargs={"prog": PROGRAM})


@contextmanager
def _interruptible() -> Iterator[None]:
    """End at Ctrl-C as a shell expects, after what was said of it."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None
