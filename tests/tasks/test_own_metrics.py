"""Which metrics a task can own; what is logged of them is in tests/_step/test_logs.py."""

import pytest
import torch
import torchmetrics
from torch import nn
from torchmetrics import (
    MeanAbsoluteError,
    MeanMetric,
    MeanSquaredError,
    Metric,
    MetricCollection,
    MultioutputWrapper,
    PearsonCorrCoef,
    R2Score,
)
from torchmetrics.image import StructuralSimilarityIndexMeasure

from lightning_uncertainty import Task
from lightning_uncertainty.likelihoods import Gaussian, Generic
from lightning_uncertainty.tasks._own_metrics import own_metrics
from tests.metrics._torchmetrics import CLASSES, made

LIKELIHOODS = {"Binary": "bernoulli", "Multiclass": "categorical", "Multilabel": "bernoulli"}
CURVES = {f"{kind}{name}" for kind in LIKELIHOODS for name in ("ROC", "PrecisionRecallCurve")}
ROWS = {name for name in CLASSES if name.startswith("Multilabel")} | {
    "CosineSimilarity",
    "KLDivergence",
    "JensenShannonDivergence",
}
NEVER = {"ContinuousRankedProbabilityScore"}  # it takes an ensemble of predictions for every label


def likelihood_of(name):
    return next((likelihood for kind, likelihood in LIKELIHOODS.items() if name.startswith(kind)), "gaussian")


def accepted(name, form):
    """True, or why it is not."""
    try:
        own_metrics("mine", Task(likelihood_of(name), metrics=made(name), metrics_on=form))
    except ValueError as error:
        return str(error)
    return True


@pytest.mark.parametrize("name", CLASSES)
def test_every_metric_is_taken_in_its_form_or_refused_in_a_sentence(name):
    right, wrong = ("rows", "scalars") if name in ROWS else ("scalars", "rows")
    if name in NEVER | CURVES:
        said = accepted(name, right)
        assert f"metric {name!r} of task 'mine'" in said
        assert "yourself" in said
        return
    assert accepted(name, right) is True
    if name in ROWS:
        assert accepted(name, wrong).endswith("say Task(..., metrics_on='rows')")


@pytest.mark.parametrize(
    ("likelihood", "metric", "message"),
    [
        ("gaussian", R2Score(multioutput="raw_values"), r"outputs \(multioutput='raw_values'\) should be given rows"),
        ("gaussian", MeanSquaredError(num_outputs=3), r"outputs \(num_outputs=3\) should be given"),
        ("gaussian", MultioutputWrapper(R2Score(), 3), r"found metric 'M.*' of task 'mine'.*on='rows'"),
        ("gaussian", StructuralSimilarityIndexMeasure(), r"found metric 'S.*say Task\(\.\.\., metrics_on='images'"),
        ("categorical", torchmetrics.Accuracy("binary"), "expected to have the same shape.*take another metric"),
        ("categorical", MeanAbsoluteError(), "take another metric"),
        ("gaussian", MeanMetric(), "should compare predictions with labels: found 'MeanMetric' of task 'mine'"),
        ("gaussian", [MeanAbsoluteError()], "metrics of task 'mine' should be .* several by name: found a list"),
        ("gaussian", MeanAbsoluteError, "found the class MeanAbsoluteError; make objects"),
        ("gaussian", {"a": MeanAbsoluteError()}.keys(), "found a dict_keys"),
        ("gaussian", {"mae": MeanAbsoluteError}, "found the class MeanAbsoluteError"),
        ("gaussian", {"a.b": MeanAbsoluteError()}, "should be text without dots: found 'a.b' for task 'mine'"),
        ("gaussian", nn.L1Loss(), "found a L1Loss"),
    ],
)
def test_slips_are_told_with_task_and_metric(likelihood, metric, message):
    with pytest.raises(ValueError, match=message):
        own_metrics("mine", Task(likelihood, metrics=metric))


@pytest.mark.parametrize("kind", [R2Score, MeanSquaredError, PearsonCorrCoef], ids=lambda kind: kind.__name__)
def test_a_wrapper_of_several_outputs_knows_them_whatever_its_parts_say(kind):
    wrapper = MultioutputWrapper(kind(), 3)
    with pytest.raises(ValueError, match=r"say Task\(\.\.\., metrics_on='rows'\)"):
        own_metrics("mine", Task("gaussian", metrics=wrapper))
    assert own_metrics("mine", Task("gaussian", metrics=wrapper, metrics_on="rows"))


@pytest.mark.parametrize("form", ["row", {"MAE": "rows"}, {"MeanAbsoluteError": "image"}, None])
def test_forms_are_checked(form):
    with pytest.raises(ValueError, match=r"metrics_on of task 'mine' should be one of scalars, rows, images"):
        own_metrics("mine", Task("gaussian", metrics=MeanAbsoluteError(), metrics_on=form))


def test_several_metrics_may_have_forms_of_their_own():
    given = MetricCollection({"mae": MeanAbsoluteError(), "r2": R2Score(multioutput="raw_values")})
    own = own_metrics("mine", Task("gaussian", metrics=given, metrics_on={"r2": "rows"}))
    assert {key: form for key, (_, form) in own.items()} == {"mae": "scalars", "r2": "rows"}


class Mine(Metric):
    """Knows what nobody can make up."""

    def update(self, preds, target):
        assert (target > 100).all()

    def compute(self):
        """Nothing."""


class Own(Gaussian, name="own"):
    """A likelihood of a user's."""


def test_what_a_user_wrote_is_not_tried():
    assert own_metrics("mine", Task("gaussian", metrics=Mine()))
    assert own_metrics("mine", Task(Own(), metrics=torchmetrics.Accuracy("binary")))


def test_labels_of_0_and_1_may_be_of_any_likelihood():
    assert own_metrics("mine", Task("gaussian", metrics=torchmetrics.Accuracy("binary")))


def test_a_metric_is_tried_whatever_the_defaults_are():
    mine = R2Score()
    with torch.device("meta"):
        assert own_metrics("mine", Task(Generic(), metrics=mine))
