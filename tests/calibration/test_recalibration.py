"""Corrections that make a model as sure as it is right, and what they leave alone."""

import math

import pytest
import torch
from pytorch_lightning import LightningModule

from lightning_uncertainty import FixedWeighting, MultiTaskMixin, UncertaintyWeighting
from lightning_uncertainty.calibration import assess, recalibrate
from lightning_uncertainty.likelihoods import HeteroscedasticCategorical, HeteroscedasticGaussian

N = 4000


class Passing(MultiTaskMixin, LightningModule):
    """Its inputs are its outputs."""

    def __init__(self, tasks, weighting=None):
        super().__init__()
        self.register_tasks(tasks, weighting=weighting or UncertaintyWeighting())

    def forward(self, outputs):
        return dict(outputs)


def with_sigma(log_variance=0.0, **tasks):
    net = Passing(tasks)
    net.task_weighting.log_variance.fill_(log_variance)
    return net


def held_out(outputs, **labels):
    return [{"outputs": outputs, **labels}]


def classes(scale=1.0):
    """Logits from which labels are drawn, at another scale."""
    torch.manual_seed(0)
    logits = 2 * torch.randn(N, 3)
    labels = torch.distributions.Categorical(logits=logits).sample()
    return held_out({"kind": scale * logits}, kind=labels)


@pytest.mark.parametrize(
    ("likelihood", "density", "unit"),
    [
        ("gaussian", torch.distributions.Normal(0.0, 1.0), 0.0),
        ("laplace", torch.distributions.Laplace(0.0, 1 / math.sqrt(2)), 0.0),
        ("l1_kendall", torch.distributions.Laplace(0.0, 1 / math.sqrt(2)), math.log(1 / math.sqrt(2))),
    ],
)
@pytest.mark.parametrize("wrong", [1.0, 2.0])
def test_a_sigma_that_is_too_small_is_stretched_and_covers_again(likelihood, density, unit, wrong):
    torch.manual_seed(0)
    net = with_sigma(unit, depth=likelihood)
    batches = held_out({"depth": torch.zeros(N)}, depth=wrong * density.sample((N,)))
    before = assess(net, batches, inputs="outputs").rows()["depth"]["coverage_90"]
    found = recalibrate(net, batches, inputs="outputs").tasks["depth"]
    assert found.after == pytest.approx(wrong, rel=0.05)
    assert found.labels == N
    after = assess(net, batches, inputs="outputs").rows()["depth"]["coverage_90"]
    assert after == pytest.approx(0.9, abs=0.02)
    assert before < 0.8 if wrong == 2 else before == pytest.approx(0.9, abs=0.02)


def test_the_factor_of_counts_is_that_of_their_dispersion():
    torch.manual_seed(0)
    rates = torch.rand(N) * 20 + 5
    net = with_sigma(-2 * math.log(2), count="poisson")  # half of a Poisson's deviation
    batches = held_out({"count": rates.log()}, count=torch.poisson(rates))
    assert recalibrate(net, batches, inputs="outputs").tasks["count"].after == pytest.approx(2, rel=0.05)


def test_heteroscedastic_tasks_are_corrected_by_their_own_sigma():
    torch.manual_seed(0)
    s = torch.randn(N)
    net = Passing({"depth": HeteroscedasticGaussian()}, FixedWeighting())
    batches = held_out({"depth": torch.stack([torch.zeros(N), s], 1)}, depth=3 * (s / 2).exp() * torch.randn(N))
    assert recalibrate(net, batches, inputs="outputs").tasks["depth"].after == pytest.approx(3, rel=0.05)


def test_logits_that_are_three_times_too_large_are_divided_by_three():
    right = recalibrate(with_sigma(kind="categorical"), classes(), inputs="outputs").tasks["kind"]
    net = with_sigma(kind="categorical")
    found = recalibrate(net, classes(3.0), inputs="outputs").tasks["kind"]
    assert right.after == pytest.approx(1, rel=0.1)
    assert found.after == pytest.approx(3 * right.after, rel=1e-5)
    assert found.nll_after == pytest.approx(right.nll_after, rel=1e-6)
    assert found.nll_after < found.nll_before
    (batch,) = classes(3.0)
    p = net.predict_tasks(batch["outputs"])["kind"].mean
    logits, labels = batch["outputs"]["kind"] / found.after, batch["kind"]
    torch.testing.assert_close(p, logits.softmax(1))
    own = logits.gather(1, labels[:, None]).squeeze(1)
    slope = ((p * logits).sum(1) - own).mean()  # of the NLL in log(1 / T): zero at its optimum
    assert abs(slope.item()) < 1e-4


def test_noisy_logits_get_one_temperature_whatever_was_drawn_before():
    net = Passing({"kind": HeteroscedasticCategorical()}, FixedWeighting())
    (batch,) = classes(3.0)
    noisy = {"kind": torch.cat([batch["outputs"]["kind"], torch.ones(N, 3)], 1)}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(recalibrate(net, held_out(noisy, kind=batch["kind"]), inputs="outputs").tasks["kind"])
        assert torch.equal(torch.get_rng_state(), before)
        net.task_calibration.reset_parameters()
    assert found[0] == found[1]
    assert found[0].nll_after < found[0].nll_before


def test_events_and_missing_labels():
    torch.manual_seed(0)
    logits = 2 * torch.randn(N)
    labels = torch.bernoulli(logits.sigmoid())
    wrong = torch.where(torch.arange(N) % 2 == 0, torch.nan, labels)
    found = recalibrate(
        with_sigma(edge="bernoulli"), held_out({"edge": 0.5 * logits}, edge=wrong), inputs="outputs"
    ).tasks["edge"]
    assert (found.labels, found.after) == (N // 2, pytest.approx(0.5, rel=0.15))


def test_separable_labels_have_no_temperature_and_stop_at_the_least():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    batches = held_out({"kind": logits}, kind=torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match=r"kind has no optimum between 0.05 and 20 and stops at 0.05"):
        found = recalibrate(with_sigma(kind="categorical"), batches, inputs="outputs")
    assert found.tasks["kind"].after == pytest.approx(0.05)


def test_tasks_without_sigma_are_skipped_and_named():
    (batch,) = classes()
    batch["outputs"]["depth"], batch["depth"] = torch.zeros(N), torch.randn(N)
    net = Passing({"depth": "gaussian", "kind": "categorical"}, FixedWeighting())
    with pytest.warns(UserWarning, match="depth cannot be recalibrated and keeps its correction"):
        found = recalibrate(net, [batch], inputs="outputs")
    assert found.tasks.keys() == {"kind"}
    assert net.task_calibration.of("depth") == 1
    with pytest.raises(ValueError, match="recalibration should have labels: found none"):
        recalibrate(net, [], inputs="outputs")


def test_undone_the_predictions_are_bit_identical_and_saved_they_are_kept(tmp_path):
    (batch,) = classes(3.0)
    net, other = with_sigma(kind="categorical"), with_sigma(kind="categorical")
    first = net.predict_tasks(batch["outputs"])["kind"]
    recalibrate(net, [batch], inputs="outputs")
    corrected = net.predict_tasks(batch["outputs"])["kind"]
    assert not torch.equal(corrected.mean, first.mean)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    other.load_state_dict(torch.load(tmp_path / "net.pt", weights_only=True))
    assert torch.equal(other.predict_tasks(batch["outputs"])["kind"].mean, corrected.mean)
    net.task_calibration.reset_parameters()
    for one, two in zip(net.predict_tasks(batch["outputs"])["kind"], first, strict=True):
        assert torch.equal(one, two)
