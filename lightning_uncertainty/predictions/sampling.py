"""Many predictions of one batch by one network with dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty.predictions._outputs import by_task
from lightning_uncertainty.predictions.dropout import classes_that_drop, mc_dropout

__all__ = ["Sampling", "draw_each", "sample", "seeded"]

_ROWS = 64
_NUMBERS = 1 << 20  # of the inputs of a forward: 4 MiB; beyond, more rows at once are hardly faster


@dataclass(frozen=True)
class Sampling:
    """How several samples are drawn.

    Args:
        seed: the same seed gives the same samples, with the same `max_rows`; the random states of the CPU and of the
            devices of module and inputs stay as they were. None draws from those.
        max_rows: most rows of one forward, unless a batch has more. None is 64, or fewer where rows are large: at most
            2²⁰ numbers of inputs, as one image of 512 x 512. More need more memory, and may be faster. 1 means one
            sample a forward, which is right where rows meet (a mask that the batch shares) or the batch is not the
            first dimension.
        also: as for `mc_dropout`.

    Raises:
        ValueError: max_rows are below 1.
        TypeError: `also` are no classes of modules.

    Example:
        >>> Sampling(seed=0)
        Sampling(seed=0, max_rows=None, also=())
    """

    seed: int | None = None
    max_rows: int | None = None
    also: tuple[type[nn.Module], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "also", classes_that_drop(self.also))
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows should be at least 1: found {self.max_rows}; 1 is one sample a forward")

    def of_batch(self, number: int) -> Sampling:
        """Return that of a batch of several, whose masks are others."""
        return self if self.seed is None else replace(self, seed=self.seed + number)


def sample(
    forward: Callable[[Any], Mapping[str, Tensor]],
    inputs: Any,
    samples: int,
    *,
    module: nn.Module,
    seed: int | None = None,
    max_rows: int | None = None,
    also: tuple[type[nn.Module], ...] = (),
) -> dict[str, Tensor]:
    """Predict a batch several times, each time under another dropout mask, without gradients.

    Inputs that are tensors `[B, ...]` of one B, or dicts, lists and tuples of such, are repeated along the batch, so
    that one forward yields several samples. Other inputs are predicted one sample at a time.

    Source: Gal & Ghahramani, "Dropout as a Bayesian Approximation: Representing Model Uncertainty in Deep Learning",
    ICML 2016.

    Args:
        forward: from inputs to outputs by task.
        inputs: what `forward` takes.
        samples: number S of predictions.
        module: the network whose dropout `mc_dropout` switches on.
        seed: as for `Sampling`, and so are the others.
        max_rows: most rows of one forward.
        also: classes that drop by themselves.

    Returns:
        Outputs `[S, B, ...]` by task.

    Raises:
        ValueError: there is no sample to draw, no dropout, the outputs are not by task, or have other rows than the
            inputs.

    Example:
        >>> net = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 1))
        >>> outputs = sample(lambda x: {"depth": net(x)}, torch.ones(2, 4), samples=100, module=net, seed=0)
        >>> outputs["depth"].shape
        torch.Size([100, 2, 1])
    """
    drawn: list[dict[str, Tensor]] = []
    draw_each(drawn.append, forward, inputs, samples, module=module, sampling=Sampling(seed, max_rows, also))
    return {task: torch.cat([outputs[task] for outputs in drawn]) for task in drawn[0]}


def draw_each(
    take: Callable[[dict[str, Tensor]], None],
    forward: Callable[[Any], Mapping[str, Tensor]],
    inputs: Any,
    samples: int,
    *,
    module: nn.Module,
    sampling: Sampling,
) -> None:
    """Draw samples as `sample` does, and hand over each forward's outputs `[s, B, ...]` by task, as they come.

    Args:
        take: is handed them, with the random state of the samples.
        forward: as for `sample`, and so are the others.
        inputs: what it takes.
        samples: how many.
        module: whose dropout is on.
        sampling: how.
    """
    if samples < 1:
        raise ValueError(f"samples should be at least 1: found {samples}; a few dozen are usual")
    rows = _rows(inputs)
    most = 1 if rows is None else max(1, _most_rows(inputs, rows, sampling.max_rows) // max(1, rows))
    with torch.no_grad(), mc_dropout(module, sampling.also), seeded(sampling.seed, module, inputs):
        for done in range(0, samples, most):
            count = min(most, samples - done)
            outputs = by_task(forward(inputs if count == 1 else _repeated(inputs, count)), "forward")
            take({task: _unfolded(output, count, rows, task) for task, output in outputs.items()})


def _most_rows(inputs: Any, rows: int, given: int | None) -> int:
    """Return how many rows a forward takes, of inputs with `rows` rows."""
    if given is not None:
        return given
    numbers: int = sum(leaf.numel() for leaf in _leaves(inputs)) // max(1, rows)
    return min(_ROWS, _NUMBERS // max(1, numbers))


def _leaves(inputs: Any) -> Iterator[Any]:
    """Yield what plain containers hold; one of any other class is a leaf, since only its class can rebuild it."""
    if type(inputs) in (list, tuple, dict):
        for part in inputs.values() if isinstance(inputs, dict) else inputs:
            yield from _leaves(part)
    else:
        yield inputs


def _rows(inputs: Any) -> int | None:
    """Return the B that all inputs `[B, ...]` share, or None where they cannot be repeated."""
    found: set[int | None] = {
        leaf.shape[0] if isinstance(leaf, Tensor) and _is_plain(leaf) and leaf.dim() else None
        for leaf in _leaves(inputs)
    }
    return found.pop() if len(found) == 1 else None


def _is_plain(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_nested


def _repeated(inputs: Any, count: int) -> Any:
    """Return the whole batch `count` times, one after the other."""
    if isinstance(inputs, dict):
        return {key: _repeated(part, count) for key, part in inputs.items()}
    if isinstance(inputs, (list, tuple)):
        return type(inputs)(_repeated(part, count) for part in inputs)
    return inputs.repeat(count, *[1] * (inputs.dim() - 1))


def _unfolded(output: Tensor, count: int, rows: int | None, task: str) -> Tensor:
    """Return the output `[count * B, ...]` as `[count, B, ...]`."""
    if count == 1:
        return output.unsqueeze(0)
    if rows is None or output.dim() == 0 or output.shape[0] != count * rows:
        raise ValueError(
            f"outputs of {task} should have a row for each of the {count} x {rows} rows of inputs: found "
            f"{list(output.shape)}; predict one sample at a time with max_rows=1"
        )
    return output.reshape(count, rows, *output.shape[1:])


@contextmanager
def seeded(seed: int | None, module: nn.Module, inputs: Any) -> Iterator[None]:
    """Draw from a seed inside, and leave the random states of all devices in use as they were."""
    if seed is None:
        yield
        return
    tensors = chain(module.parameters(), module.buffers(), _leaves(inputs))
    devices = {leaf.device for leaf in tensors if isinstance(leaf, Tensor)} - {torch.device("cpu")}
    if not devices:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach accelerators that are not in use
            yield
        return
    indices = [device.index for device in devices]
    with torch.random.fork_rng(devices=indices, device_type=next(iter(devices)).type):
        torch.manual_seed(seed)
        yield
