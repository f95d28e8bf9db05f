"""What a model predicts and how surely: one pass, many with dropout, or many models."""

from lightning_uncertainty.likelihoods import Prediction, binary, classification, regression
from lightning_uncertainty.predictions.dropout import mc_dropout
from lightning_uncertainty.predictions.ensemble import DeepEnsemble
from lightning_uncertainty.predictions.sampling import Sampling, sample
from lightning_uncertainty.predictions.written import Gathered, gather_predictions

__all__ = [
    "DeepEnsemble",
    "Gathered",
    "Prediction",
    "Sampling",
    "binary",
    "classification",
    "gather_predictions",
    "mc_dropout",
    "regression",
    "sample",
]
