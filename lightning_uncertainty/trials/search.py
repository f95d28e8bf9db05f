"""Fixed weights found by search: a grid on the simplex, or any sampler of Optuna."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytorch_lightning import seed_everything

from lightning_uncertainty.callbacks.base import AnyCallback
from lightning_uncertainty.trials._measures import Directions, MetricNames, directions, find_measures
from lightning_uncertainty.trials._setup import describe
from lightning_uncertainty.trials._watch import TrialWatch
from lightning_uncertainty.trials.fit import Data, Make, Maker, fit
from lightning_uncertainty.trials.weight_search import Point, WeightSearch, simplex_grid
from lightning_uncertainty.weightings import FixedWeighting

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.storages import BaseStorage
    from optuna.study import Study

__all__ = ["search_weights"]


def search_weights(
    make: Make,
    data: Data,
    *,
    parts: int = 10,
    zeros: bool = False,
    sampler: BaseSampler | None = None,
    n_trials: int | None = None,
    objective: str = "val/balanced_loss",
    metrics: MetricNames | None = None,
    higher_is_better: Directions | None = None,
    seed: int = 0,
    trainer: Mapping[str, Any] | None = None,
    storage: str | BaseStorage | None = None,
    study_name: str = "weights",
    pruner: BasePruner | None = None,
) -> WeightSearch:
    """Fit a model under many fixed weights, which add up to 1, and find the best.

    With a storage, points that are finished are not trained again: a search that was killed goes on, and several
    processes that call this with one storage share the work. (Towards the end a process without work may repeat a point
    that another is at, as that one could have been killed.)

    Args:
        make: builds the LightningModule, as for `compare`.
        data: as for `compare`.
        parts: n of the grid: weights are multiples of 1/n.
        zeros: whether the grid has weights of zero, which switch tasks off.
        sampler: of Optuna; None is its GridSampler over all points of the grid. Another one draws from the whole
            simplex, through one number in (0, 1) for each task whose logarithms are shared out, so that a RandomSampler
            is uniform (Dirichlet(1, ..., 1)).
        n_trials: how many fits this call makes at most; None is the whole grid. Other samplers need it.
        objective: log key of what is sought, at the last epoch; lower is better unless torchmetrics, or
            `higher_is_better`, says otherwise.
        metrics: what the tasks are judged by in table and plot, as for `compare`; it does not guide the search.
        higher_is_better: as for `compare`.
        seed: of every fit, and of the order of the grid.
        trainer: options of the Trainer, as for `compare`.
        storage: of Optuna, as "sqlite:///search.db"; None keeps the trials in memory.
        study_name: name of the study in the storage.
        pruner: of Optuna, told the objective after every validation; None ends no fit early.

    Returns:
        A `WeightSearch`: the table, the Pareto plot and the best `FixedWeighting`.

    Raises:
        ModuleNotFoundError: optuna is not installed.
        ValueError: the study holds trials of another search; a sampler has no `n_trials`; the objective or a metric is
            not logged or has no known direction; or as `compare`.
        TypeError: `make` returns no `MultiTaskMixin`.

    Source: Xin, Ghorbani, Gilmer, Garg & Firat, "Do Current Multi-Task Optimization Methods in Deep Learning Even
    Help?", NeurIPS 2022, on how far fixed weights go.

    Example:
        >>> import torch
        >>> from lightning_uncertainty import MultiTaskModule, Task
        >>> def make(weighting):
        ...     head = torch.nn.Linear
        ...     tasks = {"depth": Task("laplace", head=head(8, 1)), "width": Task("gaussian", head=head(8, 1))}
        ...     return MultiTaskModule(head(2, 8), tasks, weighting, inputs="x")
        >>> rows = [{"x": torch.ones(2), "depth": torch.ones(1), "width": torch.zeros(1)} for _ in range(8)]
        >>> loader = torch.utils.data.DataLoader(rows, batch_size=4)
        >>> found = search_weights(make, (loader, loader), parts=4, trainer={"max_epochs": 1, "accelerator": "cpu"})
        >>> len(found.points), type(found.weighting).__name__
        (3, 'FixedWeighting')
    """
    optuna = _import_optuna()
    options, maker = dict(trainer or {}), Maker(make)
    seed_everything(seed, workers=True, verbose=False)
    probe = maker(FixedWeighting())
    tasks, known = tuple(probe.task_likelihoods()), directions(probe)
    setup = {
        **describe(probe, data, options, {}),
        "weights": "any" if sampler else f"multiples of 1/{parts}{' and zeros' if zeros else ''}",
        "objective": objective,
        "seed": str(seed),
    }
    del probe
    if sampler is not None and n_trials is None:
        raise ValueError(f"n_trials should say when {type(sampler).__name__} has drawn enough: found None")
    maximize = _maximize(objective, known, higher_is_better)
    grid = None if sampler is not None else simplex_grid(len(tasks), parts, zeros=zeros)
    study = optuna.create_study(
        storage=storage,
        sampler=sampler or optuna.samplers.GridSampler({"point": list(range(len(grid or ())))}, seed=seed),
        pruner=pruner or optuna.pruners.NopPruner(),
        study_name=study_name,
        direction="maximize" if maximize else "minimize",
        load_if_exists=True,
    )
    _check_study(study, setup)

    def run(trial: Any) -> float:
        weights = dict(zip(tasks, _draw(trial, tasks, grid), strict=True))
        trial.set_user_attr("weights", weights)
        watch = TrialWatch()
        fit(maker, FixedWeighting(weights), data, seed, options, [watch, _Report(trial, objective, watch)])
        trial.set_user_attr("row", watch.rows[-1])
        value = watch.rows[-1][objective]
        return value if not math.isnan(value) else -math.inf if maximize else math.inf

    for turn in _turns(study, n_trials):
        study.sampler = turn
        study.optimize(run, n_trials=1)
    points = _found(study, maximize)
    return WeightSearch(
        points, find_measures(tasks, points[0].row, known, metrics, higher_is_better), objective, maximize
    )


# -- within ------------------------------------------------------------------------------------------------------------


class _Report(AnyCallback):
    """Tells Optuna the objective after every validation, and ends the fit if its pruner says so."""

    def __init__(self, trial: Any, objective: str, watch: TrialWatch) -> None:
        super().__init__()
        self.trial, self.objective, self.watch = trial, objective, watch

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Report."""
        if trainer.sanity_checking:
            return
        row = self.watch.rows[-1]
        if self.objective not in row:
            raise ValueError(
                f"objective should be a log key of validation: found nothing under {self.objective!r} among "
                f"{', '.join(row)}"
            )
        self.trial.report(row[self.objective], step=len(self.watch.rows) - 1)
        if self.trial.should_prune():
            raise _import_optuna().TrialPruned


def _import_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a search needs optuna: pip install 'lightning-uncertainty[search]'") from error
    return optuna


def _maximize(objective: str, known: Mapping[str, bool | None], given: Directions | None) -> bool:
    """Return which way the objective is better; lower where nobody says."""
    stage, _, rest = objective.partition("/")
    task, _, name = rest.partition("/")
    said = (given or {}).get(task) if stage == "val" and name != "loss" else None
    said = said.get(name) if isinstance(said, Mapping) else said
    return bool(known.get(objective) if said is None else said)


def _check_study(study: Study, setup: Mapping[str, str]) -> None:
    """Look whether a study is of this search, and note what it is of.

    Raises:
        ValueError: it is not.
    """
    held = study.user_attrs.get("setup")
    if held is None and not study.get_trials(deepcopy=False):
        study.set_user_attr("setup", dict(setup))
        return
    names = dict.fromkeys([*(held or {}), *setup])
    apart = [
        f"{name} was {held.get(name, 'not given')} and is {setup.get(name, 'not given')}"
        for name in names
        if held is not None and held.get(name) != setup.get(name)
    ]
    if held is None or apart:
        raise ValueError(
            f"a study should hold trials of one search: found that in {study.study_name!r} "
            f"{'; '.join(apart) or 'trials are of something else'}; give another study_name or storage"
        )


def _draw(trial: Any, tasks: Sequence[str], grid: Sequence[tuple[float, ...]] | None) -> tuple[float, ...]:
    """Return weights that add up to 1, in the order of the tasks."""
    if grid is not None:
        point: int = trial.suggest_int("point", 0, len(grid) - 1)
        return grid[point]
    shares = [-math.log(trial.suggest_float(task, 1e-6, 1 - 1e-6)) for task in tasks]  # exponential: Dirichlet(1)
    return tuple(share / sum(shares) for share in shares)


def _turns(study: Study, n_trials: int | None) -> Iterator[BaseSampler]:
    """Yield the sampler of every fit that this call should make."""
    from optuna.samplers import GridSampler

    sampler, count = study.sampler, 0
    trials = study.get_trials(deepcopy=False)
    done = {trial.params.get("point") for trial in trials if trial.state.name != "FAIL"}
    failed = {trial.params["point"] for trial in trials if "point" in trial.params} - done
    for point in sorted(failed)[:n_trials]:  # the grid's sampler counts them as visited
        yield GridSampler({"point": [point]})
        count += 1
    while n_trials is None or count < n_trials:
        if isinstance(sampler, GridSampler) and sampler.is_exhausted(study):
            return
        yield sampler
        count += 1


def _found(study: Study, maximize: bool) -> tuple[Point, ...]:
    """Return what the study holds, each weights once, the best first and last what was ended early.

    Raises:
        ValueError: no fit came to its end.
    """
    points: dict[tuple[float, ...], Point] = {}
    for trial in study.get_trials():
        if trial.state.name in ("COMPLETE", "PRUNED"):
            weights = trial.user_attrs["weights"]
            value = trial.value if trial.state.name == "COMPLETE" else None
            points[tuple(weights.values())] = Point(weights, value, trial.user_attrs.get("row", {}))
    if all(point.value is None for point in points.values()):
        raise ValueError("a search should have fits that came to their end: found none; raise n_trials, or prune less")
    sign = -1 if maximize else 1
    return tuple(sorted(points.values(), key=lambda p: (p.value is None, sign * (p.value or 0.0))))
