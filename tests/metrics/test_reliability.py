import pytest
import torch
from matplotlib import pyplot
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

from lightning_uncertainty.metrics import ReliabilityDiagram
from tests.metrics._value import value

NAN = float("nan")


def predictions(*shape):
    """Return probabilities of four classes, some of them certain, and labels."""
    batch, *rest = shape
    probabilities = torch.softmax(3 * torch.randn(batch, 4, *rest), 1)
    probabilities[: batch // 5] = probabilities[: batch // 5].round()
    return probabilities, torch.randint(4, shape)


def test_bins_hold_mean_confidence_accuracy_and_count():
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8], [0.0, 0.9, 0.1], [1.0, 0.0, 0.0]])
    found = value(ReliabilityDiagram(bins=4), probabilities, torch.tensor([0, 2, 0, 1]))
    expected = torch.tensor([[NAN, NAN, 0.5, 0.85, 1.0], [NAN, NAN, 1.0, 0.5, 0.0]])
    torch.testing.assert_close(torch.stack([found.confidence, found.accuracy]), expected, equal_nan=True)
    assert found.counts.tolist() == [0, 0, 1, 2, 1]


@pytest.mark.parametrize("bins", [1, 5, 15])
@pytest.mark.parametrize("shape", [(400,), (30, 3, 4)])
def test_ece_of_classes_is_that_of_torchmetrics(bins, shape):
    probabilities, labels = predictions(*shape)
    labels[::3] = -100
    expected = multiclass_calibration_error(probabilities, labels, num_classes=4, n_bins=bins, ignore_index=-100)
    torch.testing.assert_close(value(ReliabilityDiagram(bins), probabilities, labels).ece, expected)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_ece_of_events_is_that_of_torchmetrics(bins):
    probabilities, labels = torch.rand(40, 5), torch.randint(2, (40, 5))
    probabilities[0], probabilities[1] = 1.0, 0.0
    labels[2] = 9
    expected = binary_calibration_error(probabilities, labels, n_bins=bins, ignore_index=9)
    torch.testing.assert_close(value(ReliabilityDiagram(bins, ignore_index=9), probabilities, labels).ece, expected)


def test_calibrated_probabilities_have_no_error_but_sharpened_ones_have():
    probabilities = torch.softmax(torch.randn(40_000, 3), 1)
    labels = torch.multinomial(probabilities, 1).squeeze(1)
    sharpened = probabilities.square() / probabilities.square().sum(1, keepdim=True)
    assert value(ReliabilityDiagram(), probabilities, labels).ece < 0.01
    assert value(ReliabilityDiagram(), sharpened, labels).ece > 0.1


def test_labels_may_be_floats_bytes_or_booleans():
    probabilities = torch.tensor([0.2, 0.7, 0.6, 0.9])
    expected = value(ReliabilityDiagram(), probabilities[:3], torch.tensor([0, 1, 0]))
    found = value(ReliabilityDiagram(), probabilities, torch.tensor([0.0, 1.0, 0.0, NAN]))
    torch.testing.assert_close(found, expected, equal_nan=True)
    found = value(ReliabilityDiagram(), probabilities[:3], torch.tensor([False, True, False]))
    torch.testing.assert_close(found, expected, equal_nan=True)
    found = value(ReliabilityDiagram(ignore_index=255), probabilities, torch.tensor([0, 1, 0, 255], dtype=torch.uint8))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_class_156_in_bytes_is_no_missing_label():
    probabilities = torch.nn.functional.one_hot(torch.tensor([156, 3]), 200).float()
    labels = torch.tensor([156, 3], dtype=torch.uint8)
    assert value(ReliabilityDiagram(), probabilities, labels).counts.sum() == 2


def test_nothing_observed_has_no_value_and_no_plot():
    metric = ReliabilityDiagram()
    assert value(metric, torch.full((2, 3), 1 / 3), torch.tensor([-100, -100])) is None
    with pytest.raises(ValueError, match="a plot should be of observed labels: found none"):
        metric.plot()


def test_batches_and_ranks_add_up_to_the_whole():
    probabilities, labels = predictions(99)
    whole = value(ReliabilityDiagram(), probabilities, labels)
    here, other = ReliabilityDiagram(), ReliabilityDiagram()
    other.update(probabilities[:10], labels[:10])
    states = iter([other.confidence, other.correct, other.count])
    here.distributed_available_fn = lambda: True
    here.dist_sync_fn = lambda tensor, group=None: [tensor, next(states)]
    for part in (slice(10, 17), slice(17, 99)):
        here.update(probabilities[part], labels[part])
    torch.testing.assert_close(here.compute(), whole, equal_nan=True)


def test_a_reset_forgets():
    metric = ReliabilityDiagram()
    metric.update(*predictions(50))
    metric.reset()
    probabilities, labels = predictions(20)
    expected = value(ReliabilityDiagram(), probabilities, labels)
    torch.testing.assert_close(value(metric, probabilities, labels), expected, equal_nan=True)


def test_confidence_keeps_its_digits_after_many_batches():
    metric = ReliabilityDiagram(bins=1)
    metric.confidence[0, 0] = 2.0**24
    for _ in range(64):
        metric.update(torch.tensor([0.75]), torch.tensor([1]))
    assert metric.confidence.double().sum().item() == 2**24 + 48


def test_a_diverged_network_shows():
    """What is not a number spoils the error, stays beside the numbers, and does not fall out of the count."""
    found = value(ReliabilityDiagram(bins=4), torch.tensor([[NAN, NAN], [0.3, 0.7]]), torch.tensor([0, 1]))
    assert found.ece.isnan()
    assert found.counts.tolist() == [0, 0, 1, 0, 1]
    assert found.confidence.isnan().tolist() == [True, True, False, True, True]
    assert (found.confidence[2].item(), found.accuracy[2].item()) == (pytest.approx(0.7), 1)


def test_rounding_above_one_is_certainty():
    found = value(ReliabilityDiagram(bins=3), torch.tensor([1.0 + 1e-6]), torch.tensor([1]))
    assert found.counts.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), "probabilities should be between 0 and 1: found 2"),
        (torch.tensor([-0.5]), torch.tensor([0]), "probabilities should be between 0 and 1: found -0.5"),
        (torch.full((1, 3), 1 / 3), torch.tensor([3]), "labels should be whole numbers from 0 to 2: found 3"),
        (torch.tensor([0.5]), torch.tensor([-1]), "labels should be whole numbers from 0 to 1: found -1"),
        (torch.tensor([0.5]), torch.tensor([0.3]), "labels should be whole numbers from 0 to 1: found 0.3"),
        (torch.zeros(4, 2), torch.zeros(3), r"probabilities should be .* found \[4, 2\] for labels \[3\]"),
        (torch.zeros(4), torch.zeros(()), r"probabilities should be .* found \[4\] for labels \[\]"),
    ],
)
def test_what_is_no_probability_or_label_is_refused_and_not_counted(probabilities, labels, message):
    metric = ReliabilityDiagram()
    with pytest.raises(ValueError, match=message):
        metric.update(probabilities, labels)
    assert metric.count.sum() == 0


def test_a_diagram_without_bins_is_refused():
    with pytest.raises(ValueError, match="bins should be 1 or more: found 0"):
        ReliabilityDiagram(0)


def test_a_plot_shows_accuracy_against_confidence_of_filled_bins_with_the_diagonal():
    metric = ReliabilityDiagram(bins=4)
    metric.update(torch.tensor([0.3, 0.3, 0.4, 0.4, 0.8]), torch.tensor([0, 1, 0, 0, 1]))
    own_figure, own = pyplot.subplots()
    assert metric.plot(own) == (own_figure, own)
    diagonal, line = own.get_lines()
    assert diagonal.get_xydata().tolist() == [[0, 0], [1, 1]]
    assert line.get_xydata().ravel() == pytest.approx([0.35, 0.25, 0.8, 1.0])
    assert [bar.get_height() for bar in own.patches] == pytest.approx([0.8, 0.2])
    assert line.get_label() == "bins, ECE 0.12"
    assert (own.get_xlabel(), own.get_ylabel()) == ("confidence", "accuracy")


def test_a_plot_makes_axes_where_none_are_given():
    metric = ReliabilityDiagram()
    metric.update(*predictions(10))
    figure, ax = metric.plot()
    assert ax.get_figure() is figure
