"""A bounded list of rows that always spans the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["History"]


class History:
    """Rows by step; when full, every second one is dropped and from then on every second, fourth, ... is kept.

    Example:
        >>> history = History(max_rows=4)
        >>> for step in range(10):
        ...     history.append(step, {"sigma/depth": 1.0})
        >>> [row["step"] for row in history.rows]
        [0, 4, 8]
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self.rows: list[dict[str, Any]] = []
        self._seen = 0
        self._stride = 1

    def append(self, step: int, row: Mapping[str, Any]) -> None:
        """Keep a row if its turn has come."""
        if self._seen % self._stride == 0:
            if len(self.rows) == self.max_rows:
                self.rows = self.rows[::2]
                self._stride *= 2
            if self._seen % self._stride == 0:
                self.rows.append({"step": step, **row})
        self._seen += 1

    def to_frame(self) -> DataFrame:
        """Return the rows as a pandas frame: index `step`, one column for each key.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_frame needs pandas: pip install 'lightning-uncertainty[plot]'") from error
        return DataFrame(self.rows).set_index("step") if self.rows else DataFrame()

    def state_dict(self) -> dict[str, Any]:
        """Return all of it, builtins only."""
        return {"rows": list(self.rows), "seen": self._seen, "stride": self._stride}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.rows, self._seen, self._stride = list(state["rows"]), state["seen"], state["stride"]
