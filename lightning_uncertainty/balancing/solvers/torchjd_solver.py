"""Any method of TorchJD that weights gradients, as a solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import changes, plain_state, restore, seeded, selected, torchjd
from lightning_uncertainty.balancing.solvers._gramian_solver import GramianSolver, on_host

__all__ = ["TorchJDSolver"]


@dataclass(frozen=True)
class TorchJDSolver(GramianSolver):
    r"""Weight gradients by any Weighting of TorchJD: UPGrad, DualProj, CAGrad, Aligned-MTL, FairGrad, GradVac ...

    It is handed the Gramian of the tasks that have a gradient in this step, in float64 on the CPU, and of settings with
    one number for each task those of the same. Nash-MTL, which wants the gradients themselves, gets rows :math:`R` with
    :math:`R R^\top = G`. What TorchJD draws depends on the number of the step alone, so that ranks agree.

    Several methods add constants to the Gramian or call a small one zero. Those of TorchJD's for which its unit should
    not matter, all but FairGrad, Nash-MTL and PCD, get it with a mean diagonal of 1. The size of the weights is theirs:
    UPGrad, DualProj, CAGrad and Aligned-MTL have that of a mean of the losses, PCGrad and GradVac that of a sum.

    Methods with a memory (GradVac, CR-MOGM, PCD) start anew when other tasks than before have gradients; `state` keeps
    it for a resume, but for Nash-MTL, which starts from its first guess.

    Source: Quinton & Rey, "Jacobian Descent for Multi-Objective Optimization", 2024, and the papers that TorchJD names.

    Args:
        weighting: a Weighting from `torchjd.aggregation`, as `UPGradWeighting()`, or an Aggregator that has one, as
            `UPGrad()` or `NashMTL(n_tasks=3)`.

    Raises:
        ValueError: it is none, or needs more than a Gramian; (when called) it returned a wrong number of weights.
        ModuleNotFoundError: TorchJD is not installed.

    Example:
        >>> from torchjd.aggregation import UPGradWeighting
        >>> gramian = torch.tensor([[18.0, -22.0], [-22.0, 38.0]]).double()
        >>> TorchJDSolver(UPGradWeighting())(gramian, torch.ones(2).double(), torch.tensor(0)).round(decimals=2)
        tensor([1.1100, 0.7900], dtype=torch.float64)
    """

    weighting: Any
    _memory: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    scale_free: ClassVar[bool] = False  # some are; nothing is promised
    deterministic: ClassVar[bool] = False
    permutes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        known = torchjd("aggregation", "TorchJDSolver")
        found = self.weighting
        if isinstance(found, known.GramianWeightedAggregator):
            found = found.gramian_weighting
        elif isinstance(found, known.WeightedAggregator):
            found = found.weighting
        if not isinstance(found, known.Weighting):
            raise ValueError(
                f"a solver from TorchJD should be one of its Weightings, as UPGradWeighting(): found {self.weighting!r}"
            )
        too_much = (known.ExcessMTLWeighting, known.MoDoWeighting, known.SDMGradWeighting)
        for part in found.modules():
            if isinstance(part, too_much):
                raise ValueError(
                    f"a solver should need the gradients' Gramian alone: found {type(part).__name__}, which needs the "
                    "gradients or those of another batch; take another"
                )
        object.__setattr__(self, "weighting", found)
        self._memory["first"] = plain_state(found, buffers=True)

    def __call__(self, gramian: Tensor, losses: Tensor, draw: Tensor) -> Tensor:
        host = on_host(gramian)
        if not host.isfinite().all():  # some of them raise
            return torch.full_like(gramian[0], torch.nan)
        index = (host.diagonal() > 0).nonzero()[:, 0]
        weights = torch.zeros_like(host[0])
        if len(index):
            self._forget_others(index)
            with selected(self.weighting, index, len(host), host.dtype), seeded(int(draw), host.device):
                weights[index] = self._of_present(host[index][:, index])
        return weights.to(gramian)

    def _of_present(self, gramian: Tensor) -> Tensor:
        """Return the weights of tasks that all have a gradient.

        Raises:
            ValueError: there is not one for each.
        """
        if self._without_unit():
            gramian = gramian / gramian.diagonal().mean()
        for nash in self._nash():
            if nash.n_tasks != len(gramian):
                nash.n_tasks = len(gramian)
                nash.reset()
            values, vectors = torch.linalg.eigh(gramian)
            gramian = vectors * values.clamp(min=0.0).sqrt()
        with torch.autocast("cpu", enabled=False):
            weights: Tensor = self.weighting(gramian).detach()
        if weights.shape != gramian.shape[:1]:
            raise ValueError(
                f"a solver should return one weight for each of {len(gramian)} tasks: found shape "
                f"{list(weights.shape)} from {self.weighting!r}; mend it"
            )
        return weights.to(gramian)

    def _forget_others(self, index: Tensor) -> None:
        """Start a memory anew that belongs to other tasks."""
        before, now = self._memory.get("present"), index.tolist()
        if before not in (None, now):
            for part in self.weighting.modules():
                if callable(getattr(part, "reset", None)):
                    part.reset()
        self._memory["present"] = now

    def _nash(self) -> list[Any]:
        return [part for part in self.weighting.modules() if type(part).__name__ == "_NashMTLWeighting"]

    def _without_unit(self) -> bool:
        """Whether the weights should not depend on the unit of the Gramian: known of TorchJD's own methods alone."""
        known = torchjd("aggregation", "TorchJDSolver")
        with_unit = (known.FairGradWeighting, known.PCDWeighting)
        parts: list[nn.Module] = list(self.weighting.modules())
        own = all(type(part).__module__.startswith("torchjd.") for part in parts)
        return own and not self._nash() and not any(isinstance(part, with_unit) for part in parts)

    def state(self) -> dict[str, Any]:
        """Return what the method remembers: builtins and tensors."""
        if self._nash():
            return {}
        changed = changes(plain_state(self.weighting, buffers=True), self._memory["first"])
        kind = type(self.weighting).__name__
        return {"of": kind, "present": self._memory.get("present"), "changed": changed} if changed else {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Remember what `state` returned; what another method remembered is forgotten."""
        kind = type(self.weighting).__name__
        state = state if state.get("of", kind) == kind else {}
        self._memory["present"] = state.get("present")
        restore(self.weighting, {**self._memory["first"], **state.get("changed", {})}, torch.device("cpu"))
