"""Modules that checkpoints know by the names of their tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["TaskHeads"]


class TaskHeads(nn.ModuleDict):
    """Heads by task, which load from checkpoints that know a task by an older name."""

    renamed: Mapping[str, str] = {}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for old, new in self.renamed.items():
            for key in [key for key in state_dict if key.startswith(f"{prefix}{old}.")]:
                state_dict[f"{prefix}{new}.{key.removeprefix(f'{prefix}{old}.')}"] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)
