"""How weightings compare: the table of every task's metrics, gain and mean rank, and its forms."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lightning_uncertainty._show import load_pyplot
from lightning_uncertainty.dashboards.wandb import log_comparison
from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Measure
from lightning_uncertainty.trials._result import Result
from lightning_uncertainty.trials._standing import gains_over, mean_ranks
from lightning_uncertainty.trials._table import comparison_table
from lightning_uncertainty.trials._trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Comparison", "Result"]


@dataclass(frozen=True)
class Comparison:
    """Weightings of one model, each trained with several seeds; `print` shows the table.

    Attributes:
        trials: all of them.
        measures: what the tasks are judged by.
        auxiliary: names of the tasks that count neither in the gain nor in the rank.
        baseline: name of what the gain is relative to; None without one.
        best_by: log key that chose the epoch; None is the last.
    """

    trials: tuple[Trial, ...]
    measures: tuple[Measure, ...]
    auxiliary: tuple[str, ...] = ()
    baseline: str | None = None
    best_by: str | None = None

    # -- numbers -------------------------------------------------------------------------------------------------------

    @cached_property
    def results(self) -> tuple[Result, ...]:
        """What each weighting comes to: single tasks first, then the best first."""
        values = {name: self._values(trials) for name, trials in self._by_name.items()}
        known = {name: found for name, found in values.items() if found}  # of which not every trial failed
        ranked = {name: found for name, found in known.items() if not self._is_single(name)}
        gains = gains_over(known[self.baseline], known, self._counted) if self.baseline in known else {}
        ranks = mean_ranks(ranked, self._counted) if ranked else {}
        results = [
            Result(
                name,
                values[name],
                gains.get(name),
                ranks.get(name),
                step_time=median(times) if (times := _given(trial.step_time for trial in trials)) else None,
                peak_memory=max(_given(trial.peak_memory for trial in trials), default=None),
                failed=_failed(trials),
            )
            for name, trials in self._by_name.items()
        ]
        return tuple(sorted(results, key=lambda result: (not self._is_single(result.name), _order(result))))

    @property
    def best(self) -> Result:
        """The weighting with the highest gain, or with the lowest mean rank where there is no gain."""
        return next(result for result in self.results if not self._is_single(result.name))

    def answer(self) -> str:
        """Return in a sentence which weighting is best, and which others a t-test over seeds cannot tell from it."""
        best = self.best
        if best.rank is None:
            return f"Every fit failed that was not of single tasks, as {best.name}: {best.failed}."
        if best.gain is None:
            return f"{best.name} has the lowest mean rank, {best.rank:.2f}."
        verb = "gains most" if best.gain.mean >= 0 else "loses least"
        text = f"{best.name} {verb}: {best.gain.text('+.2f')} % over {self.baseline}."
        if len(best.gain.values) < 2:
            return f"{text} One seed does not say how much of it is chance."
        near = [
            other.name
            for other in self.results
            if other is not best
            and not self._is_single(other.name)
            and other.gain is not None
            and best.gain.near(other.gain)
        ]
        return f"{text} The seeds do not tell it from {', '.join(near)} (paired t-test, 5 %)." if near else text

    # -- forms ---------------------------------------------------------------------------------------------------------

    def table(self) -> str:
        """Return the table as text, columns without a number left out: rich's where it is installed, plain else.

        It is 120 columns wide at most: where it would be wider, names are shortened, with a legend below it, and then
        tasks go on in another part of it.
        """
        seeds = len({trial.seed for trial in self.trials})
        when = "the last epoch" if self.best_by is None else f"the best epoch by {self.best_by}"
        title = f"Weightings at {when}, {seeds} seed{'s' if seeds > 1 else ''}"
        labels = {key: label for trial in self.trials for key, label in trial.labels.items()}
        return comparison_table(title, self.results, self.measures, labels)

    def __str__(self) -> str:
        return f"{self.table()}\n\n{self.answer()}"

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Return the columns of the CSV and its rows: numbers, None where there is none."""
        columns = ["weighting", "seeds"]
        for measure in self.measures:
            columns += [f"{measure.task}/{measure.metric}", f"{measure.task}/{measure.metric} std"]
        columns += ["gain", "gain std", "mean rank", "step seconds", "peak bytes", "failed"]
        rows = []
        for result in self.results:
            row: list[Any] = [result.name, len({trial.seed for trial in self._by_name[result.name]})]
            for found in [*(result.values.get(measure) for measure in self.measures), result.gain]:
                row += [None, None] if found is None else [found.mean, None if math.isnan(found.std) else found.std]
            rows.append([*row, result.rank, result.step_time, result.peak_memory, result.failed or None])
        return columns, rows

    def to_csv(self, path: str | Path) -> None:
        """Write the table as numbers, one row for each weighting."""
        columns, rows = self.rows()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the gain of every weighting, mean and seeds, or its mean rank; into axes or a new figure; return both.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        pyplot = load_pyplot()
        shown = [result for result in self.results if not self._is_single(result.name)][::-1]
        if ax is None:
            _, ax = pyplot.subplots(figsize=(6.4, 1.2 + 0.35 * len(shown)), layout="constrained")
        places = range(len(shown))
        for place, result in zip(places, shown, strict=True):
            found = Mean.of([result.rank or math.nan]) if result.gain is None else result.gain
            ax.plot(found.values, [place] * len(found.values), "o", color="0.6", markersize=4)
            ax.plot([found.mean], [place], "|", color="C0", markersize=16, markeredgewidth=3)
        ax.set_yticks(places, [result.name for result in shown])
        ax.set_ylim(-0.5, len(shown) - 0.5)
        if self.baseline is None:
            ax.set_xlabel("mean rank, 1 is best")
        else:
            ax.axvline(0, color="0.3", linewidth=0.8)
            ax.set_xlabel(f"gain over {self.baseline}, %: mean and seeds")
        figure = ax.get_figure()
        assert figure is not None
        return figure, ax  # type: ignore[return-value]

    def log(self, logger: Any) -> None:
        """Give table and plot to a WandbLogger or a run of wandb, and each gain and mean rank to its summary.

        Raises:
            ValueError: it is neither.
            ModuleNotFoundError: matplotlib is not installed.
        """
        columns, rows = self.rows()
        figure, _ = self.plot()
        numbers = {"gain": {r.name: r.gain.mean for r in self.results if r.gain is not None}}
        numbers["mean rank"] = {r.name: r.rank for r in self.results if r.rank is not None}
        summary = {f"{kind}/{name}": value for kind, found in numbers.items() for name, value in found.items()}
        log_comparison(logger, columns, rows, figure, summary)

    # -- within --------------------------------------------------------------------------------------------------------

    @cached_property
    def _by_name(self) -> dict[str, list[Trial]]:
        names: dict[str, list[Trial]] = {}
        for trial in self.trials:
            names.setdefault(trial.name, []).append(trial)
        return names

    def _is_single(self, name: str) -> bool:
        return self._by_name[name][0].task is not None

    def _values(self, trials: Sequence[Trial]) -> dict[Measure, Mean]:
        values, broken = {}, {trial.seed for trial in trials if trial.failed}
        whole = [trial for trial in trials if trial.seed not in broken]
        for measure in self.measures:
            rows = [trial.row(self.best_by) for trial in whole if trial.task in (None, measure.task)]
            if rows:
                values[measure] = Mean.of(row.get(measure.key, math.nan) for row in rows)
        return values

    @property
    def _counted(self) -> list[Measure]:
        return [measure for measure in self.measures if measure.task not in self.auxiliary]


def _order(result: Result) -> tuple[float, float]:
    gain = -math.inf if result.gain is None or math.isnan(result.gain.mean) else result.gain.mean
    return -gain, math.inf if result.rank is None else result.rank


def _failed(trials: Sequence[Trial]) -> str:
    """Return what is to be said of those that failed, the commonest reason of them."""
    reasons = [trial.error or "" for trial in trials if trial.failed]
    if not reasons:
        return ""
    reason = max(dict.fromkeys(reasons), key=reasons.count)
    return f"failed: {reason}" if len(reasons) == len(trials) else f"{len(reasons)} of {len(trials)} failed: {reason}"


def _given(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]
