"""How many labels and processes a host's losses are of."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor

from lightning_uncertainty.adoption._options import Options, asked
from lightning_uncertainty.tasks.task import check_known

__all__ = ["counted", "of_all_ranks", "size_of"]


def counted(losses: Mapping[str, Any], options: Options, batch: Any) -> dict[str, Any]:
    """Return a loss for every task, or None, as a pair where its labels are counted.

    Raises:
        RuntimeError: they are not counted by task.
        ValueError: one of these is no task.
    """
    found: dict[str, Any] = {task: losses.get(task) for task in options.tasks}
    if options.count is None:
        return found
    counts = asked(options.count, batch)
    divisors = counts if options.divisor is None else asked(options.divisor, batch)
    if not isinstance(counts, Mapping):
        raise RuntimeError(
            f"count= should return labels by task: found a {type(counts).__name__}; return a dict, as in "
            f"{{{options.tasks[0]!r}: batch['mask'].sum()}}"
        )
    check_known(counts, options.tasks)
    for task, loss in found.items():
        if loss is None or task not in counts:
            continue
        mean = loss[0] if isinstance(loss, tuple) else loss
        count = _number(counts[task], mean)
        divisor = divisors.get(task, count) if isinstance(divisors, Mapping) else divisors
        found[task] = (mean * _number(divisor, mean), count)
    return found


def _number(value: Any, like: Tensor) -> Tensor:
    return torch.as_tensor(value, device=like.device).to(like.dtype).reshape(())


def of_all_ranks(loss: Tensor, ranks: int, *, seen: bool) -> Tensor:
    """Return a loss of the global batch with this rank's share of the gradient, `ranks` times, as a mean is taken.

    Args:
        loss: 0-dimensional.
        ranks: how many processes share the batch.
        seen: whether it is what the host made, or, as `d total / d weight`, `ranks` times that.
    """
    value = loss.detach()
    return value + ranks * (loss - value) if seen else value / ranks + (loss - value)


def size_of(batch: Any) -> int:
    """Return how many samples a batch has, as Lightning counts them; 1 where it cannot tell."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return int(extract_batch_size(batch))
        except (MisconfigurationException, ValueError, TypeError):
            return 1
