"""Constant weights: the plain sum, and weights found elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lightning_uncertainty._tensors import by_name
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._named import named_vector
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["FixedWeighting", "constants_of"]


class FixedWeighting(Weighting):
    r"""Weigh the losses by constants: :math:`\sum_i w_i L_i`.

    Args:
        weights: by task name, others 1; None weighs all alike (the unweighted sum). 0 switches a task off.

    Raises:
        ValueError: (when tasks are registered) a name is no task, or a weight is not finite or negative.

    Example:
        >>> import torch
        >>> from lightning_uncertainty.likelihoods import Categorical, Gaussian
        >>> tasks = {"depth": Gaussian(), "semantics": Categorical()}
        >>> weighting = FixedWeighting({"depth": 0.1}).bind(tasks)
        >>> weighting(torch.tensor([5.0, 2.0]), torch.tensor([True, True])).total
        tensor(2.5000)
    """

    takes_normalised = True
    takes_constant = True
    weight: Tensor

    def __init__(self, weights: Mapping[str, float] | None = None) -> None:
        given = by_name(weights, "weights")
        super().__init__(weights=given)
        self._weights = given

    def make_vectors(self) -> None:
        self.add_constant("weight", named_vector(self._weights, self.tasks, 1.0, "weights", minimum=0.0))

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        weights = present * self.weight
        return Weighted((weights * losses).sum(), weights, None)


@torch.no_grad()  # which changes no state of the weighting
def constants_of(weighting: Weighting) -> FixedWeighting:
    """Return the present effective weights of a weighting as constants.

    Raises:
        ValueError: the next batch decides a weight.
    """
    losses = 1.0 + torch.arange(len(weighting.tasks), device=weighting.task_ids.device)
    present = torch.ones_like(losses, dtype=torch.bool)
    weights = weighting(losses, present).weights
    others = weighting((losses + 1).square(), present).weights
    same = (weights == others) & weighting.closed_form
    following = [name for name, constant in zip(weighting.tasks, same.tolist(), strict=True) if not constant]
    if following:
        raise ValueError(
            "weights should be learnt before they are exported as constants: found that the next batch decides "
            f"those of {', '.join(following)}; train every task, or use a weighting whose weights do not follow "
            "each batch"
        )
    return FixedWeighting(dict(zip(weighting.tasks, weights.tolist(), strict=True)))
