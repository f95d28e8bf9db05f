"""What the model does not know: samples of its predictions, and how far they disagree."""

from lightning_uncertainty.epistemic.dropout import mc_dropout
from lightning_uncertainty.epistemic.ensemble import DeepEnsemble
from lightning_uncertainty.epistemic.prediction import Prediction, binary, classification, regression
from lightning_uncertainty.epistemic.sampling import sample

__all__ = ["DeepEnsemble", "Prediction", "binary", "classification", "mc_dropout", "regression", "sample"]
