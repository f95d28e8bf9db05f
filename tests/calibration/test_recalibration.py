"""Corrections that make a model as sure as it is right, and what they leave alone."""

import math
import warnings

import pytest
import torch

from lightning_uncertainty import FixedWeighting
from lightning_uncertainty.calibration import assess, recalibrate
from lightning_uncertainty.likelihoods import HeteroscedasticCategorical, HeteroscedasticGaussian
from lightning_uncertainty.predictions import DeepEnsemble
from tests._launch import RANKS
from tests.calibration._ranks import Passing, run_cell

N = 4000


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


SURE = torch.tensor([[1.0, 0.0], [0.0, 1.0]] * 20)
EVERY_OTHER = torch.tensor([0, 1] * 20)


def kept(net, batches, match, **options):
    """Recalibrate a net whose corrections are 1.5, which stay, with a sentence."""
    net.task_calibration.correct(dict.fromkeys(net.task_likelihoods(), 1.5))
    with pytest.warns(UserWarning, match=match):
        found = recalibrate(net, batches, inputs="outputs", **options)
    assert found.tasks == {}
    assert {net.task_calibration.of(name).item() for name in net.task_likelihoods()} == {1.5}
    assert "keeps its correction" in str(found)
    assert len(found.kept) == len(net.task_likelihoods())


@pytest.mark.parametrize(
    ("logits", "labels", "why"),
    [
        (SURE, EVERY_OTHER, r"rises up to 0\.05, which it does where all are predicted right"),
        (SURE, 1 - EVERY_OTHER, r"rises up to 20, which it does where they are predicted no better than by chance"),
        (0 * SURE, EVERY_OTHER, "its probabilities do not depend on it"),
        (torch.nan * SURE, EVERY_OTHER, "its probabilities are NaN"),
    ],
    ids=["all right", "all wrong", "all alike", "nan"],
)
def test_classes_without_a_likeliest_temperature_keep_theirs(logits, labels, why):
    kept(with_sigma(kind="categorical"), held_out({"kind": logits}, kind=labels), f"'kind' keeps its correction.*{why}")


@pytest.mark.parametrize(
    ("labels", "why"),
    [(0.0, "predicted without any error"), (math.inf, "NaN or infinite")],
)
def test_regression_without_a_likeliest_factor_keeps_its_own(labels, why):
    batches = held_out({"depth": torch.zeros(40)}, depth=torch.full((40,), labels))
    kept(with_sigma(depth="gaussian"), batches, f"'depth' keeps its correction: .*{why}")


@pytest.mark.parametrize("count", [1, 29, 30])
def test_fewer_labels_than_thirty_move_nothing(count):
    torch.manual_seed(0)
    batch = {"outputs": {"depth": torch.zeros(40), "kind": torch.randn(40, 2)}, "depth": 3 * torch.randn(40)}
    batch["kind"] = torch.distributions.Categorical(logits=batch["outputs"]["kind"]).sample()
    batch["depth"][count:], batch["kind"][count:] = torch.nan, -100
    net = with_sigma(depth="laplace", kind="categorical")
    if count < 30:
        kept(net, [batch], rf"it has {count} labels? in the dataloader, and should have min_labels=30")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of one label, classes have no temperature
        found = recalibrate(net, [batch], inputs="outputs", min_labels=count)
    assert found.tasks["depth"].labels == count
    assert found.tasks["depth"].after != 1.5


def test_a_task_with_few_labels_does_not_hold_up_the_others():
    (batch,) = classes(3.0)
    batch["outputs"]["depth"], batch["depth"] = torch.zeros(N), torch.full((N,), torch.nan)
    batch["depth"][0] = 1.0
    net = with_sigma(depth="gaussian", kind="categorical")
    with pytest.warns(UserWarning, match="'depth' keeps its correction: it has 1 label in the dataloader"):
        assert recalibrate(net, [batch], inputs="outputs").tasks.keys() == {"kind"}


def test_the_least_count_of_labels_is_one():
    with pytest.raises(ValueError, match="min_labels should be at least 1: found 0"):
        recalibrate(with_sigma(kind="categorical"), classes(), inputs="outputs", min_labels=0)


def test_an_ensemble_is_told_to_be_recalibrated_by_member():
    ensemble = DeepEnsemble([with_sigma(kind="categorical") for _ in range(2)])
    with pytest.raises(TypeError, match=r"found a DeepEnsemble; write recalibrate\(member, dataloader\) for each of"):
        recalibrate(ensemble, classes(), inputs="outputs")
    with pytest.raises(TypeError, match=r"found a DeepEnsemble; write assess\(ensemble.members\[0\], dataloader, ens"):
        assess(ensemble, classes(), inputs="outputs")
    with pytest.raises(TypeError, match="recalibrate needs a MultiTaskMixin: found Linear"):
        recalibrate(torch.nn.Linear(1, 1), [])
    for member in ensemble.members:
        assert recalibrate(member, classes(3.0), inputs="outputs").tasks["kind"].after > 2
    rows = assess(ensemble.members[0], classes(3.0), inputs="outputs", ensemble=ensemble).rows()
    assert rows["kind"]["ece"] < 0.05


@pytest.mark.cells("tests.calibration._ranks", "one", "both", "few")
@pytest.mark.parametrize("cell", ["one", "both", "few"])
def test_labels_of_all_processes_count_and_all_get_one_correction(cell, found):
    alone = run_cell(cell, 0, 1)
    for rank in range(RANKS):
        together = found(cell, rank)
        assert together["kept"] == alone["kept"]
        assert together["rows"].keys() == alone["rows"].keys()
        for task, row in alone["rows"].items():
            assert together["rows"][task] == pytest.approx(row, rel=1e-4)
        for task, after in alone["after"].items():
            assert together["after"][task] == pytest.approx(after, rel=1e-6)


def test_tasks_without_sigma_are_skipped_and_named():
    (batch,) = classes()
    batch["outputs"]["depth"], batch["depth"] = torch.zeros(N), torch.randn(N)
    net = Passing({"depth": "gaussian", "kind": "categorical"}, FixedWeighting())
    with pytest.warns(UserWarning, match="'depth' keeps its correction: no σ is known"):
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
