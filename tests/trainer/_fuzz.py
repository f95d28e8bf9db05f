"""What arguments, losses and checkpoints may look like, and what the formulas make of losses, written out in floats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st
from pytorch_lightning import LightningModule

from lightning_uncertainty import MultiTaskMixin, weightings
from lightning_uncertainty.likelihoods import LIKELIHOODS

NAMES = ["depth", "kind", "size", "x", "_y"]
HUGE = torch.finfo(torch.float32).max


class Net(MultiTaskMixin, LightningModule):
    """A module of nothing but tasks."""

    def __init__(self, tasks: Any, **options: Any) -> None:
        super().__init__()
        self.register_tasks(tasks, **options)


def state_of(net: LightningModule) -> dict[str, Any]:
    """A copy of the weighting's state, and of what a row would hold."""
    state = {key: value for key, value in net.state_dict().items() if key.startswith("task_weighting.")}
    return {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}


# -- weightings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setup:
    """Tasks and what a weighting was given for them."""

    kinds: Mapping[str, str]
    kind: type[weightings.Weighting]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tasks(self) -> list[str]:
        return list(self.kinds)

    def net(self, **options: Any) -> Net:
        return Net(self.kinds, weighting=self.kind(**self.options), **options)


def by_name(names: Sequence[str], values: st.SearchStrategy[Any], least: int = 0) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(list(names)), values, min_size=least, max_size=len(names))


@st.composite
def setups(draw: st.DrawFn, names: Sequence[str] = NAMES) -> Setup:
    """Tasks and a weighting for them that are all right."""
    tasks = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    weighed = [name for name, kind in LIKELIHOODS.items() if not kind.constant]
    few = draw(st.lists(st.sampled_from(weighed), min_size=1, max_size=2))
    kinds = {name: draw(st.sampled_from(few)) for name in tasks}
    kind = draw(st.sampled_from([weightings.UncertaintyWeighting, *OPTIONS]))
    return Setup(kinds, kind, draw(OPTIONS[kind](kinds)))


MEMORIES = st.sampled_from([1, 3.5, 20.0, None])


def _base(kinds: Mapping[str, str]) -> st.SearchStrategy[dict[str, float]]:
    return by_name(list(kinds), st.sampled_from([0.0, 0.01, 1.0, 30.0]))


def _start(kinds: Mapping[str, str]) -> st.SearchStrategy[Any]:
    numbers = st.sampled_from([-9.0, -1.5, 0.0, 4.0])
    return st.none() | numbers | by_name(list(kinds), numbers)


@st.composite
def _uncertainty(draw: st.DrawFn, kinds: Mapping[str, str]) -> dict[str, Any]:
    options: dict[str, Any] = {"base_weights": draw(_base(kinds)), "memory": draw(MEMORIES)}
    if draw(st.booleans()):  # groups of one likelihood, and what follows from that
        alike = [[name for name in kinds if kinds[name] == kind] for kind in dict.fromkeys(kinds.values())]
        options["shared"] = [group for group in alike if draw(st.booleans())]
        options["start"] = draw(st.sampled_from([None, -0.5, 0.5]))
        options["bounds"] = draw(st.sampled_from([None, (-0.5, 1.0), (-math.inf, 4.0)]))
        return options
    if draw(st.booleans()):  # bounds that most losses are beyond
        return options | {
            "bounds": draw(by_name(list(kinds), st.sampled_from([(-0.1, 0.1), (-1.0, math.inf)]), least=1))
        }
    options["start"] = draw(_start(kinds))
    pairs = st.sampled_from([(-9.0, math.inf), (-math.inf, 4.0), (-20.0, 20.0)])
    options["bounds"] = draw(st.none() | pairs | by_name(list(kinds), pairs))
    return options


@st.composite
def _tchebycheff(draw: st.DrawFn, kinds: Mapping[str, str]) -> dict[str, Any]:
    epoch = draw(st.sampled_from([None, 0, 2]))
    options = {"temperature": draw(st.sampled_from([0.1, 1.0, 20.0])), "preferences": draw(_base(kinds))}
    ideal = draw(by_name(list(kinds), st.sampled_from([-1.0, 0.5]))) if epoch is None else {}
    return {**options, "ideal": ideal, "nadir_epoch": epoch}


OPTIONS: dict[type[weightings.Weighting], Any] = {
    weightings.UncertaintyWeighting: _uncertainty,
    weightings.BoundedUncertaintyWeighting: lambda k: st.fixed_dictionaries(
        {"start": _start(k), "base_weights": _base(k), "memory": MEMORIES}
    ),
    weightings.ConstrainedUncertaintyWeighting: lambda k: st.fixed_dictionaries(
        {
            "start": _start(k),
            "base_weights": _base(k),
            "mean_log_variance": st.sampled_from([-2.0, 0.0, 1.5]),
            "memory": MEMORIES,
        }
    ),
    weightings.SoftOptimalUncertaintyWeighting: lambda k: st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.1, 1.0, 20.0]), "base_weights": _base(k)}
    ),
    weightings.AnalyticUncertaintyWeighting: lambda k: st.fixed_dictionaries(
        {"decay": st.sampled_from([0.0, 0.5, 0.98]), "base_weights": _base(k)}
    ),
    weightings.FixedWeighting: lambda k: st.fixed_dictionaries({"weights": _base(k)}),
    weightings.RandomLossWeighting: lambda k: st.fixed_dictionaries(
        {"seed": st.sampled_from([0, 3, (1 << 63) - 1]), "base_weights": _base(k)}
    ),
    weightings.DynamicWeightAverage: lambda k: st.fixed_dictionaries(
        {"temperature": st.sampled_from([0.1, 1.0, 20.0]), "base_weights": _base(k)}
    ),
    weightings.DynamicTaskPrioritization: lambda k: st.fixed_dictionaries(
        {
            "kpis": st.sampled_from([0.1, 3.0]),
            "gamma": st.sampled_from([0.0, 0.5]) | by_name(list(k), st.sampled_from([0.0, 2.0])),
            "decay": st.sampled_from([0.0, 0.5, 0.98]),
            "base_weights": _base(k),
        }
    ),
    weightings.SmoothTchebycheff: lambda k: _tchebycheff(k),
    weightings.GeometricLossWeighting: lambda k: st.fixed_dictionaries({"base_weights": _base(k)}),
    weightings.ImpartialLossWeighting: lambda k: st.fixed_dictionaries(
        {"start": _start(k), "base_weights": _base(k), "memory": MEMORIES}
    ),
}


# -- losses ------------------------------------------------------------------------------------------------------------

NUMBERS = [0.0, 1e-30, 3e-6, 0.02, 1.0, 7.5, 400.0, 2e9, 1e30]
BAD_NUMBERS = [math.nan, math.inf, -math.inf, -1.0, -1e-30]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]


@st.composite
def scalars(draw: st.DrawFn, numbers: Sequence[float]) -> torch.Tensor:
    """A 0-dimensional tensor of any type that can hold the number."""
    number = draw(st.sampled_from(numbers))
    whole = math.isfinite(number) and number == int(number) and abs(number) < 1e9
    dtype = draw(st.sampled_from([dtype for dtype in DTYPES if dtype.is_floating_point or whole]))
    scalar = torch.tensor(number, dtype=dtype)
    return scalar.requires_grad_() if dtype.is_floating_point and draw(st.booleans()) else scalar


def values(numbers: Sequence[float], counts: Sequence[float]) -> st.SearchStrategy[Any]:
    """What may stand for a task's loss: None, a mean, a sum and its count."""
    count = scalars(counts) | st.sampled_from(counts) | st.sampled_from([1, 3])
    value = scalars(numbers) | st.tuples(scalars(numbers), count)
    return st.integers(0, 4).flatmap(lambda chosen: value if chosen else st.none())


COUNTS = [0.0, 1e-3, 0.3, 1.0, 5.0, 4e6]
BAD_COUNTS = [math.nan, -1.0, math.inf, -math.inf]
_misshapen = st.sampled_from([1.0, 2, "1", [], (), torch.ones(1), torch.ones(2, 2), torch.ones(0), {"loss": 1.0}])
_one = torch.ones(())
_no_pairs = st.sampled_from(
    [(_one,), (torch.ones(2), 2), (_one, torch.ones(1)), (1.0, 1.0), (None, 1), (_one, None), (_one, "1"), (_one, 1, 1)]
)
GOOD_VALUES = values(NUMBERS, COUNTS) | st.tuples(scalars(BAD_NUMBERS), scalars([0.0]) | st.just(0))
BAD_VALUES = values(NUMBERS + BAD_NUMBERS, COUNTS + BAD_COUNTS) | _misshapen | _no_pairs


def parts_of(value: Any) -> tuple[float, float] | None:
    """Return the sum and the count of what stands for a loss; None where it has another shape."""
    if isinstance(value, tuple) and len(value) != 2:
        return None
    total, count = value if isinstance(value, tuple) else (0.0, 0.0) if value is None else (value, 1.0)
    if value is not None and not isinstance(total, torch.Tensor):
        return None
    parts = []
    for part in (total, count):
        if not isinstance(part, torch.Tensor | float | int) or (isinstance(part, torch.Tensor) and part.shape):
            return None
        parts.append(float(part.detach() if isinstance(part, torch.Tensor) else part))
    return parts[0], parts[1]


def numbers_of(value: Any) -> tuple[float, float] | None:
    """Return the sum and the count of what stands for a loss; None where it should be refused."""
    total, count = parts = parts_of(value) or (0.0, math.nan)
    return parts if 0 <= count < math.inf and (count == 0 or 0 <= total < math.inf) else None


def is_nonfinite(value: Any) -> bool:
    """Whether a loss is NaN or infinite, as also a count that makes no sense has it."""
    parts = parts_of(value)
    return parts is not None and not (0 <= parts[1] < math.inf and (parts[1] == 0 or math.isfinite(parts[0])))
