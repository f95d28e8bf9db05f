"""What recalibration found out about a model: a number for each task, saved with the model and undoable."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_uncertainty._tensors import Float32Module
from lightning_uncertainty.tasks.by_name import TaskHeads

__all__ = ["TaskCorrections"]


class TaskCorrections(nn.Module):
    """A correction for each task: a factor on σ, or the temperature that divides the logits of classes; 1 is none.

    Checkpoints know them by task name, so that tasks may be reordered, renamed, added or removed; one without them
    loads as one whose corrections are all 1.

    Args:
        tasks: their names.

    Example:
        >>> corrections = TaskCorrections(["depth", "kind"])
        >>> corrections.correct({"depth": 1.5})
        >>> corrections.of("depth"), corrections.of("kind")
        (tensor(1.5000), tensor(1.))
        >>> corrections.reset_parameters()
        >>> corrections
        TaskCorrections(depth=1, kind=1)
    """

    def __init__(self, tasks: Iterable[str]) -> None:
        super().__init__()
        self.tasks = TaskHeads({name: _Correction() for name in tasks})

    def of(self, task: str) -> Tensor:
        """Return the correction of a task, 0-dimensional."""
        correction = self.tasks[task]
        assert isinstance(correction, _Correction)
        return correction.value

    def correct(self, values: Mapping[str, float]) -> None:
        """Set the corrections of some tasks.

        Raises:
            ValueError: a name is no task, or a number is not positive and finite.
        """
        unknown = [name for name in values if name not in self.tasks]
        if unknown:
            raise ValueError(
                f"corrections should name registered tasks ({', '.join(self.tasks)}): found {', '.join(unknown)}"
            )
        unsound = {name: value for name, value in values.items() if not 0 < value < torch.inf}
        if unsound:
            raise ValueError(f"a correction should be positive and finite: found {unsound}; 1 is none")
        for name, value in values.items():
            self.of(name).fill_(value)

    def reset_parameters(self) -> None:
        """Undo all corrections (also after a meta device)."""
        for name in self.tasks:
            self.of(name).fill_(1.0)

    def rename(self, renamed: Mapping[str, str]) -> None:
        """Have checkpoints that know a task by an older name load as today's, `{"old": "new"}`."""
        self.tasks.renamed = dict(renamed)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        within = f"{prefix}tasks."
        known = {*self.tasks, *self.tasks.renamed}
        for key in [key for key in state_dict if key.startswith(within)]:
            if key.removeprefix(within).split(".")[0] not in known:  # of a task that is no more
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __repr__(self) -> str:
        values = ", ".join(
            f"{name}={'?' if (value := self.of(name)).is_meta else format(value.item(), '.4g')}" for name in self.tasks
        )
        return f"{type(self).__name__}({values})"


class _Correction(Float32Module):
    """One number."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.ones((), dtype=torch.float32))

    def reset_parameters(self) -> None:
        self.value.fill_(1.0)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict.setdefault(f"{prefix}value", torch.ones_like(self.value, device="cpu"))
        super()._load_from_state_dict(state_dict, prefix, *args)
