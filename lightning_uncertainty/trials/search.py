"""Fixed weights found by search: a grid on the simplex, or any sampler of Optuna."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytorch_lightning import seed_everything

from lightning_uncertainty.trials._fits import Fits, found_in, import_optuna, ranked
from lightning_uncertainty.trials._folder import TrialFolder
from lightning_uncertainty.trials._measures import Directions, MetricNames, directions, find_measures
from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._run import run_trial
from lightning_uncertainty.trials._setup import describe, differences
from lightning_uncertainty.trials._trial import Trial
from lightning_uncertainty.trials._watch import TrialWatch
from lightning_uncertainty.trials.fit import Data, Make, Maker
from lightning_uncertainty.trials.weight_search import WeightSearch, simplex_grid
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
    folder: str | Path | None = None,
    retry_failed: bool = False,
) -> WeightSearch:
    """Fit a model under many fixed weights, which add up to 1, and find the best.

    With a folder, points of the grid that are finished are not trained again: a search that was killed goes on, and any
    number of processes that call this with one folder share the work, each point fitted by one of them, as `compare`
    does. A storage of Optuna keeps what other samplers draw, and shows any search to Optuna's own tools.

    A fit that raises, as for want of memory, is kept as failed, and the others go on.

    Args:
        make: builds the LightningModule, as for `compare`.
        data: as for `compare`.
        parts: n of the grid: weights are multiples of 1/n.
        zeros: whether the grid has weights of zero, which switch tasks off.
        sampler: of Optuna; None takes all points of the grid. One draws from the whole
            simplex, through one number in (0, 1) for each task whose logarithms are shared out, so that a RandomSampler
            is uniform (Dirichlet(1, ..., 1)).
        n_trials: how many fits this call makes at most; None is the whole grid. Other samplers need it.
        objective: log key of what is sought, at the last epoch; lower is better unless torchmetrics, or
            `higher_is_better`, says otherwise.
        metrics: what the tasks are judged by in table and plot, as for `compare`; it does not guide the search.
        higher_is_better: as for `compare`.
        seed: of every fit, and of the order of the grid.
        trainer: options of the Trainer, as for `compare`.
        storage: of Optuna, as "sqlite:///search.db"; None keeps its trials in memory.
        study_name: name of the study in the storage.
        pruner: of Optuna, told the objective after every validation; None ends no fit early. It knows the fits of other
            processes by the storage.
        folder: where the trials of a grid are kept and claimed; None is `search.db.trials` beside a storage that is the
            SQLite file `search.db`, and nowhere else.
        retry_failed: whether points whose fit has failed before are fitted again, once.

    Returns:
        A `WeightSearch`: the table, the Pareto plot and the best `FixedWeighting`.

    Raises:
        ModuleNotFoundError: optuna is not installed.
        ValueError: the study or the folder holds trials of another search; a sampler has no `n_trials`, or a folder; no
            fit came to its end; the objective or a metric is not logged or has no known direction; or as `compare`.
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
    optuna = import_optuna()
    options, maker = dict(trainer or {}), Maker(make)
    seed_everything(seed, workers=True, verbose=False)
    probe = maker(FixedWeighting())
    tasks, known = tuple(probe.task_likelihoods()), directions(probe)
    setup, older = (
        {
            **describe(probe, data, options, {}, attributes=attributes),
            "weights": "any" if sampler else f"multiples of 1/{parts}{' and zeros' if zeros else ''}",
            "objective": objective,
            "seed": str(seed),
        }
        for attributes in (True, False)
    )
    del probe
    if sampler is not None and n_trials is None:
        raise ValueError(f"n_trials should say when {type(sampler).__name__} has drawn enough: found None")
    if sampler is not None and folder is not None:
        raise ValueError(
            f"folder should be given for a grid: found one for {type(sampler).__name__}, whose draws a storage keeps; "
            "give storage='sqlite:///search.db'"
        )
    maximize = _maximize(objective, known, higher_is_better)
    grid = [] if sampler is not None else simplex_grid(len(tasks), parts, zeros=zeros)
    with ExitStack() as stack:
        lasting = folder or _beside(storage)
        place = lasting or stack.enter_context(tempfile.TemporaryDirectory())
        kept = None if sampler is not None else TrialFolder(place, setup, lambda: [older])
        with nullcontext() if kept is None else kept.alone("study"):  # two cannot make its tables at once
            study = optuna.create_study(
                storage=storage,
                sampler=sampler or optuna.samplers.RandomSampler(seed=seed),
                pruner=pruner or optuna.pruners.NopPruner(),
                study_name=study_name,
                direction="maximize" if maximize else "minimize",
                load_if_exists=True,
            )
            if study.user_attrs.get("setup") != older:
                _check_study(study, setup)

        def run(plan: Plan, attempt: int, callbacks: Sequence[Any], watch: TrialWatch) -> Trial:
            return run_trial(plan, attempt, maker, data, options, callbacks, watch)

        fits = Fits(study, objective, maximize, seed, run)
        if kept is None:
            fits.draw(tasks, n_trials or 0)
            points = found_in(study)
        else:
            points = found_in(study)
            weights = [dict(zip(tasks, point, strict=True)) for point in grid]
            points |= fits.take(
                kept, weights, points, n_trials, retry_failed, lasting is not None or storage is not None
            )
    best_first = ranked(points.values(), maximize)
    return WeightSearch(
        best_first, find_measures(tasks, best_first[0].row, known, metrics, higher_is_better), objective, maximize
    )


# -- within ------------------------------------------------------------------------------------------------------------


def _beside(storage: str | BaseStorage | None) -> str | None:
    """Return a folder beside the file of SQLite that a storage is."""
    if not isinstance(storage, str) or not storage.startswith("sqlite:///") or storage.endswith(":memory:"):
        return None
    return f"{storage.removeprefix('sqlite:///')}.trials"


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
    apart = "" if held is None else differences(held, setup)
    if held is None or apart:
        raise ValueError(
            f"a study should hold trials of one search: found that in {study.study_name!r} "
            f"{apart or 'trials are of something else'}; give another study_name or storage"
        )
