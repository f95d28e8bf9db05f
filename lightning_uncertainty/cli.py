"""The command line: `lightning-uncertainty --help` lists what it can do.

Long, but one file: commands stand beside what they say where something is wrong, and checkpoints name a class of it.
"""

from __future__ import annotations

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Any, Literal, NoReturn

from pytorch_lightning import LightningDataModule
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from lightning_uncertainty import balancing, weightings
from lightning_uncertainty.callbacks import PredictionWriter, UncertaintyMonitor
from lightning_uncertainty.callbacks.prediction_writer import is_writer
from lightning_uncertainty.dashboards import read_run, save_wandb_workspace, write_report
from lightning_uncertainty.examples.demo import demo
from lightning_uncertainty.module import MultiTaskModule
from lightning_uncertainty.predictions.written import write_gathered
from lightning_uncertainty.tasks import Task
from lightning_uncertainty.trials import compare
from lightning_uncertainty.trials.comparing import SINGLE_TASK
from lightning_uncertainty.trials.fit import QUIET
from lightning_uncertainty.weightings import Weighting

__all__ = ["demo", "example", "gather", "main", "report", "workspace"]

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
    with _errors_as_sentences(ModuleNotFoundError, OSError, ValueError):
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
    with _errors_as_sentences(OSError, ValueError):
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

    Raises:
        SystemExit: wandb has no account here or refuses, there is no task, or a package is not installed.
    """
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else tasks
    with _errors_as_sentences(ModuleNotFoundError, RuntimeError, ValueError):
        options: dict[str, Any] = {"prefix": prefix, "more": more, "pictures": pictures}
        print(f"Workspace: {save_wandb_workspace(entity, project, names, **options)}")


def main() -> None:
    """Run the command line.

    Raises:
        SystemExit: jsonargparse is not installed, or an argument or a configuration is wrong.
    """
    try:
        from jsonargparse import auto_cli
    except ModuleNotFoundError:
        raise SystemExit("the command line needs jsonargparse: pip install 'lightning-uncertainty[cli]'") from None
    for message in (".*treespec, LeafSpec", "LightningCLI's args parameter"):  # Lightning's own
        warnings.filterwarnings("ignore", message=message)
    if sys.argv[1:2] and sys.argv[1] in TRAINER_COMMANDS:
        _run_trainer_command()
        return
    commands: dict[str, Callable[..., None]] = {"demo": demo, "example": example}
    for name, description in TRAINER_COMMANDS.items():  # to be listed; they have a parser of their own
        commands[name] = lambda: None
        commands[name].__doc__ = description
    auto_cli({**commands, "gather": gather, "report": report, "workspace": workspace}, prog=PROGRAM)


# -- fit, validate, test, predict --------------------------------------------------------------------------------------


class _Configured(MultiTaskModule):
    """A backbone and tasks, ready for a Trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters()  # within LightningCLI the configuration, which a checkpoint can be built from


class _Parser(LightningArgumentParser):
    """Says what is wrong, and not what else there is."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(_readable(message) if self.exit_on_error else message, ex)  # inner parsers raise

    def print_usage(self, file: Any = None) -> None:
        """Print nothing: sixty options before the line that matters; the tip to ask for help remains."""


class _TrainerCLI(LightningCLI):
    """`fit`, `validate`, `test` and `predict` of a `MultiTaskModule`, always with a monitor."""

    def __init__(self, prog: str = PROGRAM, **options: Any) -> None:
        super().__init__(
            _Configured,
            LightningDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # it would decay the log-variances
            parser_kwargs={"prog": prog},
            save_config_kwargs={"overwrite": True},  # loggers without versions have one folder for all runs
            **options,
        )

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        parser.__class__ = _Parser  # Lightning takes a `parser_class` from 2.5.1 on
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(UncertaintyMonitor, "monitor")

    def predict(self, **arguments: Any) -> None:
        """Predict, and write the predictions beside the logs, a file a batch; a writer of the configuration's is it."""
        trainer: Any = self.trainer
        callbacks = trainer.callbacks
        writer = next((one for one in callbacks if is_writer(one)), None) or PredictionWriter()
        if writer not in callbacks:
            callbacks.append(writer)
        if arguments.get("return_predictions") is None:
            arguments["return_predictions"] = False
        _ = trainer.log_dir  # its version, before a strategy starts processes that would settle on one of their own
        self.trainer.predict(**arguments)
        if not isinstance(writer, PredictionWriter):
            return
        folder = writer.folder_of(self.trainer)
        if self.trainer.is_global_zero:
            print(f"Predictions, a file a batch: {folder}")
            print(f"In the order of the data, in one file: {PROGRAM} gather {folder}")


class _CompareCLI(_TrainerCLI):
    """`compare`: what `fit` would train, under several weightings."""

    def __init__(self) -> None:
        super().__init__(f"{PROGRAM} compare", run=False, args=sys.argv[2:])

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what `compare` takes."""
        super().add_arguments_to_parser(parser)
        equal = {"class_path": "lightning_uncertainty.FixedWeighting"}
        uncertainty = {"class_path": "lightning_uncertainty.UncertaintyWeighting"}
        weightings = {"equal": equal, "uncertainty": uncertainty}
        parser.add_argument(
            "--weightings", type=dict[str, Weighting], default=weightings, help="by name, in place of model.weighting"
        )
        parser.add_argument("--seeds", type=list[int], default=[0, 1, 2], help="one trial each")
        parser.add_argument("--baseline", type=str | None, default=SINGLE_TASK, help="what the gain is relative to")
        parser.add_argument("--alone", type=list[str], default=[], help="weightings that train single tasks, too")
        parser.add_argument(
            "--settings",
            type=dict[str, list[Any]],
            default={},
            help="by path below model or data, as {model.optimizer.init_args.lr: [1e-3, 3e-3]}",
        )
        parser.add_argument("--best_by", type=str | None, default=None, help="log key that chooses the epoch")
        parser.add_argument("--retry_failed", type=bool, default=False, help="fit again what failed before")
        parser.add_argument("--out", type=Path, default=Path("runs/compare"), help="folder of trials, table and plot")

    def instantiate_classes(self) -> None:
        """Leave it to the trials."""

    def compare(self) -> None:
        """Run the trials that are missing and that no other process runs, print the table, and write table and plot."""
        config, built = self.config, self._build()
        callbacks = [one for one in built.trainer.callbacks or [] if not isinstance(one, Checkpoint)]

        def make(weighting: Weighting, **settings: Any) -> Any:
            nonlocal built
            built = self._build(weighting, settings)
            return built.model

        found = compare(
            make,
            lambda: built.data,
            built.weightings,
            config.out,
            seeds=config.seeds,
            baseline=config.baseline,
            best_by=config.best_by,
            trainer={**built.trainer, "callbacks": callbacks, **QUIET},
            setup={"data": config.data},
            retry_failed=config.retry_failed,
            alone=config.alone,
            settings=config.settings,
        )
        print(found)
        found.to_csv(config.out / "comparison.csv")
        print(f"Numbers: {(config.out / 'comparison.csv').resolve()}")
        if find_spec("matplotlib") is not None:
            found.plot()[0].savefig(config.out / "comparison.png", dpi=120)
            print(f"Plot: {(config.out / 'comparison.png').resolve()}")

    def _build(self, weighting: Weighting | None = None, settings: Mapping[str, Any] | None = None) -> Any:
        """Build anew what the configuration says, with another weighting, at other settings."""
        config = self.config.clone()
        for path, value in (settings or {}).items():
            if path not in config or path.partition(".")[0] not in ("model", "data") or path == "model.weighting":
                raise ValueError(
                    "settings should be paths of the configuration below model or data, and not model.weighting: found "
                    f"{path!r}; give --weightings for weightings, and a folder (--out) of its own for other options"
                )
            config[path] = value
        config.model.weighting = weighting
        return self.parser.instantiate_classes(config)


def _run_trainer_command() -> None:
    with _errors_as_sentences(ValueError):
        if sys.argv[1] == "compare":
            with _interruptible():
                _CompareCLI().compare()
        else:
            _TrainerCLI()


@contextmanager
def _interruptible() -> Iterator[None]:
    """End at Ctrl-C as a shell expects, after what was said of it."""
    try:
        yield
    except KeyboardInterrupt:
        raise SystemExit(130) from None


_NOISE = re.compile(
    r"\s*(- )?(Does not validate against any of the Union subtypes|Subtypes: .*|Errors:|Given value type: .*"
    r"|Expected a <class 'NoneType'>|Expected a path but .* either not accessible or invalid|)"
)
_CALLABLE = re.compile(r"Type .*Callable.* expects a function or a callable class: ")


def _readable(message: str) -> str:
    """Return jsonargparse's message without what it tried in vain, and with the names that there are.

    Example:
        >>> print(_readable('''Parser key "model.inputs":
        ...   Does not validate against any of the Union subtypes
        ...   Errors:
        ...     - Expected a <class 'str'>
        ...     - Expected a <class 'NoneType'>'''))
        Parser key "model.inputs":
            - Expected a <class 'str'>
        a configuration that works: lightning-uncertainty example
    """
    lines = dict.fromkeys(line.rstrip() for line in message.splitlines() if not _NOISE.fullmatch(line))
    text = _CALLABLE.sub("", "\n".join(lines))
    return "\n".join([text, *_known_names(message), f"a configuration that works: {PROGRAM} example"])


def _known_names(message: str) -> Iterator[str]:
    """Yield what may stand where the message found something else."""
    for group, kind in {"model": MultiTaskModule, "monitor": UncertaintyMonitor}.items():
        options = inspect.signature(kind).parameters
        found = re.search(rf"\b{group}\.(\w+)", message)
        if found and found[1] not in options:
            yield f"{group} has: {', '.join(options)}"
    if "model.tasks" in message:
        yield f"a task has: {', '.join(inspect.signature(Task).parameters)}"
    if "model.weighting" in message:
        for room in (weightings, balancing):
            made = (getattr(room, name) for name in room.__all__)
            kinds = [kind for kind in made if isinstance(kind, type) and issubclass(kind, Weighting)]
            known = [kind.__name__ for kind in kinds if not inspect.isabstract(kind)]
            yield f"{room.__name__.rpartition('.')[2]}: {', '.join(known)}"


@contextmanager
def _errors_as_sentences(*kinds: type[Exception]) -> Iterator[None]:
    """Exit with the message of an error that this package raised, which says all; others keep their traceback."""
    try:
        yield
    except kinds as error:
        ours: BaseException | None = error
        while ours is not None and not _raised_here(ours):
            ours = ours.__cause__  # jsonargparse wraps what a constructor raises
        if ours is None:
            raise
        raise SystemExit(str(ours)) from None


def _raised_here(error: BaseException) -> bool:
    *_, (frame, _) = walk_tb(error.__traceback__)
    module: str = frame.f_globals["__name__"]
    return module.startswith("lightning_uncertainty.")
