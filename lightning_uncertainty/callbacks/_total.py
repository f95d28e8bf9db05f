"""Whether a key that somebody monitors is the weighted total, which says nothing about which model is best."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["TotalWatch", "monitored", "total_monitored"]

_ENOUGH = 2  # values that are equal; one may be so by chance, as before σ has moved


def monitored(trainer: Any) -> dict[str, list[str]]:
    """Return the keys that callbacks and schedulers of a Trainer monitor, with the names of their classes."""
    plateaus = (config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau)
    pairs = [
        *((callback, getattr(callback, "monitor", None)) for callback in trainer.callbacks),
        *((config.scheduler, config.monitor) for config in plateaus),
    ]
    found: dict[str, list[str]] = {}
    for who, key in pairs:
        if isinstance(key, str):
            found.setdefault(key, []).append(type(who).__name__)
    return found


def total_monitored(key: str, who: Iterable[str]) -> str:
    """The sentence for a key whose values are the weighted total's."""
    return (
        f"{' and '.join(who)} should not monitor {key!r}: its values are those of the weighted total, which falls "
        "while weights move and no prediction changes, and may be negative; monitor 'val/balanced_loss', which "
        "weigh(losses, stage='val') logs, or a loss or metric of a task"
    )


class TotalWatch:
    """Compares what is logged under some keys with the weighted totals of one stage, until it is clear what they are.

    What is logged in a step is compared with the total of its batch, what is logged at the end of an epoch alone with
    the mean of its totals. A key is let go as soon as they differ.

    Args:
        keys: those that are monitored.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        self._equal = dict.fromkeys(keys, 0)
        self._by_step: set[str] = set()
        self._seen: dict[int, tuple[int, float, float]] = {}  # updates, value and weight of what is logged
        self._sum: Tensor | float = 0.0
        self._batches = 0

    def look(self, results: Any, total: Tensor | None) -> str | None:
        """Compare after a batch with its total; return a key that is the total, once that is sure.

        Args:
            results: what is logged, as Lightning holds it.
            total: of this batch, 0-dimensional; None where nobody knows.
        """
        if not self._equal or total is None:
            return None
        self._sum, self._batches = self._sum + total, self._batches + 1
        for metric in results.values():
            names = {*results._forked_name(metric, True), *results._forked_name(metric, False)}
            for key in [key for key in self._equal if key in names and metric.is_tensor]:
                value = self._logged(metric)
                if value is None:
                    continue
                self._by_step.add(key)
                if self._is_total(key, value, total.item()):
                    return key
        return None

    def close(self, logged: Mapping[str, Tensor]) -> str | None:
        """Compare after an epoch with what callbacks find; return a key that is the total, once that is sure."""
        total, batches = self._sum, self._batches
        self._seen, self._sum, self._batches = {}, 0.0, 0
        for key in [key for key in self._equal if key in logged and batches and key not in self._by_step]:
            if self._is_total(key, float(logged[key]), float(total) / batches):
                return key
        return None

    def _is_total(self, key: str, value: float, total: float) -> bool:
        """Whether a key is the total for sure, now that one more value is known."""
        self._equal[key] += 1
        if not math.isclose(value, total, rel_tol=1e-4, abs_tol=1e-6):
            del self._equal[key]
            return False
        return self._equal[key] >= _ENOUGH

    def _logged(self, metric: Any) -> float | None:
        """Return what was logged in this batch; None where nothing was."""
        before = self._seen.get(id(metric), (0, 0.0, 0.0))
        if metric.update_count == before[0]:
            return None
        mean = metric.meta.on_epoch and metric.meta.is_mean_reduction
        now = metric.update_count, float(metric.value), float(metric.cumulated_batch_size) if mean else 0.0
        self._seen[id(metric)] = now
        if metric.meta.on_step:
            return float(metric._forward_cache)
        if mean:
            return (now[1] - before[1]) / (now[2] - before[2])
        return now[1] - before[1] if metric.meta.is_sum_reduction else now[1]
