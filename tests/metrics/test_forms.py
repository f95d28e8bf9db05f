import pytest
import torch
from torchmetrics import MeanAbsoluteError, Metric, MultioutputWrapper, R2Score
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy
from torchmetrics.detection import PanopticQuality

from lightning_uncertainty.metrics.forms import gaps_of, select

NAN = float("nan")


class Masked(Metric):
    def update(self, preds, target, mask):
        """Take a mask."""

    def compute(self):
        """Nothing."""


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        (MeanAbsoluteError(), None),
        (MultilabelAccuracy(3, ignore_index=-1), -1),
        (MulticlassAccuracy(3), None),
        (MultioutputWrapper(R2Score(), 3, remove_nans=False), None),
        (Masked(), "mask"),
        (PanopticQuality(things={0}, stuffs={1}), "kept"),
    ],
)
def test_what_metrics_want_of_labels_that_are_missing(metric, expected):
    assert gaps_of(metric) == expected


def test_a_multioutput_wrapper_removes_nans():
    assert torch.tensor(gaps_of(MultioutputWrapper(R2Score(), 3))).isnan()


def drawn(*shape):
    prediction, label = torch.randn(shape), torch.randn(shape)
    there = torch.ones(shape, dtype=torch.bool)
    there[0], there[1, 1] = False, False  # nothing of the first, not all of the second
    return prediction, label, there


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 5), (4, 3, 5, 6)])
def test_scalars_are_all_that_are_observed(shape):
    prediction, label, there = drawn(*shape)
    (given, labels), left_out = select("scalars", None, prediction, label, there)
    assert given.equal(prediction[there])
    assert labels.equal(label[there])
    assert left_out == 0


def test_rows_are_complete_unless_gaps_are_marked():
    prediction, label, there = drawn(4, 3)
    (given, labels), left_out = select("rows", None, prediction, label, there)
    assert given.equal(prediction[2:])
    assert labels.equal(label[2:])
    assert left_out == 1  # the first has no label at all
    (given, labels), left_out = select("rows", NAN, prediction, label, there)
    assert given.equal(prediction[1:])
    assert labels[0].isnan().tolist() == [False, True, False]
    assert left_out == 0
    (_, labels), _ = select("rows", -1, prediction, (label > 0).long(), there)
    assert labels[0, 1] == -1
    assert labels[1:].ge(0).all()


def test_rows_of_an_image_are_its_pixels_and_a_single_output_is_a_row():
    prediction, label, there = drawn(4, 3, 5, 6)
    (given, _), _ = select("rows", None, prediction, label, there)
    assert given.equal(prediction.movedim(1, -1)[there.movedim(1, -1).all(-1)])
    (given, labels), _ = select("rows", None, *(x[:, 0] for x in drawn(4, 3)))
    assert given.shape == labels.shape == (3, 1)


def test_images_are_whole_or_have_a_mask():
    prediction, label, there = drawn(4, 3, 5, 6)
    (given, labels), left_out = select("images", None, prediction, label, there)
    assert given.equal(prediction[2:])
    assert labels.equal(label[2:])
    assert left_out == 1
    label[1, 1] = NAN
    (given, labels, mask), left_out = select("images", "mask", prediction, label, there)
    assert given.equal(prediction[1:])
    assert labels.isfinite().all()
    assert mask.equal(there[1:])
    assert left_out == 0


def test_classes_are_rows_of_probabilities_and_images_of_them():
    prediction, label = torch.rand(4, 3, 5, 6).softmax(1), torch.randint(3, (4, 5, 6))
    there = torch.ones(4, 5, 6, dtype=torch.bool)
    there[0, 0] = False
    for form in ("scalars", "rows"):
        (given, labels), _ = select(form, None, prediction, label, there)
        assert given.equal(prediction.movedim(1, -1)[there])
        assert labels.equal(label[there])
    (given, labels), left_out = select("images", 255, prediction, label, there)
    assert given is not prediction
    assert given.equal(prediction)
    assert (labels[0, 0] == 255).all()
    (_, labels), _ = select("images", "kept", prediction, label, there)
    assert labels.equal(label)
    (given, _), left_out = select("images", None, prediction, label, there)
    assert len(given) == 3
    assert left_out == 1
