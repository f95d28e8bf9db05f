"""`compare`: several weightings of what `fit` would train."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.cli import LightningArgumentParser

from lightning_uncertainty.cli.trainer import MultiTaskCLI
from lightning_uncertainty.trials import compare
from lightning_uncertainty.trials.comparing import SINGLE_TASK
from lightning_uncertainty.trials.fit import QUIET
from lightning_uncertainty.weightings import Weighting

__all__ = ["CompareCLI"]


class CompareCLI(MultiTaskCLI):
    """`compare`: what `fit` would train, under several weightings."""

    def __init__(self) -> None:
        super().__init__(run=False, args=sys.argv[2:], parser_kwargs={"prog": "lightning-uncertainty compare"})

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
        config = self.config
        if "init_args" in config.model and "weighting" not in config.model.init_args:
            raise ValueError(
                f"a class to compare should take the argument weighting: found none of {config.model.class_path}; "
                "hand it on to register_tasks, or write the comparison in Python with lightning_uncertainty.trials"
            )
        if config.get("data") is None:
            raise ValueError("a comparison should have data: found none; give --data, a LightningDataModule")
        built = self._build()
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
            setup={"data": config.data, **({"model": config.model} if "init_args" in config.model else {})},
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
        own = "model.init_args.weighting" if "init_args" in config.model else "model.weighting"
        for path, value in (settings or {}).items():
            if path not in config or path.partition(".")[0] not in ("model", "data") or path == own:
                raise ValueError(
                    f"settings should be paths of the configuration below model or data, and not {own}: found "
                    f"{path!r}; give --weightings for weightings, and a folder (--out) of its own for other options"
                )
            config[path] = value
        config[own] = weighting
        return self.parser.instantiate_classes(config)
