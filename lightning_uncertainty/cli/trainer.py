"""`fit`, `validate`, `test` and `predict`, and the class that runs them."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Mapping
from pydoc import locate
from typing import Any, NoReturn

import yaml
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities import rank_zero_only

from lightning_uncertainty.callbacks import PredictionWriter, UncertaintyMonitor
from lightning_uncertainty.callbacks.prediction_writer import is_writer
from lightning_uncertainty.cli._arguments import asked, differences, made_of, still_asked
from lightning_uncertainty.cli._mistakes import readable
from lightning_uncertainty.module import MultiTaskModule

__all__ = ["MultiTaskCLI"]


_OF_OPTIMIZER = re.compile(r"model\.(init_args\.)?(optimizer|lr_scheduler)\b")


class Configured(MultiTaskModule):
    """A backbone and tasks, ready for a Trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters()  # within LightningCLI the configuration, which a checkpoint can be built from


class Parser(LightningArgumentParser):
    """Says what is wrong, and not what else there is."""

    model: Callable[..., Any] | None = None  # whose arguments stand below `model`

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(readable(message, self.model) if self.exit_on_error else message, ex)  # inner parsers raise

    def print_usage(self, file: Any = None) -> None:
        """Print nothing: sixty options before the line that matters; the tip to ask for help remains."""


class MultiTaskCLI(LightningCLI):
    """Lightning's command line for modules of several tasks: `fit`, `validate`, `test` and `predict`.

    It is what `lightning-uncertainty` runs, and is made to be subclassed: whatever of LightningCLI a subclass overrides
    or is given does what Lightning's documentation says. What differs from a LightningCLI:

    - Without a class of its own the model is a `MultiTaskModule`, whose arguments stand below `model`, or, with
      `model.class_path`, any LightningModule: a `MultiTaskMixin`, or one whose losses `AdoptLosses`, among the
      Trainer's callbacks, takes apart.
    - An `UncertaintyMonitor` is always there, under `monitor`.
    - Options for optimizers are not added by themselves (`auto_configure_optimizers`): those would decay the
      log-variances. The module configures its own.
    - Of a checkpoint (`ckpt_path`) that a command line made, the model's arguments are those of the checkpoint, but
      where arguments or configuration files say otherwise; every difference is printed.
    - `predict` writes what it predicts beside the logs, a file a batch.

    Example:
        >>> class SceneCLI(MultiTaskCLI):
        ...     def add_arguments_to_parser(self, parser):
        ...         super().add_arguments_to_parser(parser)
        ...         parser.link_arguments("data.num_classes", "model.num_classes", apply_on="instantiate")
        >>> SceneCLI.subcommands().keys()
        dict_keys(['fit', 'validate', 'test', 'predict'])
    """

    def __init__(
        self,
        model_class: type[LightningModule] | Callable[..., LightningModule] | None = None,
        datamodule_class: type[LightningDataModule] | Callable[..., LightningDataModule] | None = None,
        **options: Any,
    ) -> None:
        """Parse the arguments and run what they ask for.

        Args:
            model_class: class of the model, or function that returns one, whose arguments then stand below `model`;
                None for a `MultiTaskModule` or whatever `model.class_path` names.
            datamodule_class: class of the data, likewise; None for whatever `data.class_path` names.
            options: those of LightningCLI.

        Raises:
            SystemExit: an argument or a configuration is wrong.
        """
        arguments = options.get("args")
        self._arguments = sys.argv[1:] if arguments is None else arguments
        commands = self.subcommands() if options.get("run", True) else {}
        self._command = next((name for name in self._arguments if name in commands), None)
        self._asked = asked(self._arguments, self._command)
        self._made = made_of(self._asked.ckpt_path)
        any_class = "" in self._asked.classes or "class_path" in self._made
        if model_class is None and not any_class:
            model_class, datamodule_class = Configured, datamodule_class or LightningDataModule
            options["subclass_mode_data"] = options.get("subclass_mode_data", datamodule_class is LightningDataModule)
        if (model_class is None or options.get("subclass_mode_model")) and "class_path" not in self._made:
            self._made = {"class_path": self._asked.classes.get(""), "init_args": self._made} if self._made else {}
        elif model_class is not None and not options.get("subclass_mode_model"):
            self._made = self._made.get("init_args", self._made)
        options.setdefault("auto_configure_optimizers", False)
        options.setdefault("save_config_kwargs", {"overwrite": True})  # loggers without versions have one folder
        super().__init__(model_class, datamodule_class, **options)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        parser = super().init_parser(**kwargs)
        if type(parser) is LightningArgumentParser:
            parser.__class__ = Parser  # Lightning takes a `parser_class` from 2.5.1 on
        if isinstance(parser, Parser):
            own = MultiTaskModule if self.model_class is Configured else self.model_class
            named = locate(self._asked.classes.get("", ""))
            parser.model = own or (named if callable(named) else None)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is beside Trainer, model and data: the monitor."""
        parser.add_lightning_class_args(UncertaintyMonitor, "monitor")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, upon what the checkpoint was made of, and print what is otherwise."""
        own = still_asked(self._made, self._asked.classes)
        if not own or not isinstance(self._arguments, list) or not self._readable(own):
            super().parse_arguments(parser, args)
        else:
            where = self._arguments.index(str(self._command)) + 1
            upon = ["--config", yaml.safe_dump({"model": own})]
            self.config = parser.parse_args([*self._arguments[:where], *upon, *self._arguments[where:]])
            self.config[self._command].config = [path for path in self.config[self._command].config if path]
        if self._made:
            self._print_differences()

    def _readable(self, made: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint's arguments are those of this model; print what of them is not."""
        parser = self._parser(self._command)
        exits, parser.exit_on_error = parser.exit_on_error, False
        try:
            parsed = parser.parse_object({"model": made}, defaults=False, _skip_validation=True)
            parser.validate(parsed, skip_required=True)
        except (ArgumentError, TypeError, KeyError) as error:
            _say(f"Arguments in the checkpoint are not used: {readable(str(error)).splitlines()[0]}")
            return False
        finally:
            parser.exit_on_error = exits
        return True

    def _print_differences(self) -> None:
        shown = yaml.safe_load(self.parser.dump(self.config, skip_none=False, skip_link_targets=False, format="yaml"))
        found = list(differences(shown.get(self._command, shown).get("model", {}), self._made))
        if self._command == "fit" and any(_OF_OPTIMIZER.match(line) for line in found):
            found.append(
                "A resumed fit takes up the state of optimizer and scheduler, in which the checkpoint's rates are."
            )
        if found:
            _say("\n  ".join(["Otherwise than in the checkpoint:", *found]))

    def _parse_ckpt_path(self) -> None:
        """Leave it to `parse_arguments`: here Lightning has the checkpoint's arguments override what was given."""

    def predict(self, **arguments: Any) -> None:
        """Predict, and write the predictions beside the logs, a file a batch; a writer of the configuration's is it."""
        trainer: Any = self.trainer
        writer = next((one for one in trainer.callbacks if is_writer(one)), None) or PredictionWriter()
        if writer not in trainer.callbacks:
            trainer.callbacks.append(writer)
        if arguments.get("return_predictions") is None:
            arguments["return_predictions"] = False
        _ = trainer.log_dir  # its version, before a strategy starts processes that would settle on one of their own
        trainer.predict(**arguments)
        if isinstance(writer, PredictionWriter):
            folder = writer.folder_of(trainer)
            _say(f"Predictions, a file a batch: {folder}")
            _say(f"In the order of the data, in one file: lightning-uncertainty gather {folder}")


@rank_zero_only
def _say(text: str) -> None:
    print(text)
