"""A bounded list of rows that always spans the whole run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["History"]


class History:
    """Rows of one run by rising step; when full, every second one is dropped, and every second, fourth, ... is kept.

    Example:
        >>> history = History(max_rows=4)
        >>> for step in range(10):
        ...     history.append(step, {"sigma/depth": 1.0})
        >>> [row["step"] for row in history.rows]
        [0, 4, 8]
    """

    def __init__(self, max_rows: int) -> None:
        self.max_rows = max_rows
        self._loaded, self._end = False, 0
        self.rows: list[dict[str, Any]] = []
        self._seen, self._stride = 0, 1

    def begin(self, steps: int) -> bool:
        """Begin a fit: forget the rows, unless it goes on from them; return whether it does.

        Args:
            steps: that were made before. A fit goes on if it takes up a checkpoint from which the rows came, or a fit
                that ended after as many.
        """
        goes_on = steps > 0 and (self._loaded or steps == self._end)
        if not goes_on:
            self.rows, self._seen, self._stride = [], 0, 1
        self._loaded, self._end = False, 0
        return goes_on

    def end(self, steps: int) -> None:
        """Note after how many steps a fit ended."""
        self._end = steps

    def append(self, step: int, row: Mapping[str, Any], last: bool = False) -> None:
        """Keep a row if its turn has come, or if it is the last of a fit.

        It takes the place of rows that are not before it, as of a step that a resumed run makes again.
        """
        while self.rows and self.rows[-1]["step"] >= step:
            self.rows.pop()
        if last or self._seen % self._stride == 0:
            if len(self.rows) == self.max_rows:
                self.rows = self.rows[::2]
                self._stride *= 2
            if last or self._seen % self._stride == 0:
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
        self._loaded = True
