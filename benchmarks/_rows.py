"""Tables whose items are whole batches: no time goes into putting rows together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler


class Rows(Dataset[dict[str, Tensor]]):
    """Columns `[N, ...]` of N rows; an item is as many rows as there are numbers in its index."""

    def __init__(self, columns: Mapping[str, Tensor]) -> None:
        self.columns = dict(columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: Any) -> dict[str, Tensor]:
        return {name: column[torch.as_tensor(index)] for name, column in self.columns.items()}

    def loader(self, batch: int, *, shuffle: bool = False) -> DataLoader[dict[str, Tensor]]:
        sampler = RandomSampler(self) if shuffle else SequentialSampler(self)
        return DataLoader(self, sampler=BatchSampler(sampler, batch, drop_last=False), batch_size=None)
