"""Which weighting works better on your data: many weightings of one model, over several seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytorch_lightning import seed_everything

from lightning_uncertainty.dashboards.loggers import refusable
from lightning_uncertainty.dashboards.wandb import check_comparison_logger
from lightning_uncertainty.trials._folder import Trial, TrialFolder
from lightning_uncertainty.trials._measures import Directions, Measure, MetricNames, directions, find_measures
from lightning_uncertainty.trials._progress import TrialProgress
from lightning_uncertainty.trials._setup import describe, text_of
from lightning_uncertainty.trials._watch import TrialWatch
from lightning_uncertainty.trials.comparison import Comparison
from lightning_uncertainty.trials.fit import Data, Make, Maker, NewWeighting, fit, new_weighting
from lightning_uncertainty.weightings import FixedWeighting

__all__ = ["SINGLE_TASK", "compare"]

SINGLE_TASK = "single task"


def compare(
    make: Make,
    data: Data,
    weightings: Mapping[str, NewWeighting],
    folder: str | Path,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    baseline: str | None = SINGLE_TASK,
    metrics: MetricNames | None = None,
    higher_is_better: Directions | None = None,
    best_by: str | None = None,
    trainer: Mapping[str, Any] | None = None,
    setup: Mapping[str, Any] | None = None,
    logger: Any = None,
    progress_bar: bool = True,
) -> Comparison:
    """Train a model under every weighting and seed, and compare what each task comes to.

    A finished trial is written to the folder at once, and never trained again: a comparison that was killed goes on
    where it was, and another weighting or seed may be added later. Several processes may share a folder, each with a
    part of the weightings or seeds; a last call with all of them collects the results.

    Args:
        make: builds the LightningModule, a `MultiTaskMixin`, and gives the weighting to its `register_tasks`. It is
            called for every trial, after seeding, and builds the network anew each time.
        data: a LightningDataModule, a pair of loaders for training and validation, or a function without arguments
            that returns either, called for every trial after seeding.
        weightings: by name, what makes one (a class, a partial, a lambda), or one that belongs to no module yet, of
            which every trial gets a copy.
        folder: where the trials are kept.
        seeds: of `seed_everything`, one trial each.
        baseline: what the gain is relative to. "single task" trains every task that is not auxiliary alone, in the same
            network (`FixedWeighting` with 0 for the others): a baseline of equal capacity. The name of a weighting
            saves these fits; None leaves the gain out.
        metrics: by task, one or more names under `val/<task>/`, or whole log keys; by default the first that the module
            logs there, else "loss".
        higher_is_better: by task, or by task and metric; by default what torchmetrics says.
        best_by: log key, as "val/balanced_loss", that chooses the epoch at its best; the last epoch where None. Trials
            of a single task go by their own `val/<task>/loss`.
        trainer: options of the Trainer, as `{"max_epochs": 30, "accelerator": "cpu"}`. Every trial gets copies of its
            callbacks; no logs and no checkpoints are written unless asked for.
        setup: anything else that decides the results, as `{"lr": 1e-3}`: a folder holds trials of one setup. Tasks,
            shapes of parameters, hyper-parameters and Trainer options are part of it already.
        logger: a WandbLogger or a run of wandb, which gets table and plot.
        progress_bar: whether to show one, where rich is installed.

    Returns:
        A `Comparison`: table, CSV, plot, gain and mean rank.

    Raises:
        ValueError: the folder holds trials of another setup; a weighting belongs to a module already, or its name is
            taken; `make` does not use it or reuses a network; a metric is not logged or has no known direction; there
            is no validation; the logger is none of wandb's.
        TypeError: `make` returns no `MultiTaskMixin`.

    Example:
        >>> import tempfile, torch
        >>> from lightning_uncertainty import MultiTaskModule, Task, UncertaintyWeighting
        >>> def make(weighting):
        ...     head = torch.nn.Linear
        ...     tasks = {"depth": Task("laplace", head=head(8, 1)), "width": Task("gaussian", head=head(8, 1))}
        ...     return MultiTaskModule(head(2, 8), tasks, weighting, inputs="x")
        >>> rows = [{"x": torch.ones(2), "depth": torch.ones(1), "width": torch.zeros(1)} for _ in range(8)]
        >>> loader = torch.utils.data.DataLoader(rows, batch_size=4)
        >>> weightings = {"equal": FixedWeighting, "uncertainty": UncertaintyWeighting}
        >>> options = {"max_epochs": 1, "accelerator": "cpu"}
        >>> found = compare(make, (loader, loader), weightings, tempfile.mkdtemp(), seeds=[0], trainer=options)
        >>> sorted(result.name for result in found.results)
        ['equal', 'single task', 'uncertainty']
    """
    _check(weightings, seeds, baseline)
    if logger is not None:
        check_comparison_logger(logger)
    options, maker = dict(trainer or {}), Maker(make)
    seed_everything(seeds[0], workers=True, verbose=False)
    probe = maker(new_weighting(*next(iter(weightings.items()))))
    kinds, auxiliary = probe.task_likelihoods(), tuple(probe.auxiliary_tasks())
    tasks = tuple(kinds)
    kept = TrialFolder(folder, describe(probe, data, options, setup or {}))
    del probe
    plans = [_Plan(name, None, given, seed) for seed in seeds for name, given in weightings.items()]
    if baseline == SINGLE_TASK:
        kept_on = {task: [kind.constant or other == task for other, kind in kinds.items()] for task in tasks}
        alone = {task: FixedWeighting(dict(zip(tasks, map(float, kept_on[task]), strict=True))) for task in tasks}
        plans += [
            _Plan(SINGLE_TASK, task, alone[task], seed) for seed in seeds for task in tasks if task not in auxiliary
        ]
    trials = {plan: plan.find(kept) for plan in plans}
    missing = [plan for plan, trial in trials.items() if trial is None]
    with TrialProgress(len(missing), progress_bar) as progress:
        for plan in missing:
            trials[plan] = plan.run(maker, data, options, kept, progress)
            _measures(trials.values(), tasks, metrics, higher_is_better, best_by)  # tells mistakes after one fit
    finished = tuple(trial for trial in trials.values() if trial is not None)
    measures = _measures(finished, tasks, metrics, higher_is_better, best_by)
    comparison = Comparison(finished, measures, auxiliary, baseline, best_by)
    if logger is not None:
        with refusable(logger, "a comparison"):
            comparison.log(logger)
    return comparison


@dataclass(frozen=True, eq=False)
class _Plan:
    """A trial to be run, or found."""

    name: str
    task: str | None
    given: NewWeighting
    seed: int

    def find(self, kept: TrialFolder) -> Trial | None:
        return kept.find(self.name, self.task, self.seed, text_of(new_weighting(self.name, self.given)))

    def run(
        self, maker: Maker, data: Data, options: Mapping[str, Any], kept: TrialFolder, progress: TrialProgress
    ) -> Trial:
        weighting = new_weighting(self.name, self.given)
        text, watch = text_of(weighting), TrialWatch()
        progress.start(f"{self.name if self.task is None else f'{self.name} {self.task}'}, seed {self.seed}")
        options = {"default_root_dir": kept.scratch(self.name, self.task, self.seed), **options}
        module = fit(maker, weighting, data, self.seed, options, [watch, progress])
        found = watch.rows, directions(module), watch.step_time, watch.peak_memory
        trial = Trial(self.name, self.task, self.seed, text, *found)
        kept.keep(trial)
        progress.finish()
        return trial


def _measures(
    trials: Iterable[Trial | None],
    tasks: Sequence[str],
    metrics: MetricNames | None,
    higher_is_better: Directions | None,
    best_by: str | None,
) -> tuple[Measure, ...]:
    trial = next(trial for trial in trials if trial is not None)
    return find_measures(tasks, trial.row(best_by), trial.higher_is_better, metrics, higher_is_better)


def _check(weightings: Mapping[str, NewWeighting], seeds: Sequence[int], baseline: str | None) -> None:
    if not weightings or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"a comparison should have weightings, and seeds that differ: found {len(weightings)} weightings and seeds "
            f"{list(seeds)}"
        )
    if SINGLE_TASK in weightings:
        raise ValueError(f"a weighting should not be called {SINGLE_TASK!r}, which is the baseline: rename it")
    if baseline not in (None, SINGLE_TASK, *weightings):
        raise ValueError(
            f"baseline should be {SINGLE_TASK!r}, None, or one of {', '.join(weightings)}: found {baseline!r}"
        )
    for name, given in weightings.items():
        new_weighting(name, given)
