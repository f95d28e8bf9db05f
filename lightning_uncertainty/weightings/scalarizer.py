"""Any Scalarizer of TorchJD as a weighting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import changes, plain_state, restore, seeded, selected, torchjd
from lightning_uncertainty.weightings._base import Weighting
from lightning_uncertainty.weightings._weighted import Weighted

__all__ = ["ScalarizerWeighting"]


class ScalarizerWeighting(Weighting):
    """Weigh losses by any Scalarizer of TorchJD: STCH, COSMOS, PBI, UW, IMTL-L, DWA ...

    The weights are what autograd finds, d total / d loss, so they are right for whatever the scalarizer does. It sees
    the losses of the tasks present alone, and of its parameters and settings with one number for each task those of
    the same. Parameters, moves, casts and checkpoints are as in any weighting: what TorchJD keeps as plain attributes
    and loses is saved here too, and follows reordered tasks. Epochs are counted for a scalarizer with a `step` (DWA).
    What it draws depends on the number of the step alone, so that ranks agree and a resumed fit draws on.

    It runs eagerly: a compiled step breaks its graph here, and on a GPU every step waits for the device. Where there is
    a weighting of our own, as for UW, DWA, IMTL-L or RLW, that one is faster, and takes missing labels where this one
    cannot.

    Source: TorchJD's `torchjd.scalarization`, each of which names its paper.

    Args:
        scalarizer: a Scalarizer, or what makes one for a number of tasks, as the class `UW`.

    Raises:
        ValueError: it is none; it is FAMO, which has to be told the losses after the optimizer's step; (when tasks are
            registered) it has numbers for more or fewer tasks; (in a step) tasks are absent that it remembers by
            position.
        ModuleNotFoundError: TorchJD is not installed.

    Example:
        >>> from torchjd.scalarization import STCH
        >>> from lightning_uncertainty.likelihoods import Gaussian
        >>> weighting = ScalarizerWeighting(STCH(mu=0.1)).bind({"depth": Gaussian(), "mass": Gaussian()})
        >>> weighting(torch.tensor([1.0, 1.1]), torch.tensor([True, True])).weights  # about the largest loss
        tensor([0.1888, 0.3112])
    """

    scalarizer: nn.Module

    def __init__(self, scalarizer: nn.Module | Callable[[int], nn.Module]) -> None:
        super().__init__()
        self._make: Callable[[int], nn.Module] | None = None
        self.needs_epoch = True
        if isinstance(scalarizer, nn.Module):
            self._take_scalarizer(scalarizer)
        else:
            self._make = scalarizer
        self._steps = 0
        self._epoch: int | None = None

    def _take_scalarizer(self, scalarizer: nn.Module) -> None:
        """Keep a scalarizer.

        Raises:
            ValueError: it is none, or FAMO.
        """
        known = torchjd("scalarization", "ScalarizerWeighting")
        if not isinstance(scalarizer, known.Scalarizer):
            raise ValueError(f"a scalarizer should be one of TorchJD's, as STCH(mu=0.1): found {scalarizer!r}")
        if isinstance(scalarizer, known.FAMO):
            raise ValueError(
                "a scalarizer should need a step's losses alone: found FAMO, which has to be told those after the "
                "optimizer's step as well and learns nothing without; take another"
            )
        self.scalarizer = scalarizer
        self.needs_epoch = callable(getattr(scalarizer, "step", None))

    def make_vectors(self) -> None:
        if self._make is not None:
            with torch.device("cpu"):  # so that its numbers are known, on a meta device too
                self._take_scalarizer(self._make(len(self.tasks)))
            self._make = None
        for part in self.scalarizer.modules():
            for name, value in list(vars(part).items()):
                if isinstance(value, Tensor):  # as a buffer it moves with the model
                    delattr(part, name)
                    part.register_buffer(name, value.detach(), persistent=False)
        self._first = {name: value.detach().cpu().clone() for name, value in self._tensors().items()}
        self._first_state = plain_state(self.scalarizer, buffers=False)
        self.scalarizer.to(self.base_weight.device)
        wrong = {name: [*value.shape] for name, value in self._first.items() if value.shape != (len(self.tasks),)}
        if wrong:
            raise ValueError(
                f"a scalarizer should have one number for each of {len(self.tasks)} tasks, or none: found shapes "
                f"{wrong} in {self.scalarizer!r}"
            )

    def _tensors(self) -> dict[str, Tensor]:
        return {**dict(self.scalarizer.named_parameters()), **dict(self.scalarizer.named_buffers())}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, value in self._tensors().items():
            value.copy_(self._first[name])
        restore(self.scalarizer, self._first_state, self.task_ids.device)
        self._steps, self._epoch = 0, None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ScalarizerWeighting:
        super()._apply(fn, recurse)
        if self.tasks:
            restore(self.scalarizer, plain_state(self.scalarizer, buffers=False), self.task_ids.device)
        return self

    def start_epoch(self, epoch: int) -> None:
        if self.needs_epoch and epoch != self._epoch:
            if self._epoch is not None:
                self.scalarizer.step()  # type: ignore[operator]
            self._epoch = epoch

    @torch.compiler.disable
    def weigh(self, losses: Tensor, present: Tensor) -> Weighted:
        differentiable = torch.is_grad_enabled() and losses.requires_grad
        with torch.inference_mode(False), torch.enable_grad():
            index = present.clone().nonzero()[:, 0]
            if not len(index):
                nothing = torch.where(present, losses, 0.0).sum() + sum(p.sum() * 0 for p in self.parameters())
                return Weighted(nothing, torch.zeros_like(losses.detach()), None)
            picked = losses[index] if differentiable else losses.detach().clone()[index].requires_grad_()
            total = self._scalarized(picked, index, len(losses))
            (slopes,) = torch.autograd.grad(total, picked, retain_graph=True)
        weights = torch.zeros_like(losses.detach()).index_copy_(0, index, slopes)
        return Weighted(total if torch.is_grad_enabled() else total.detach(), weights, None)

    def _scalarized(self, losses: Tensor, index: Tensor, count: int) -> Tensor:
        """Return the total of the losses present.

        Raises:
            ValueError: the scalarizer remembers those of tasks by position, and some are absent.
        """
        before = plain_state(self.scalarizer, buffers=False)
        with selected(self.scalarizer, index, count), seeded(self._steps, losses.device):
            total: Tensor = self.scalarizer(losses)
        if not self.learning:
            restore(self.scalarizer, before, losses.device)
            return total
        if len(index) < count and _has_tensors(plain_state(self.scalarizer, buffers=False)):
            restore(self.scalarizer, before, losses.device)
            there = index.tolist()
            absent = ", ".join(name for i, name in enumerate(self.tasks) if i not in there)
            raise ValueError(
                f"{self.scalarizer!r} remembers losses by position, so every task should have labels in every batch: "
                f"found none for {absent}; take a weighting that allows for it"
            )
        self._steps += 1
        return total

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def foreign_state(self) -> dict[str, Any]:
        """Return what the scalarizer remembers, and where it is."""
        remembered = changes(plain_state(self.scalarizer, buffers=False), self._first_state)
        kind = type(self.scalarizer).__name__
        return {"scalarizer": remembered, "of": kind, "steps": self._steps, "epoch": self._epoch}

    def take_foreign_state(self, state: Any, saved: tuple[str, ...]) -> None:
        """Take what the scalarizer remembered, in the order of our tasks; it starts anew where some were added."""
        kind = type(self.scalarizer).__name__
        if "scalarizer" not in state or (state["scalarizer"] and state.get("of", kind) != kind):
            return
        remembered = state["scalarizer"] if set(self.tasks) <= set(saved) else {}
        index = [saved.index(name) for name in self.tasks if name in saved]
        ordered = {name: _reordered(value, index, len(saved)) for name, value in remembered.items()}
        restore(self.scalarizer, {**self._first_state, **ordered}, self.task_ids.device)
        self._steps, self._epoch = state["steps"], state["epoch"]


def _has_tensors(value: Any) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_has_tensors, value)))


def _reordered(value: Any, index: list[int], count: int) -> Any:
    if isinstance(value, Tensor):
        return value[..., index] if value.shape[-1:] == (count,) else value
    return type(value)(_reordered(part, index, count) for part in value) if isinstance(value, list | tuple) else value
