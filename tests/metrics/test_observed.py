import pytest
import torch
from torchmetrics import Accuracy, MeanAbsoluteError, MeanSquaredError, R2Score

from lightning_uncertainty.metrics import ObservedMetric
from lightning_uncertainty.metrics._over_ranks import _reduced
from tests.metrics._other_rank import with_other_rank
from tests.metrics._ranks import BATCHES, logged, shares, updated
from tests.metrics._torchmetrics import CLASSES, MORE, draw, made


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


# -- every metric of torchmetrics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CLASSES, *MORE])
def test_whatever_is_not_observed_has_no_value(name):
    metric = updated(name, [draw(name, 0)])
    assert metric.compute() is None  # without a warning
    batch = draw(name, 8)
    metric.update(*batch)
    oracle = made(name)
    oracle.update(*batch)
    torch.testing.assert_close(metric.compute(), oracle.compute(), equal_nan=True)


SMOKE = ("BinaryAUROC", "PearsonCorrCoef", "R2Score", "Lazy", "composed")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("split", BATCHES)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.smoke if name in SMOKE else pytest.mark.matrix)
        for name in [*CLASSES, *MORE]
    ],
)
@pytest.mark.cells("tests.metrics._ranks", "{name}/{split}")
def test_ranks_have_the_value_of_one_process(name, split, found):
    first, second = shares(name, split)
    more = [draw(name, 6, seed=30 + rank) for rank in (0, 1)]
    for rank in (0, 1):
        values = found(f"{name}/{split}", rank)
        for value, batches in zip(
            values, ([*first, *second], [*first, *second, *more], [*second, *first]), strict=True
        ):
            torch.testing.assert_close(value, updated(name, batches).compute(), equal_nan=True)


@pytest.mark.parametrize("shapes", [((1,), ()), ((), (1,)), ((2, 3), (2, 3))])
def test_states_of_ranks_are_stacked_in_one_shape(shapes):
    """PearsonCorrCoef of torchmetrics 1.4 has a mean of shape [] or [1], as its first batch was."""
    states = [torch.randn(shape) for shape in shapes]
    whole = _reduced(states, None)
    assert whole.shape == (2, *shapes[0])
    assert whole.flatten().equal(torch.cat([state.flatten() for state in states]))
    assert _reduced(states, lambda stacked: stacked.sum(0)).equal(states[0] + states[1].reshape(shapes[0]))


def test_states_of_other_sizes_are_not_stacked():
    with pytest.raises(RuntimeError):
        _reduced([torch.ones(3), torch.ones(())], None)


@pytest.mark.smoke
@pytest.mark.filterwarnings("ignore")
@pytest.mark.cells("tests.metrics._ranks", "fit")
def test_a_fit_goes_on_where_a_rank_or_all_observe_nothing(found):
    expected = {key: value for key, value in logged({}).items() if key.startswith("val/")}
    assert {"val/depth/r2", "val/depth/rho", "val/pose/R2Score/0", "val/pose/R2Score/2"} <= expected.keys()
    assert not any("kind" in key for key in expected)
    for rank in (0, 1):
        values = {key: value for key, value in found("fit", rank).items() if key.startswith("val/")}
        torch.testing.assert_close(values, expected)


def test_a_metric_that_refuses_its_labels_is_left_out_with_one_warning():
    metric = ObservedMetric(R2Score())
    metric.update(torch.ones(1), torch.ones(1))
    with pytest.warns(UserWarning, match="R2Score has no value of 1 labels and is not logged: Needs at least two"):
        assert metric.compute() is None
    metric.reset()
    metric.update(torch.ones(1), torch.ones(1))
    assert metric.compute() is None
