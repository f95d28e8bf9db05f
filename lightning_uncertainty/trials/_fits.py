"""The fits of a search: each a trial of ours within one of Optuna's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lightning_uncertainty.callbacks.base import AnyCallback
from lightning_uncertainty.trials._folder import TrialFolder
from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._run import EndedEarly
from lightning_uncertainty.trials._setup import text_of
from lightning_uncertainty.trials._trial import FINISHED, Trial
from lightning_uncertainty.trials._watch import TrialWatch
from lightning_uncertainty.trials._work import Work
from lightning_uncertainty.trials.fit import SetupError
from lightning_uncertainty.trials.weight_search import Point
from lightning_uncertainty.weightings import FixedWeighting

if TYPE_CHECKING:
    from optuna.study import Study

__all__ = ["Fits", "draw_weights", "found_in", "import_optuna", "ranked"]


def import_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a search needs optuna: pip install 'lightning-uncertainty[search]'") from error
    return optuna


class _Failed(Exception):  # noqa: N818
    """For Optuna: a fit that failed, of which the trial says why."""


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
            raise SetupError(
                f"objective should be a log key of validation: found nothing under {self.objective!r} among "
                f"{', '.join(row)}"
            )
        self.trial.report(row[self.objective], step=len(self.watch.rows) - 1)
        if self.trial.should_prune():
            raise EndedEarly


class Fits:
    """The fits of a study: each a trial of ours within one of Optuna's.

    Args:
        study: of Optuna.
        objective: log key of what is sought.
        maximize: whether more of it is better.
        seed: of every fit.
        run: from a plan, the number of the attempt, callbacks and their watch to a trial.
    """

    def __init__(self, study: Study, objective: str, maximize: bool, seed: int, run: Callable[..., Trial]) -> None:
        self.study, self.objective, self.maximize, self.seed, self.run = study, objective, maximize, seed, run

    def draw(self, tasks: Sequence[str], count: int) -> None:
        """Fit what the study's sampler draws."""
        from optuna.samplers import GridSampler

        sampler = self.study.sampler
        for _ in range(count):
            if isinstance(sampler, GridSampler) and sampler.is_exhausted(self.study):
                return
            found = self._fit(lambda trial: dict(zip(tasks, draw_weights(trial, tasks), strict=True)), 1)
            if found.failed:
                warnings.warn(f"trial {found.name!r} failed: {found.error}; the others go on", stacklevel=3)

    def take(
        self,
        kept: TrialFolder,
        grid: Sequence[dict[str, float]],
        done: Collection[tuple[float, ...]],
        limit: int | None,
        retry_failed: bool,
        lasting: bool,
    ) -> dict[tuple[float, ...], Point]:
        """Fit what is not done of a grid, and return what the folder then holds, by weights."""
        places = {self._plan(weights): i for i, weights in enumerate(grid) if tuple(weights.values()) not in done}
        work = Work(kept, tuple(places), retry_failed, lasting=lasting)

        def run(plan: Plan, attempt: int) -> Trial:
            place = places[plan]

            def fixed(trial: Any) -> dict[str, float]:
                trial.suggest_int("point", place, place)  # where there is no choice, no sampler is asked
                return grid[place]

            return self._fit(fixed, attempt)

        for _ in work.do(run, limit):
            pass
        found = {places[plan]: trial for plan, trial in work.trials.items()}
        return {tuple(grid[place].values()): self._point(grid[place], trial) for place, trial in found.items()}

    def _plan(self, weights: dict[str, float]) -> Plan:
        weighting = FixedWeighting(weights)
        name = ", ".join(f"{task} {weight:.6g}" for task, weight in weights.items())
        return Plan(name, None, self.seed, weighting, text_of(weighting))

    def _fit(self, weights_of: Callable[[Any], dict[str, float]], attempt: int) -> Trial:
        """Run one trial, and tell Optuna what came of it."""
        ours: list[Trial] = []

        def objective(trial: Any) -> float:
            weights, watch = weights_of(trial), TrialWatch()
            trial.set_user_attr("weights", weights)
            found = self.run(self._plan(weights), attempt, [_Report(trial, self.objective, watch)], watch)
            ours.append(found)
            point = self._point(weights, found)
            if found.failed:
                trial.set_user_attr("failed", found.error)
                raise _Failed(found.error)
            if point.value is None:
                raise import_optuna().TrialPruned
            trial.set_user_attr("row", point.row)
            return point.value

        self.study.optimize(objective, n_trials=1, catch=(_Failed,))
        return ours[-1]

    def _point(self, weights: dict[str, float], trial: Trial) -> Point:
        if trial.state != FINISHED:
            return Point(weights, None, {}, f"failed: {trial.error}" if trial.failed else "")
        row = trial.rows[-1]
        value = row[self.objective]
        return Point(weights, value if not math.isnan(value) else -math.inf if self.maximize else math.inf, row)


def draw_weights(trial: Any, tasks: Sequence[str]) -> tuple[float, ...]:
    """Return weights that add up to 1, in the order of the tasks."""
    shares = [-math.log(trial.suggest_float(task, 1e-6, 1 - 1e-6)) for task in tasks]  # exponential: Dirichlet(1)
    return tuple(share / sum(shares) for share in shares)


def found_in(study: Study) -> dict[tuple[float, ...], Point]:
    """Return what a study holds of fits that are over, each weights once."""
    points: dict[tuple[float, ...], Point] = {}
    for trial in study.get_trials():
        name, weights = trial.state.name, trial.user_attrs.get("weights")
        if weights is not None and name in ("COMPLETE", "PRUNED"):
            value = trial.value if name == "COMPLETE" else None
            points[tuple(weights.values())] = Point(weights, value, trial.user_attrs.get("row", {}))
    return points


def ranked(points: Iterable[Point], maximize: bool) -> tuple[Point, ...]:
    """Return the best first, and last what was ended early or failed.

    Raises:
        ValueError: no fit came to its end.
    """
    points, sign = tuple(points), -1 if maximize else 1
    if all(point.value is None for point in points):
        failed = dict.fromkeys(point.failed for point in points if point.failed)
        raise ValueError(
            "a search should have fits that came to their end: found none"
            + (
                f" ({'; '.join(failed)}); mend it, and give retry_failed=True"
                if failed
                else "; raise n_trials, or prune less"
            )
        )
    return tuple(sorted(points, key=lambda p: (p.value is None, bool(p.failed), sign * (p.value or 0.0))))
