"""Which weighting works better on your data: many weightings of one model, over several seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from pytorch_lightning import seed_everything

from lightning_uncertainty.dashboards.loggers import refusable
from lightning_uncertainty.dashboards.wandb import check_comparison_logger
from lightning_uncertainty.trials._folder import TrialFolder
from lightning_uncertainty.trials._measures import Directions, Measure, MetricNames, find_measures
from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._progress import TrialProgress
from lightning_uncertainty.trials._run import run_trial
from lightning_uncertainty.trials._settings import chosen, judged_by, points_of
from lightning_uncertainty.trials._setup import describe, text_of
from lightning_uncertainty.trials._trial import Trial
from lightning_uncertainty.trials._work import Work
from lightning_uncertainty.trials.comparison import SINGLE_TASK, Comparison, alone_under
from lightning_uncertainty.trials.fit import Data, Make, Maker, NewWeighting, check_loaders, new_weighting
from lightning_uncertainty.weightings import FixedWeighting

__all__ = ["SINGLE_TASK", "compare"]


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
    retry_failed: bool = False,
    alone: Sequence[str] = (),
    settings: Mapping[str, Sequence[Any]] | None = None,
    choose_by: str = "val/balanced_loss",
) -> Comparison:
    """Train a model under every weighting and seed, and compare what each task comes to.

    A finished trial is written to the folder at once, and never trained again: a comparison that was killed goes on
    where it was, and another weighting or seed may be added later. Any number of processes may run this call on one
    folder: each trial is trained by one of them, which holds its lock as long as the fit takes, and all return the
    whole comparison. The machines of processes that share a folder need a file system whose locks hold among them.

    A trial whose fit raises, as for want of memory, is kept as failed, with what was raised, and the others go on.

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
            network with constant weight, and without the heads that the others own: a baseline of equal capacity. The
            name of a weighting saves these fits; None leaves the gain out.
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
        progress_bar: whether to show one, of rich; without it, or without a terminal, lines say when a trial begins and
            when it ends.
        retry_failed: whether trials that have failed before are fitted again, once.
        alone: names of weightings under which single tasks are trained, too, a fit for every task and seed: what a
            weighting gains over these it gains by tasks together, and not by the rate or the loss that it gives one.
        settings: values by name that `make` is called with, as `{"lr": [1e-3, 3e-3]}` for `make(weighting, lr)`. Every
            weighting, and every single task, is fitted at each with the first seed, and with all seeds where that did
            best on the validation data; there it is reported on the test data, after the last epoch. Loaders are then
            three, the last for testing.
        choose_by: log key of the last validation by which settings are chosen; single tasks go by their own loss.

    Returns:
        A `Comparison`: table, CSV, plot, gain and mean rank.

    Raises:
        ValueError: the folder holds trials of another setup; a weighting belongs to a module already, or its name is
            taken; `make` does not use it or reuses a network; a metric is not logged or has no known direction; there
            is no validation; every trial failed; the logger is none of wandb's.
        OSError: a trial cannot be written; those that are over stay readable.
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
    alone = [alone] if isinstance(alone, str) else alone
    seeds = [int(seed) for seed in seeds]
    _check(weightings, seeds, baseline, alone)
    if logger is not None:
        check_comparison_logger(logger)
    points = points_of(settings or {})
    if settings and best_by is not None:
        raise ValueError(f"best_by should be None with settings, which are tested at the last epoch: found {best_by!r}")
    options, maker = dict(trainer or {}), Maker(make)
    seed_everything(seeds[0], workers=True, verbose=False)
    probe = maker(FixedWeighting(), **points[0])  # which no model refuses
    kinds, auxiliary = probe.task_likelihoods(), tuple(probe.auxiliary_tasks())
    tasks = tuple(kinds)
    own_setup = partial(describe, data=data, options=options, setup=setup or {}, settings=settings or {})

    def others() -> Iterator[dict[str, str]]:
        for attributes, point in product((True, False), points):  # the network may be another at each
            yield own_setup(maker(FixedWeighting(), **point), attributes=attributes)

    kept = TrialFolder(folder, own_setup(probe), others)
    if settings:
        _check_tested(probe, data)
    del probe
    texts = {name: text_of(new_weighting(name, given)) for name, given in weightings.items()}
    plans = [Plan(name, None, seed, given, texts[name]) for seed in seeds for name, given in weightings.items()]
    own = [task for task in tasks if task not in auxiliary]
    singles = [(alone_under(name), task, weightings[name], texts[name]) for name in alone for task in own]
    if baseline == SINGLE_TASK:
        for task in own:
            weights = {other: float(kind.constant or other == task) for other, kind in kinds.items()}
            singles.append((SINGLE_TASK, task, FixedWeighting(weights), text_of(FixedWeighting(weights))))
    plans += [Plan(name, task, seed, given, text) for seed in seeds for name, task, given, text in singles]
    judged = partial(
        _measures, tasks=tasks, metrics=metrics, directions=higher_is_better, best_by=best_by, tested=bool(settings)
    )

    def done(plans: Sequence[Plan]) -> dict[Plan, Trial]:
        work = Work(kept, plans, retry_failed)
        with TrialProgress(len(work.missing), progress_bar) as progress:
            work.waits = progress.waits

            def run(plan: Plan, attempt: int) -> Trial:
                progress.start(str(plan))
                logged = {"default_root_dir": kept.scratch(plan), **options}
                return run_trial(plan, attempt, maker, data, logged, [progress], tested=bool(settings))

            for trial in work.do(run):
                progress.finish(trial.error)
                if not trial.failed:  # tells mistakes after one fit
                    judged([trial])
                    if settings:
                        judged_by(trial, choose_by)
        return work.trials

    if settings:
        tried = {plan: [plan.at(point) for point in points] for plan in plans if plan.seed == seeds[0]}
        first = done([at for ats in tried.values() for at in ats])
        best = {plan.of: chosen(ats, first, choose_by) for plan, ats in tried.items()}
        plans = [at if plan.seed == at.seed else plan.at(at.settings) for plan in plans for at in [best[plan.of]]]
        found = first | done([plan for plan in plans if plan not in first])
    else:
        found = done(plans)
    trials = tuple(found[plan] for plan in plans)
    comparison = Comparison(trials, judged(trials), auxiliary, baseline, best_by)
    if logger is not None:
        with refusable(logger, "a comparison"):
            comparison.log(logger)
    return comparison


def _check_tested(module: Any, data: Data) -> None:
    if type(module).test_step.__module__.partition(".")[0] in ("pytorch_lightning", "lightning"):
        raise ValueError(
            f"settings should be reported on test data: found no test_step in {type(module).__name__}; write one that "
            "calls weigh(..., stage='test') or task_step(..., 'test')"
        )
    if isinstance(data, tuple | list):
        check_loaders(data, tested=True)
    loader = getattr(type(data), "test_dataloader", None)
    if loader is not None and loader.__module__.partition(".")[0] in ("pytorch_lightning", "lightning"):
        raise ValueError(
            f"settings should be reported on test data: found no test_dataloader in {type(data).__name__}; write one"
        )


def _measures(
    trials: Sequence[Trial],
    tasks: Sequence[str],
    metrics: MetricNames | None,
    directions: Directions | None,
    best_by: str | None,
    tested: bool,
) -> tuple[Measure, ...]:
    trial = next((trial for trial in trials if not trial.failed), None)
    if trial is None:
        raise ValueError(
            f"a comparison should have a trial that came to its end: found {len(trials)} that failed, the last with "
            f"{trials[-1].error}; mend it, and call this again with retry_failed=True\n\n{trials[-1].traceback}"
        )
    stage = "test" if tested else "val"
    return find_measures(tasks, trial.row(best_by), trial.higher_is_better, metrics, directions, stage)


def _check(
    weightings: Mapping[str, NewWeighting], seeds: Sequence[int], baseline: str | None, alone: Sequence[str]
) -> None:
    if not weightings or not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"a comparison should have weightings, and seeds that differ: found {len(weightings)} weightings and seeds "
            f"{list(seeds)}"
        )
    if unknown := [name for name in alone if name not in weightings]:
        raise ValueError(f"alone should name weightings ({', '.join(weightings)}): found {', '.join(unknown)}")
    if clash := [name for name in alone if alone_under(name) in weightings]:
        raise ValueError(
            f"a weighting should not be called {alone_under(clash[0])!r}, as its single tasks are: rename it"
        )
    if SINGLE_TASK in weightings:
        raise ValueError(f"a weighting should not be called {SINGLE_TASK!r}, which is the baseline: rename it")
    if baseline not in (None, SINGLE_TASK, *weightings):
        raise ValueError(
            f"baseline should be {SINGLE_TASK!r}, None, or one of {', '.join(weightings)}: found {baseline!r}"
        )
    for name, given in weightings.items():
        new_weighting(name, given)
