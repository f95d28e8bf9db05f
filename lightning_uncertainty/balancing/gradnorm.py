"""GradNorm: weights that level the norms of the tasks' gradients (Chen et al., ICML 2018)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_uncertainty._tensors import is_number, keep_for_backward
from lightning_uncertainty.balancing._base import BalancingWeighting
from lightning_uncertainty.balancing.step import Step
from lightning_uncertainty.weightings import Weighted

__all__ = ["GradNorm"]

_LEAST = 1e-3  # a weight that reached 0 could not come back


class GradNorm(BalancingWeighting):
    r"""Move the weights until every task's gradient is as large as its training rate says.

    .. math::  \sum_i w_i L_i, \qquad
               w_i \leftarrow w_i - \eta\, \mathrm{sign}(G_i - \bar G r_i^\alpha) \frac{G_i}{w_i}, \\
               G_i = w_i \lVert \nabla L_i \rVert, \qquad
               r_i = \frac{L_i / L_i(0)}{\mathrm{mean}_j\, L_j / L_j(0)},

    after which the weights are brought back to the sum they had. A task that has come less far than the others
    (:math:`r_i > 1`) may have the larger gradient. `L(0)` is the loss of a task's first training batch, and
    :math:`\bar G` the mean of the G, both over the tasks present, held constant.

    The gradients are those of the shared features, over the global batch, which arrive within the one backward pass
    and need no second derivative; the paper takes those of the last shared layer's parameters, which follow them, as
    `on="parameters"` does. A step changes the weights of the next one.

    η is in units of the losses' gradients, as published: with losses of very different sizes or small gradients it has
    to be looked for.

    Source: Chen, Badrinarayanan, Lee & Rabinovich, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in
    Deep Multitask Networks", ICML 2018, Eq. 1-2 and Algorithm 1.

    Args:
        alpha: how strongly tasks that lag are favoured, at least 0; 0 levels all norms.
        lr: η, positive.
        on: "features", or "parameters": the gradients of the parameters that `shared_parameters()` of the module
            names, as the paper has it where these are the last shared layer's; a backward pass for each task.

    Raises:
        ValueError: alpha is negative or lr is not positive, or one is not finite, or `on` is neither.
        RuntimeError: (in training) the features went around `task_outputs` and `split_features`.

    Example:
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = GradNorm(alpha=0.5).bind({"depth": Gaussian(), "height": Gaussian()})
        >>> weighting(torch.tensor([4.0, 1.0]), torch.tensor([True, True])).weights
        tensor([1., 1.])
    """

    weight: Tensor
    first_loss: Tensor

    def __init__(
        self, alpha: float = 1.5, lr: float = 0.025, *, on: Literal["features", "parameters"] = "features"
    ) -> None:
        super().__init__(alpha=alpha, lr=lr, on=None if on == "features" else on)
        if on not in ("features", "parameters"):
            raise ValueError(f"on should be 'features' or 'parameters': found {on!r}")
        if not (is_number(alpha) and is_number(lr) and 0 <= alpha < float("inf") and 0 < lr < float("inf")):
            raise ValueError(f"alpha should be at least 0 and lr positive, both finite: found {alpha!r} and {lr!r}")
        self.alpha, self.lr, self.on = alpha, lr, on

    def make_vectors(self) -> None:
        self.register_buffer("weight", self.vector())
        self.register_buffer("first_loss", self.vector())  # 0 before a task's first labels

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.fill_(1.0)
        self.first_loss.zero_()

    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        weights = keep_for_backward(self.weight * present)  # backward changes the weight
        if self.learning:
            known = losses.detach()
            new = self.usable(known, present) & (self.first_loss == 0)
            self.first_loss.copy_(torch.where(new, known, self.first_loss))
        return Weighted((weights * losses).sum(), weights.clone(), None)

    @torch.no_grad()
    def take_gramian(self, gramian: Tensor, step: Step) -> None:
        norms = gramian.diagonal().sqrt()
        used = step.weights.to(norms)
        counted = (norms > 0) & (norms < torch.inf) & (self.first_loss > 0) & (used > 0)
        count = counted.sum().clamp(min=1)
        rates = torch.where(counted, step.losses.to(norms) / self.first_loss.to(norms), 0.0)
        rates = rates / (rates.sum() / count).clamp(min=torch.finfo(norms.dtype).tiny)
        target = torch.where(counted, norms, 0.0).sum() / count * rates**self.alpha
        slope = torch.where(counted, torch.sign(norms - target) * norms / used, 0.0)
        before = self.weight.to(norms)
        after = (before - self.lr * slope).clamp(min=_LEAST)
        share = torch.where(counted, before, 0.0).sum() / torch.where(counted, after, 0.0).sum()
        self.weight.copy_(torch.where(counted, after * share, before))
