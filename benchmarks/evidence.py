"""Which weighting works? Every method on six problems, each at its best learning rate.

    python benchmarks/evidence.py                    # all problems: up to an hour of two cores each
    python benchmarks/evidence.py penguins digits    # some of them
    python benchmarks/evidence.py --briefly          # whether it runs: minutes, and numbers that say nothing

Each method, and each single task, is fitted at three to five learning rates with the first seed; where it does best on
the validation data (`val/balanced_loss`; single tasks by their own loss) it is fitted with four more seeds, and tested.
Any number of processes may run the same command; it goes on where it was stopped. Tables and plots are files in
`benchmarks/results/evidence`, with the commit and the machine that made them, and the guide includes them.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from _comparison import table_of
from _measure import allocated, commit, markdown, processor, versions
from _problems import PROBLEMS, Problem
from torchjd.aggregation import UPGradWeighting

from lightning_uncertainty.balancing import GradientBalancing, GradNorm
from lightning_uncertainty.trials import Comparison, Measure, compare, search_weights
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    DynamicWeightAverage,
    FixedWeighting,
    GeometricLossWeighting,
    ImpartialLossWeighting,
    RandomLossWeighting,
    SoftOptimalUncertaintyWeighting,
    UncertaintyWeighting,
    Weighting,
)

RESULTS = Path(__file__).parent / "results" / "evidence"
SEEDS = 5
SHOWN = {"MulticlassAccuracy": "accuracy", "BinaryAccuracy": "accuracy", "MeanSquaredError": "RMSE"}  # of penguins
FLAT = -10  # percent; a plot is linear between this and its opposite
FAR_BEHIND = -1000  # percent; how much further says nothing
SEARCH_SEED = 100  # none of those that are compared


def methods_for(problem: Problem) -> dict[str, Callable[[], Weighting]]:
    """Return what is compared, by name."""
    start, balance = problem.start, partial(GradientBalancing, on=problem.on)
    uncertainty = partial(UncertaintyWeighting, start=start)
    return {
        "equal": FixedWeighting,
        "uncertainty": uncertainty,
        "analytic uncertainty": AnalyticUncertaintyWeighting,
        "bounded uncertainty": partial(BoundedUncertaintyWeighting, start=start),
        "constrained uncertainty": partial(ConstrainedUncertaintyWeighting, start=start),
        "UW-SO": SoftOptimalUncertaintyWeighting,
        "IMTL-L": partial(ImpartialLossWeighting, start=start),
        "GLS": GeometricLossWeighting,
        "DWA": DynamicWeightAverage,
        "RLW": RandomLossWeighting,
        "GradNorm": partial(GradNorm, on=problem.on),
        "MGDA": partial(balance, "mgda"),
        "PCGrad": partial(balance, "pcgrad"),
        "IMTL-G": partial(balance, "imtl_g"),
        "UPGrad": lambda: balance(UPGradWeighting()),
        "MGDA after uncertainty": lambda: balance("mgda", uncertainty()),
        "PCGrad after uncertainty": lambda: balance("pcgrad", uncertainty()),
    }


def made_by(command: str) -> str:
    """Return what a reader needs to make it again."""
    packages = versions(("torch", "pytorch-lightning", "torchjd"))
    return (
        f"Made by `{command}` on {date.today()} of commit {commit()}: {os.cpu_count()} CPUs ({processor()}), "
        f"one thread a process, Python {platform.python_version()}, {packages}."
    )


def tried(problem: Problem, folder: Path, seeds: Sequence[int]) -> Comparison:
    """Fit what is not yet in the folder, and compare."""
    options = {"max_epochs": problem.epochs, "check_val_every_n_epoch": problem.epochs, "num_sanity_val_steps": 0}
    shared: dict[str, Any] = {
        "metrics": problem.metrics or None,
        "higher_is_better": problem.higher_is_better or None,
        "trainer": {**options, "accelerator": "cpu"},
    }
    methods: dict[str, Any] = methods_for(problem)
    if problem.parts:
        middle = partial(problem.make, lr=problem.rates[len(problem.rates) // 2])
        data = problem.data[:2] if isinstance(problem.data, tuple) else problem.data
        search = search_weights(middle, data, parts=problem.parts, seed=SEARCH_SEED, folder=folder / "search", **shared)
        best = search.points[0].weights
        methods["searched weights"] = partial(FixedWeighting, {task: len(best) * best[task] for task in best})
    return compare(
        problem.make,
        problem.data,
        methods,
        folder / "fits",
        seeds=seeds,
        baseline="single task" if problem.singles else "equal",
        alone=["uncertainty"] if problem.singles else [],
        settings={"lr": list(problem.rates)},
        **shared,
    )


def memory(problem: Problem, methods: Mapping[str, Callable[[], Weighting]]) -> dict[str, int]:
    """Return the most bytes that the tensors of a training step hold beside the network, by method."""
    loader = problem.data[0] if isinstance(problem.data, tuple) else problem.data.train_dataloader()
    batch = next(iter(loader))

    def held(make: Callable[[], Weighting]) -> int:
        module = problem.make(make(), lr=problem.rates[0]).train()
        return allocated(lambda: [module.training_step(batch, 0).backward() for _ in range(2)])  # what is kept, too

    return {method: held(make) for method, make in methods.items()}


def column(measure: Measure) -> str:
    return f"{measure.task} {SHOWN.get(measure.metric, measure.metric)}"


def costs(found: Comparison, held: Mapping[str, int]) -> str:
    """Return a table of a step's time and memory by method, beside those under equal weights."""
    times = {result.name: result.step_time for result in found.results if result.step_time}
    equal, base = times["equal"], held["equal"]
    rows = [
        [method, f"{times[method] / equal:.2f}", f"{held[method] / base:.2f}"] for method in held if method in times
    ]
    rows[0][1:] = [f"{1000 * equal:.1f} ms", f"{base / 2**20:.2f} MiB"]
    return markdown(["method", "step / equal", "memory / equal"], rows)


def written(name: str, problem: Problem, found: Comparison, command: str, into: Path) -> None:
    """Write table, numbers and plot of one problem."""
    ends = [f"lr={rate:g}" for rate in (problem.rates[0], problem.rates[-1])]
    paragraphs = [
        problem.about,
        table_of(found, column, measured=False, ends=ends),
        found.answer(),
        f"![Gain of each method, its interval and seeds](evidence_{name}.png)",
        table_of(found, column, judged=False),
        f"{len({trial.seed for trial in found.trials})} seeds, {problem.epochs} epochs, the best of the learning rates "
        f"{', '.join(f'{rate:g}' for rate in problem.rates)}.",
        f"Searched weights are the best of a grid of 1/{problem.parts} by `val/balanced_loss`, with a seed of its own."
        if problem.parts
        else "",
        costs(found, memory(problem, methods_for(problem))),
        made_by(command),
    ]
    (into / f"{name}.md").write_text("\n\n".join(filter(None, paragraphs)) + "\n", encoding="utf-8")
    found.to_csv(into / f"{name}.csv")
    figure, axes = found.plot()
    if min(axes.get_xlim()) < 10 * FLAT:  # one that is far behind would leave no room for the others
        axes.set_xscale("symlog", linthresh=-FLAT)
    figure.savefig(into / f"evidence_{name}.png", dpi=90)


# -- all problems ------------------------------------------------------------------------------------------------------


def summary(into: Path) -> str:
    """Return a table of each method's gain and place in each problem, by its mean place, from their files.

    Methods that are not in all problems have no place, and take none from others.
    """
    names = [name for name in PROBLEMS if (into / f"{name}.csv").is_file()]
    gains: dict[str, dict[str, tuple[float, str]]] = {}
    for name in names:
        with (into / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["gain"] and not row["weighting"].startswith("single task"):
                    gains.setdefault(row["weighting"], {})[name] = float(row["gain"]), row["gain ci95"]
    everywhere = {method: found for method, found in gains.items() if len(found) == len(names)}
    places = {
        (method, name): place([found[name][0] for found in everywhere.values()], own[name][0])
        for method, own in everywhere.items()
        for name in names
    }
    mean = {method: fmean(places[method, name] for name in names) for method in everywhere}

    def cell(method: str, name: str) -> str:
        if name not in gains[method]:
            return ""
        gain, interval = gains[method][name]
        within = f" ± {float(interval):.1f}" if interval else ""
        shown = f"{gain:+.1f}{within}" if gain > FAR_BEHIND else f"below {FAR_BEHIND}"
        return f"{shown} ({places[method, name]:g})" if method in mean else shown

    order = [*sorted(mean, key=mean.__getitem__), *(method for method in gains if method not in mean)]
    rows = [
        [method, f"{mean[method]:.1f}" if method in mean else "", *(cell(method, name) for name in names)]
        for method in order
    ]
    return markdown(["method", "mean place", *names], rows)


def place(gains: Sequence[float], own: float) -> float:
    """Return the place of a gain among gains, the mean of those that are equal."""
    ahead, level = sum(gain > own for gain in gains), sum(gain == own for gain in gains)
    return ahead + (level + 1) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("problems", nargs="*", metavar="PROBLEM", help=f"of {', '.join(PROBLEMS)}; all where none is given")
    add("--mnist", type=Path, metavar="FILE", help="npz with x_train and y_train, in place of scikit-learn's digits")
    add("--folder", type=Path, default=Path("runs/evidence"), help="keeps finished fits")
    add("--into", type=Path, default=RESULTS, help="where tables and plots go")
    add("--briefly", action="store_true", help="small and short, to see whether it runs")
    given = parser.parse_args()
    if unknown := [name for name in given.problems if name not in PROBLEMS]:
        parser.error(f"problems are {', '.join(PROBLEMS)}: found {', '.join(unknown)}")
    for message in (".*does not have many workers", ".*LeafSpec", ".*number of training batches"):
        warnings.filterwarnings("ignore", message=message)
    torch.set_num_threads(1)
    given.into.mkdir(parents=True, exist_ok=True)
    seeds = range(2 if given.briefly else SEEDS)
    for name in given.problems or PROBLEMS:
        begun = time.monotonic()
        own = {"mnist": given.mnist} if name == "digits" else {}
        problem = PROBLEMS[name](briefly=given.briefly, **own)
        folder = given.folder / (f"{name}, briefly" if given.briefly else name)
        found = tried(problem, folder, list(seeds))
        command = f"python benchmarks/evidence.py {name}" + " --briefly" * given.briefly
        written(name, problem, found, command, given.into)
        print(f"{name}: {time.monotonic() - begun:.0f} s\n\n{found}\n", flush=True)
    text = summary(given.into)
    (given.into / "summary.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
