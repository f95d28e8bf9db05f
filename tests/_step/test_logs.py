"""What evaluation logs of metrics with several outputs, several numbers, or of whole images."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import ClasswiseWrapper, ConfusionMatrix, MeanAbsoluteError, Metric, MultioutputWrapper, R2Score
from torchmetrics.classification import MulticlassAccuracy, MultilabelAccuracy
from torchmetrics.detection import PanopticQuality
from torchmetrics.image import StructuralSimilarityIndexMeasure

from lightning_uncertainty import MultiTaskModule, Task, UncertaintyMonitor
from tests._nets import trainer
from tests._versions import needs
from tests.metrics._torchmetrics import r2_of_each

NAN = float("nan")


class Same(nn.Module):
    """A head that predicts what it is given."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, features):
        return features * self.one


def logged(task, outputs, labels, **options):
    """What is logged of a task whose head gives these outputs, by key below the task's."""
    net = MultiTaskModule(nn.Identity(), {"mine": task}, inputs="x")
    rows = [{"x": x, "mine": label} for x, label in zip(outputs, labels, strict=True)]
    validating = trainer(**options)
    (found,) = validating.validate(net, DataLoader(rows, batch_size=4), verbose=False)
    return {key.removeprefix("val/mine/"): value for key, value in found.items() if key.startswith("val/mine/")}


def task(likelihood, metrics, form="scalars"):
    return Task(likelihood, Same(), metrics=metrics, metrics_on=form)


def of(metric, *batch):
    metric.update(*batch)
    return metric.compute()


OUTPUTS, LABELS = torch.randn(10, 3), torch.randn(10, 3) * torch.tensor([0.1, 1.0, 10.0])


def test_every_output_has_its_own_r2():
    found = logged(task("gaussian", r2_of_each(), "rows"), OUTPUTS, LABELS)
    expected = of(r2_of_each(), OUTPUTS, LABELS)
    assert [found[f"R2Score/{i}"] for i in range(3)] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)
    assert "R2Score" not in found


def test_an_output_keeps_the_labels_that_are_missing_in_others():
    labels = LABELS.clone()
    labels[::3, 1] = NAN
    wrapper = MultioutputWrapper(R2Score(), 3)
    found = logged(task("gaussian", {"r2": wrapper, "mae": MeanAbsoluteError()}, {"r2": "rows"}), OUTPUTS, labels)
    there = ~labels.isnan()
    for i in range(3):
        expected = of(R2Score(), OUTPUTS[there[:, i], i], labels[there[:, i], i])
        assert found[f"r2/{i}"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)
    assert found["mae"] == pytest.approx((OUTPUTS - labels)[there].abs().mean().item())


def test_rows_that_are_not_complete_are_left_out_with_a_warning():
    labels = LABELS.clone()
    labels[0, 1], labels[5] = NAN, NAN
    metric = r2_of_each()
    with pytest.warns(UserWarning, match="1 rows are not given to R2Score, as labels are missing in them"):
        found = logged(task("gaussian", metric, "rows"), OUTPUTS, labels)
    complete = ~labels.isnan().any(1)
    expected = of(r2_of_each(), OUTPUTS[complete], labels[complete])
    assert [found[f"R2Score/{i}"] for i in range(3)] == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-6)


def test_several_labels_of_one_thing_some_of_them_missing():
    labels = (LABELS > 0).float()
    labels[::3, 1] = NAN
    metric = MultilabelAccuracy(3, average=None, ignore_index=-1)
    found = logged(task("bernoulli", metric, "rows"), OUTPUTS, labels)
    for i in range(3):
        there = ~labels[:, i].isnan()
        hits = (OUTPUTS[there, i] > 0) == (labels[there, i] > 0)
        assert found[f"MultilabelAccuracy/{i}"] == pytest.approx(hits.float().mean().item())


def test_classes_have_their_names_and_a_matrix_its_places():
    labels = torch.arange(10) % 3
    wrapper = ClasswiseWrapper(MulticlassAccuracy(3, average=None), labels=["horse", "fish", "dog"])
    metrics = {"class": wrapper, "matrix": ConfusionMatrix("multiclass", num_classes=3)}
    found = logged(task("categorical", metrics), OUTPUTS, labels)
    hits = OUTPUTS.argmax(1) == labels
    for i, name in enumerate(("horse", "fish", "dog")):
        assert found[f"class/multiclassaccuracy_{name}"] == pytest.approx(hits[labels == i].float().mean().item())
        for j in range(3):
            assert found[f"matrix/{i}/{j}"] == ((labels == i) & (OUTPUTS.argmax(1) == j)).sum()


@pytest.mark.parametrize("shape", [(10, 1, 16, 16), (10, 16, 16)])
def test_whole_images_have_a_similarity(shape):
    images, labels = torch.rand(10, 1, 16, 16), torch.rand(shape)
    metric = StructuralSimilarityIndexMeasure(data_range=1.0)
    found = logged(task("laplace", metric, "images"), images, labels)
    expected = of(StructuralSimilarityIndexMeasure(data_range=1.0), images, labels.reshape(images.shape))
    assert found["StructuralSimilarityIndexMeasure"] == pytest.approx(expected.item(), rel=1e-5)


@needs("torchmetrics", "1.5", "has no LambdaInputTransformer")
def test_panoptic_quality_of_whole_images():
    from torchmetrics.wrappers import LambdaInputTransformer

    logits, labels = torch.randn(10, 3, 8, 8), torch.randint(3, (10, 8, 8))
    labels[:, 0] = -100  # void

    def with_instance(classes):
        return torch.stack([classes, torch.zeros_like(classes)], -1)

    def make():
        return PanopticQuality(things={0}, stuffs={1, 2}, allow_unknown_preds_category=True)

    metric = LambdaInputTransformer(make(), lambda output: with_instance(output.argmax(1)), with_instance)
    found = logged(task("categorical", {"pq": metric}, "images"), logits, labels)
    expected = of(make(), with_instance(logits.argmax(1)), with_instance(labels))
    assert found["pq"] == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


class Masked(Metric):
    """The mean absolute error under a mask; two numbers whose names it alone knows."""

    def __init__(self):
        super().__init__()
        self.add_state("sums", torch.zeros(2), dist_reduce_fx="sum")

    def update(self, preds, target, mask):
        assert target.isfinite().all()
        self.sums += torch.stack([((preds - target).abs() * mask).sum(), mask.sum()])

    def compute(self):
        return {"mean": self.sums[0] / self.sums[1], "count": self.sums[1]}


def test_a_metric_that_takes_a_mask_is_given_one():
    images, labels = torch.rand(10, 1, 4, 4), torch.rand(10, 1, 4, 4)
    labels[:, :, 1] = NAN
    found = logged(task("gaussian", Masked(), "images"), images, labels)
    there = ~labels.isnan()
    assert found["Masked/count"] == there.sum()
    assert found["Masked/mean"] == pytest.approx((images - labels)[there].abs().mean().item(), rel=1e-5)


def test_a_metric_that_cannot_take_a_batch_is_named():
    with pytest.raises(ValueError, match=r"metric of 'val/mine/MulticlassAccuracy', a MulticlassAccuracy on scalars"):
        logged(task("categorical", MulticlassAccuracy(4)), OUTPUTS, torch.arange(10) % 3)


@pytest.mark.filterwarnings("ignore:no label of mine")
def test_nothing_is_logged_of_what_nobody_observed():
    metric = r2_of_each()
    assert logged(task("gaussian", metric, "rows"), OUTPUTS, torch.full_like(LABELS, NAN)).keys() == set()


def test_epochs_do_not_mix_and_the_monitor_has_every_number():
    net = MultiTaskModule(nn.Identity(), {"mine": task("gaussian", r2_of_each(), "rows")}, inputs="x")
    rows = [{"x": x, "mine": label} for x, label in zip(OUTPUTS, LABELS, strict=True)]
    monitor = UncertaintyMonitor(table=False)
    net._task_optimizer = lambda groups: torch.optim.SGD(groups, lr=0.0)
    fit = trainer(max_epochs=3, callbacks=[monitor])
    fit.fit(net, DataLoader(rows, batch_size=4), DataLoader(rows, batch_size=4))
    expected = of(r2_of_each(), OUTPUTS, LABELS)
    for i in range(3):
        key = f"val/mine/R2Score/{i}"
        assert [row[key] for row in monitor.evaluations.rows] == pytest.approx(
            [expected[i].item()] * 3, rel=1e-4, abs=1e-6
        )
        assert net.task_metrics[key].higher_is_better is True
