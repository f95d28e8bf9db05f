"""Every class of torchmetrics that compares predictions with labels, and what each is given."""

from __future__ import annotations

import warnings
from functools import partial

import torch
import torchmetrics
from torchmetrics import Metric, classification, regression, wrappers

from tests._versions import has

KINDS = ("Binary", "Multiclass", "Multilabel")
GROUPED = ("BinaryFairness", "BinaryGroupStatRates")  # which want groups, too
OPTIONS = {
    "BinaryFBetaScore": {"beta": 2.0},
    "MulticlassFBetaScore": {"beta": 2.0},
    "MultilabelFBetaScore": {"beta": 2.0},
    "MinkowskiDistance": {"p": 2.0},
    "CriticalSuccessIndex": {"threshold": 0.5},
}


def options(name):
    """What a class needs to be made."""
    least = [f"min_{word.lower()}" for word in (name.rpartition("At")[2].removeprefix("Fixed"),) if "At" in name]
    counted = {"Multiclass": "num_classes", "Multilabel": "num_labels"}
    numbers = {argument: 3 for kind, argument in counted.items() if name.startswith(kind)}
    return {**dict.fromkeys(least, 0.5), **numbers, **OPTIONS.get(name, {})}


def names():
    kinds = [name for name in classification.__all__ if name.startswith(KINDS) and name not in GROUPED]
    return [*kinds, *regression.__all__]


def make(name):
    module = classification if hasattr(classification, name) else regression
    return getattr(module, name)(**options(name))


CLASSES = {name: partial(make, name) for name in names()}
ROWS = ("CosineSimilarity", "JensenShannonDivergence", "KLDivergence", "ContinuousRankedProbabilityScore")


class Lazy(Metric):
    """A metric that learns only from its first batch what it is about; without labels it knows nothing."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.add_state("errors", [], dist_reduce_fx=None)

    def update(self, preds, target):
        self.digits = 3
        self.errors.append((preds - target).abs())

    def compute(self):
        return torch.cat(self.errors).max().round(decimals=self.digits)


MORE = {
    "Lazy": Lazy,
    "composed": lambda: torchmetrics.SpearmanCorrCoef() + torchmetrics.MeanAbsoluteError(),
    "multioutput": lambda: wrappers.MultioutputWrapper(torchmetrics.R2Score(), num_outputs=3),
    "classwise": lambda: wrappers.ClasswiseWrapper(classification.MulticlassAccuracy(3, average=None)),
}


def r2_of_each():
    """An R2Score of three outputs, whose number it asked for until torchmetrics 1.5."""
    return torchmetrics.R2Score(*[3] * (not has("torchmetrics", "1.5")), multioutput="raw_values")


def made(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Spearman's, of the memory that it takes
        return {**CLASSES, **MORE}[name]()


def draw(name, count, seed=0):
    """Predictions and labels in the form that a class takes."""
    generator = torch.Generator().manual_seed(seed)
    if name.startswith("Binary"):
        return torch.rand(count, generator=generator), torch.randint(2, (count,), generator=generator)
    if name.startswith("Multiclass") or name == "classwise":
        return torch.rand(count, 3, generator=generator).softmax(1), torch.randint(3, (count,), generator=generator)
    if name.startswith("Multilabel"):
        return torch.rand(count, 3, generator=generator), torch.randint(2, (count, 3), generator=generator)
    if name == "ContinuousRankedProbabilityScore":
        return torch.rand(count, 3, generator=generator), torch.rand(count, generator=generator)
    shape = (count, 3) if name in ROWS or name == "multioutput" else (count,)
    drawn = [torch.rand(shape, generator=generator) for _ in range(2)]
    return tuple(x.softmax(1) for x in drawn) if name.endswith("Divergence") else tuple(drawn)
