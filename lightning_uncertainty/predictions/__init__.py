"""What a model predicts and how surely: one pass, many with dropout, or many models."""

from lightning_uncertainty.likelihoods import Prediction, binary, classification, regression
from lightning_uncertainty.predictions.dropout import mc_dropout
from lightning_uncertainty.predictions.ensemble import DeepEnsemble
from lightning_uncertainty.predictions.sampling import sample

__all__ = ["DeepEnsemble", "Prediction", "binary", "classification", "mc_dropout", "regression", "sample"]
