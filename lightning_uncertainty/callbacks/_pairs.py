"""Predictions and labels of tasks without maps, as a parity plot has them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lightning_uncertainty._show import Classified, Paired
from lightning_uncertainty.callbacks._looks import Labels
from lightning_uncertainty.likelihoods import Prediction

__all__ = ["counts_of", "pairs_of"]


def counts_of(name: str, pairs: Sequence[tuple[Prediction, Labels]], names: Sequence[str]) -> list[Classified]:
    """Return how often classes of a task were taken for which; nothing where no label is observed."""
    counts = np.zeros((len(names), len(names)), np.int64)
    for prediction, labels in pairs:
        taken, truth = prediction.mean.argmax(1)[labels.there], labels.values[labels.there]
        np.add.at(counts, (truth.cpu().numpy().astype(int), taken.cpu().numpy()), 1)
    return [Classified(name, counts, names)] if counts.any() else []


def pairs_of(name: str, pairs: Sequence[tuple[Prediction, Labels]], points: int, most: int) -> list[Paired]:
    """Return truth, mean and σ of a task, or of each of its columns where these are at most `most`."""
    mean, sigma = (torch.cat([_rows(part[of]) for part, _ in pairs]) for of in (0, 3))
    truth, there = (torch.cat([_rows(labels[of]) for _, labels in pairs]) for of in (0, 1))
    apart = mean.shape[1] <= most
    found = []
    for column in range(mean.shape[1] if apart else 1):
        parts = [part[:, column] if apart else part.flatten() for part in (mean, sigma, truth, there)]
        known = parts[3] & parts[0].isfinite() & parts[2].isfinite()
        chosen = known.nonzero().flatten()[:points]
        if chosen.numel():
            one, spread, label = (part[chosen].double().cpu().numpy() for part in parts[:3])
            title = f"{name}[{column}]" if apart and mean.shape[1] > 1 else name
            found.append(Paired(title, label, one, spread if np.isfinite(spread).all() else None))
    return found


def _rows(values: Tensor) -> Tensor:
    """Return numbers as `[B, D]`; those of series and the like as one column."""
    return values if values.dim() == 2 else values.reshape(-1, 1)
