"""What models are made of, on a GPU: likelihoods, architectures, predictions, metrics, calibration."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

from lightning_uncertainty import MultiTaskModule, Task, UncertaintyWeighting
from lightning_uncertainty.calibration import assess, recalibrate
from lightning_uncertainty.metrics import (
    CRPS,
    BalancedLoss,
    IntervalCoverage,
    MeanRank,
    MultiTaskGain,
    PredictiveNLL,
    ReliabilityDiagram,
    Sharpness,
    TaskLoss,
)
from lightning_uncertainty.predictions import DeepEnsemble
from lightning_uncertainty.tasks import HeteroscedasticHead
from tests._nets import columns, dicts, trainer
from tests.architectures._architectures import CELLS, batch_of, make
from tests.gpu._cases import LIKELIHOODS, OUTPUTS, labels_for
from tests.gpu._device import ACCELERATOR, DEVICE, for_gpu, moved, on_device

pytestmark = for_gpu

ROWS = 12


# -- likelihoods -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_likelihood_gives_the_numbers_of_the_cpu(name):
    torch.manual_seed(0)
    outputs = torch.randn(ROWS, OUTPUTS[name], dtype=torch.float64)
    if name == "HeteroscedasticCategorical":
        outputs[:, 3:] = -60.0  # next to no noise, which is another on every device
    labels, ends = labels_for(ROWS, torch.float64)[name], []
    for device in ("cpu", DEVICE):
        own = outputs.to(device, copy=True).requires_grad_()
        with on_device():
            total, count = LIKELIHOODS[name].loss(own, labels.to(device))
            total.backward()
            predicted = LIKELIHOODS[name].predicted(own.detach()[None], torch.tensor(0.5).to(own), own.new_ones(()))
        assert total.device.type == count.device.type == device
        ends.append([total.detach().cpu(), count.cpu(), own.grad.cpu(), *(part.cpu() for part in predicted)])
    noisy = name == "HeteroscedasticCategorical"
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9 if not noisy else 1e-7, equal_nan=True)
    assert ends[1][2].isfinite().all()


def test_noise_of_a_categorical_is_drawn_on_the_device():
    likelihood = LIKELIHOODS["HeteroscedasticCategorical"]
    outputs, labels = torch.zeros(2000, 6, device=DEVICE), torch.zeros(2000, dtype=torch.long, device=DEVICE)
    with on_device():
        first, second = (likelihood.loss(outputs, labels)[0].item() / 2000 for _ in range(2))
    assert first != second
    assert first == pytest.approx(second, rel=0.05)


# -- architectures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "tasks"), [pytest.param(*cell, id=f"{cell[0]}-{len(cell[1])}") for cell in CELLS])
def test_an_architecture_gives_the_numbers_of_the_cpu(name, tasks):
    """Forward, backward and running statistics."""
    net, images = make(name, tasks).double(), batch_of()["image"][:2].double()
    twin, ends = copy.deepcopy(net).to(DEVICE), []
    for own, device in ((net, "cpu"), (twin, DEVICE)):
        predictions = own(images.to(device))
        sum(prediction.square().mean() for prediction in predictions.values()).backward()
        gradients = {key: parameter.grad.cpu() for key, parameter in own.named_parameters()}
        buffers = {key: buffer.cpu() for key, buffer in own.named_buffers()}
        ends.append({**{key: value.detach().cpu() for key, value in predictions.items()}, **gradients, **buffers})
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", sorted({name for name, _ in CELLS}))
def test_an_architecture_runs_under_autocast(name):
    net, images = make(name).to(DEVICE), batch_of()["image"].to(DEVICE)
    expected = copy.deepcopy(net)(images)
    with torch.autocast(DEVICE, torch.bfloat16):
        predictions = net(images)
    sum(prediction.float().square().mean() for prediction in predictions.values()).backward()
    for key, prediction in predictions.items():
        assert (prediction.float() - expected[key]).norm() / expected[key].norm() < 0.06
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


# -- predictions -------------------------------------------------------------------------------------------------------


def fitted(**options):
    """A module with dropout, and a head of its own σ, trained for some steps on the device."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5))
    noisy = HeteroscedasticHead(nn.Linear(8, 1), nn.Linear(8, 1))
    tasks = {
        "depth": Task("gaussian", head=nn.Linear(8, 1)),
        "kind": Task("categorical", head=nn.Linear(8, 3)),
        "noisy": Task(LIKELIHOODS["HeteroscedasticGaussian"], head=noisy, target="depth"),
    }
    adam = partial(torch.optim.AdamW, lr=1e-2)
    net = MultiTaskModule(backbone, tasks, UncertaintyWeighting(), inputs="x", optimizer=adam, **options)
    with on_device():
        trainer(accelerator=ACCELERATOR, max_epochs=20).fit(net, dicts(missing=True))
    return net.eval().to(DEVICE)


def test_a_prediction_of_one_pass_is_that_of_the_cpu():
    net, x = fitted(), columns()["x"]
    found = net.predict_tasks(x.to(DEVICE))
    assert all(part.device.type == DEVICE for prediction in found.values() for part in prediction)
    expected = net.cpu().predict_tasks(x)
    for name, prediction in found.items():
        torch.testing.assert_close([*moved(prediction, "cpu")], [*expected[name]], rtol=1e-4, atol=1e-5)
        assert prediction.aleatoric.isfinite().all()


def test_samples_of_dropout_are_of_their_seed_and_leave_no_trace():
    net, x = fitted(), columns()["x"].to(DEVICE)
    if DEVICE == "cuda":
        before = torch.cuda.get_rng_state()
    host = torch.get_rng_state()
    first, second = (net.predict_tasks(x, samples=20, seed=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), host)
    if DEVICE == "cuda":
        assert torch.equal(torch.cuda.get_rng_state(), before)
    for name, prediction in first.items():
        assert all(torch.equal(*pair) for pair in zip(prediction, second[name], strict=True))
        assert (prediction.epistemic > 0).all()
    depth = first["depth"]
    torch.testing.assert_close(depth.total.square(), depth.aleatoric.square() + depth.epistemic.square())


def test_a_trainer_predicts_with_samples():
    net = fitted(samples=8)
    found = trainer(accelerator=ACCELERATOR).predict(net, dicts(16))
    assert len(found) == 2
    assert all((batch["depth"].epistemic > 0).all() for batch in found)


def test_an_ensemble_predicts_as_on_the_cpu():
    net, x = fitted(), columns()["x"]
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.task_heads["depth"].bias.add_(1.0)
    found = net.predict_tasks(x.to(DEVICE), ensemble=DeepEnsemble([net, other]))
    expected = net.cpu().predict_tasks(x, ensemble=DeepEnsemble([net, other.cpu()]))
    torch.testing.assert_close(found["depth"].epistemic, torch.full_like(found["depth"].epistemic, 0.5))
    for name, prediction in found.items():
        torch.testing.assert_close([*moved(prediction, "cpu")], [*expected[name]], rtol=1e-4, atol=1e-5)


def test_calibration_is_that_of_the_cpu():
    net, data = fitted(), dicts(64, missing=True)
    found = recalibrate(net, data), assess(net, data).rows()
    twin = copy.deepcopy(net).cpu()
    twin.task_calibration.reset_parameters()
    expected = recalibrate(twin, data), assess(twin, data).rows()
    for task, recalibrated in found[0].tasks.items():
        assert recalibrated.after == pytest.approx(expected[0].tasks[task].after, rel=1e-3)
        assert found[1][task] == pytest.approx(expected[1][task], rel=1e-3, abs=1e-4)


# -- metrics -----------------------------------------------------------------------------------------------------------


def densities():
    torch.manual_seed(0)
    mean, std, label = torch.randn(64), torch.rand(64) + 0.5, torch.randn(64)
    label[::5] = torch.nan
    return mean, std, label


def classes():
    torch.manual_seed(0)
    label = torch.randint(3, (64,))
    label[::5] = -100
    return torch.randn(64, 3).softmax(1), label


METRICS = {
    "TaskLoss": (TaskLoss, lambda: (torch.tensor(6.0), torch.tensor(4.0))),
    "BalancedLoss": (
        lambda: BalancedLoss({"depth": 0.5, "kind": 1.0}, ["kind"]),
        lambda: (torch.tensor([4.0, -1.0]), torch.tensor([2.0, 1.0])),
    ),
    "MultiTaskGain": (
        lambda: MultiTaskGain({"depth": 0.5, "kind": 60.0}, {"depth": False, "kind": True}),
        lambda: ({"depth": torch.tensor(0.4), "kind": torch.tensor(63.0)},),
    ),
    "MeanRank": (
        lambda: MeanRank(["a", "b"], {"depth": False}),
        lambda: ({"a": {"depth": torch.tensor(0.4)}, "b": {"depth": torch.tensor(0.3)}},),
    ),
    "IntervalCoverage": (IntervalCoverage, densities),
    "IntervalCoverage, laplace": (lambda: IntervalCoverage([0.5, 0.9], "laplace"), densities),
    "PredictiveNLL": (PredictiveNLL, densities),
    "PredictiveNLL, laplace": (lambda: PredictiveNLL("laplace"), densities),
    "CRPS": (CRPS, densities),
    "CRPS, laplace": (lambda: CRPS("laplace"), densities),
    "Sharpness": (Sharpness, densities),
    "ReliabilityDiagram": (ReliabilityDiagram, classes),
}


def numbers(value):
    """Return a metric's value as a list of numbers on the CPU."""
    if isinstance(value, dict):
        return [part.cpu() for part in value.values()]
    return [part.cpu() for part in value] if isinstance(value, tuple) else [value.cpu()]


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_the_numbers_of_the_cpu(name):
    build, given = METRICS[name]
    metric, expected = build().to(DEVICE), build()
    for _ in range(3):
        with on_device():
            metric.update(*moved(given()))
        expected.update(*given())
    torch.testing.assert_close(
        numbers(metric.compute()), numbers(expected.compute()), rtol=1e-5, atol=1e-6, equal_nan=True
    )
    metric.reset()
    assert all(state.device.type == DEVICE for state in metric.metric_state.values())
