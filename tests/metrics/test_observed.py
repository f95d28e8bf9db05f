import pytest
import torch
from torchmetrics import Accuracy, MeanAbsoluteError, MeanSquaredError

from lightning_uncertainty.metrics import ObservedMetric
from tests.metrics._other_rank import with_other_rank


def test_observed_metric_is_the_metric_of_what_was_observed():
    metric, oracle = ObservedMetric(MeanSquaredError()), MeanSquaredError()
    for count in (3, 0, 5):
        prediction, label = torch.randn(count), torch.randn(count)
        metric.update(prediction, label)
        if count:
            oracle.update(prediction, label)
    assert metric.compute().equal(oracle.compute())


def test_observed_metric_without_labels_is_none_in_silence():
    metric = ObservedMetric(MeanAbsoluteError())
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute() is None  # warnings are errors here


def test_observed_metric_whose_labels_are_all_on_another_rank():
    metric = with_other_rank(ObservedMetric(MeanAbsoluteError()), torch.tensor(4))
    with_other_rank(metric.metric, torch.tensor(6.0), torch.tensor(4))
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute().item() == 1.5


def test_observed_metric_starts_afresh():
    metric = ObservedMetric(MeanAbsoluteError())
    metric.update(torch.tensor([1.0]), torch.tensor([9.0]))
    metric.reset()
    metric.update(torch.empty(0), torch.empty(0))
    assert metric.compute() is None
    metric.update(torch.tensor([1.0]), torch.tensor([2.0]))
    assert metric.compute().item() == 1.0


def test_observed_metric_keeps_a_copy():
    mine = MeanAbsoluteError()
    metric = ObservedMetric(mine)
    metric.update(torch.tensor([1.0]), torch.tensor([9.0]))
    assert not mine.update_called


def test_observed_metric_called_as_a_function_accumulates():
    metric = ObservedMetric(MeanAbsoluteError())
    for target in (2.0, 4.0):
        metric(torch.tensor([1.0]), torch.tensor([target]))
    assert metric.compute() == 2.0


def test_a_metric_on_the_meta_device_is_refused():
    with torch.device("meta"):
        mine = MeanAbsoluteError()
    with pytest.raises(ValueError, match="found MeanAbsoluteError on the meta device, which forgets"):
        ObservedMetric(mine)


def test_observed_metric_has_the_direction_of_its_metric():
    assert ObservedMetric(Accuracy("binary")).higher_is_better is True
    assert ObservedMetric(MeanAbsoluteError()).higher_is_better is False
