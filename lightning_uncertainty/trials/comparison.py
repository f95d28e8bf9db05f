"""How weightings compare: the table of every task's metrics, gain and mean rank, and its forms."""

from __future__ import annotations

import csv
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from lightning_uncertainty._show import load_pyplot
from lightning_uncertainty.dashboards.wandb import log_comparison
from lightning_uncertainty.trials._answer import answer
from lightning_uncertainty.trials._mean import Mean
from lightning_uncertainty.trials._measures import Measure
from lightning_uncertainty.trials._result import Result, failures_of, settings_of
from lightning_uncertainty.trials._standing import BySeed, by_seed, gains_over, ranks_by_seed
from lightning_uncertainty.trials._table import WIDTH, comparison_table
from lightning_uncertainty.trials._trial import Trial

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["SINGLE_TASK", "Comparison", "Result", "alone_under"]

SINGLE_TASK = "single task"


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
        values = {name: by_seed(trials, self.measures, self.best_by) for name, trials in self._by_name.items()}
        ranked = {name: found for name, found in values.items() if not self._is_single(name)}
        ranks = ranks_by_seed(ranked, self._counted)
        results = []
        for name, trials in self._by_name.items():
            base = values.get(self.baseline or "", {})
            gains = gains_over(base, values[name], self._counted)
            alone = gains_over(values.get(alone_under(name), {}), values[name], self._counted)
            place = _mean(ranks.get(name, {}))
            result = Result(
                name,
                _means(values[name], self.measures),
                _mean(gains),
                None if place is None else place.mean,
                step_time=median(times) if (times := _given(trial.step_time for trial in trials)) else None,
                peak_memory=max(_given(trial.peak_memory for trial in trials), default=None),
                failed=failures_of(trials),
                ranks=place,
                gains=gains,
                gain_alone=_mean(alone),
                settings=settings_of(trials),
            )
            results.append(result)
        return tuple(sorted(results, key=lambda result: (not self._is_single(result.name), _order(result))))

    @property
    def best(self) -> Result:
        """The weighting with the highest gain, or with the lowest mean rank where there is no gain."""
        return next(result for result in self.results if not self._is_single(result.name))

    def answer(self) -> str:
        """Return in sentences which weighting is best, and what the seeds say of its lead over the others.

        Its lead over the baseline and over each other is tested over seeds that both have, by paired t-tests at 5 % for
        all of them together (Holm); where the second is not told from it, there is how many seeds it would take.
        """
        return answer([result for result in self.results if not self._is_single(result.name)], self.baseline)

    # -- forms ---------------------------------------------------------------------------------------------------------

    def table(self) -> str:
        """Return the table as text, columns without a number left out: rich's where it is installed, plain else.

        It is 120 columns wide at most: where it would be wider, names are shortened, with a legend below it, and then
        tasks go on in another part of it.
        """
        seeds = len({trial.seed for trial in self.trials})
        tested = any(trial.test for trial in self.trials)
        when = "the last epoch" if self.best_by is None else f"the best epoch by {self.best_by}"
        count = f"{seeds} seed{'s, mean ± 95 % interval' if seeds > 1 else ''}"
        title = f"Weightings {'on test data ' if tested else ''}at {when}, {count}"
        labels = {key: label for trial in self.trials for key, label in trial.labels.items()}
        text = comparison_table(title, self.results, self.measures, labels, seeds)
        at = "; ".join(f"{result.name}: {result.settings}" for result in self.results if result.settings)
        return f"{text}\n\n{textwrap.fill(f'settings: {at}', WIDTH)}" if at else text

    def __str__(self) -> str:
        return f"{self.table()}\n\n{textwrap.fill(self.answer(), WIDTH)}"

    def rows(self) -> tuple[list[str], list[list[Any]]]:
        """Return the columns of the CSV and its rows: numbers, None where there is none."""
        figures = [
            *(f"{measure.task}/{measure.metric}" for measure in self.measures),
            "gain",
            "gain alone",
            "mean rank",
        ]
        parts = ("", " std", " ci95", " seeds")
        columns = ["weighting", "seeds", *(f"{figure}{part}" for figure in figures for part in parts)]
        columns += ["step seconds", "peak bytes", "failed", "settings"]
        rows = []
        for result in self.results:
            row: list[Any] = [result.name, len({trial.seed for trial in self._by_name[result.name]})]
            means = [*(result.values.get(measure) for measure in self.measures), result.gain, result.gain_alone]
            for found in [*means, result.ranks]:
                row += [None] * len(parts) if found is None else _numbers(found)
            rows.append([*row, result.step_time, result.peak_memory, result.failed or None, result.settings or None])
        return columns, rows

    def to_csv(self, path: str | Path) -> None:
        """Write the table as numbers, one row for each weighting."""
        columns, rows = self.rows()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([columns, *rows])

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the gain of every weighting, or its mean rank, into axes or a new figure; return both.

        A bar is the mean, a line its 95 % interval, and each seed a point.

        Raises:
            ModuleNotFoundError: matplotlib is not installed.
        """
        pyplot = load_pyplot()
        shown = [result for result in self.results if not self._is_single(result.name)][::-1]
        if ax is None:
            _, ax = pyplot.subplots(figsize=(6.4, 1.2 + 0.35 * len(shown)), layout="constrained")
        places = range(len(shown))
        for place, result in zip(places, shown, strict=True):
            found = result.ranks if self.baseline is None else result.gain
            if found is None:  # it failed
                continue
            ax.plot(found.values, [place] * len(found.values), "o", color="0.6", markersize=4)
            ax.plot([found.mean], [place], "|", color="C0", markersize=16, markeredgewidth=3)
            if not math.isnan(found.interval):
                ends = found.mean - found.interval, found.mean + found.interval
                ax.plot(ends, [place, place], color="C0", linewidth=1)
        ax.set_yticks(places, [_with_count(result, self.baseline) for result in shown])
        ax.set_ylim(-0.5, len(shown) - 0.5)
        if self.baseline is None:
            ax.set_xlabel("mean rank, 1 is best: mean, 95 % interval and seeds")
        else:
            ax.axvline(0, color="0.3", linewidth=0.8)
            ax.set_xlabel(f"gain over {self.baseline}, %: mean, 95 % interval and seeds")
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

    @property
    def _counted(self) -> list[Measure]:
        return [measure for measure in self.measures if measure.task not in self.auxiliary]


def _order(result: Result) -> tuple[float, float]:
    gain = -math.inf if result.gain is None or math.isnan(result.gain.mean) else result.gain.mean
    return -gain, math.inf if result.rank is None else result.rank


def alone_under(name: str) -> str:
    """Return what single tasks under a weighting are called."""
    return f"{SINGLE_TASK}, {name}"


def _with_count(result: Result, baseline: str | None) -> str:
    found = result.ranks if baseline is None else result.gain
    return f"{result.name} (failed)" if found is None else f"{result.name} (n={len(found.values)})"


def _means(values: BySeed, measures: Sequence[Measure]) -> dict[Measure, Mean]:
    found = {measure: [own[measure] for own in values.values() if measure in own] for measure in measures}
    return {measure: Mean.of(numbers) for measure, numbers in found.items() if numbers}


def _mean(by_seed: Mapping[int, float]) -> Mean | None:
    return Mean.of(by_seed.values()) if by_seed else None


def _numbers(mean: Mean) -> list[float | int | None]:
    numbers = [mean.mean, *(None if math.isnan(width) else width for width in (mean.std, mean.interval))]
    return [*numbers, len(mean.values)]


def _given(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if value is not None]
