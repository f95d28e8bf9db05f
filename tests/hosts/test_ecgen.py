"""ecgen's Pulse2Pulse: a Wasserstein GAN with an L1 loss, two optimizers, stepped by hand; the critic goes first."""

import math

import ecgen
import pytest
import pytorch_lightning as pl
import torch
from ecgen.data.collate import ECGCollate
from ecgen.data.datasets.synthetic import SyntheticECG
from ecgen.families.gan.pulse2pulse import Pulse2PulseGAN
from torch.utils.data import DataLoader

from lightning_uncertainty import (
    AdoptLosses,
    AnalyticUncertaintyWeighting,
    UncertaintyMonitor,
    UncertaintyWeighting,
    adopt,
)
from tests._launch import RANKS
from tests.hosts._fits import (
    QUIET,
    check_gradients,
    check_resumed,
    check_rows,
    first_gradients,
    weighted_sum,
    weighting_of,
)

# what a user writes: the generator has its loss in every fifth step, the critic's passes as it is
GIVEN = {
    "tasks": {"trace": "laplace"},
    "parts": {"trace": "log:train/l1"},
    "rest": "plain",
}
BY_WEIGHT = {**GIVEN, "parts": {"trace": "weight:config.l1_weight"}}
NAMED_REST = {"tasks": {"trace": "laplace", "critic": "constant"}, "parts": GIVEN["parts"], "rest": "critic"}


def loader(rank=0):
    data = SyntheticECG(num_samples=16, leads=["I", "II"], seed=100 * rank)
    return DataLoader(data, batch_size=4, collate_fn=ECGCollate(data.lead_names, data.fs))


def make(l1_weight=10.0, **options):
    torch.manual_seed(0)
    small = {"model_size": 10, "num_channels": 2, "n_critic": 2, "l1_on": "all", "lr": 1e-3}
    return Pulse2PulseGAN(l1_weight=l1_weight, **{**small, **options})


def errors(net, batches, draws=20):
    """The mean absolute error of the generator in the batches of its steps, over many draws of its noise."""
    with torch.no_grad():
        found = [
            (net(net._sample_noise(len(batch.signal), net.device)) - batch.signal).abs().mean()
            for _ in range(draws)
            for batch in list(batches)[1::2]
        ]
    return torch.stack(found).mean().item()


@pytest.mark.parametrize("given", [GIVEN, BY_WEIGHT])
def test_sigma_is_the_residual_in_label_units(given):
    """At a rate at which it rests; the generator's noise is new in every step."""
    net = adopt(make(), **given, weighting=AnalyticUncertaintyWeighting(decay=0.9))
    pl.Trainer(**QUIET, max_epochs=3).fit(net, loader())
    net.config.lr = 1e-7
    monitor = UncertaintyMonitor(table=False)
    pl.Trainer(**QUIET, max_epochs=12, callbacks=[monitor]).fit(net, loader())
    last, found = monitor.history.rows[-1], errors(net, loader())
    print({"trace": (last["sigma/trace"] / math.sqrt(2), found)})
    assert last["sigma/trace"] / math.sqrt(2) == pytest.approx(found, rel=0.02)
    assert len(monitor.history.rows) == 24  # of every step of the generator


def alone(l1_weight):
    return first_gradients(pl, make(l1_weight), loader(), max_epochs=1, max_steps=-1, limit_train_batches=2)


@pytest.mark.parametrize("given", [GIVEN, BY_WEIGHT, NAMED_REST])
def test_gradients_are_those_of_a_weighting_by_hand(given):
    """The critic's are untouched, to the last bit; the generator's are of its own loss, and of L1 at its weight."""
    monitor = UncertaintyMonitor(table=False)
    options = {"max_epochs": 1, "max_steps": -1, "limit_train_batches": 2}
    found = first_gradients(pl, adopt(make(), **given), loader(), monitor, **options)
    adversarial, both = alone(0.0), alone(1.0)
    critic = {name for name in found if name.startswith("netD")}
    for name in critic:
        assert torch.equal(found[name], adversarial[name]), name
    parts = {"adversarial": adversarial, "trace": {name: both[name] - adversarial[name] for name in both}}
    row = monitor.history.rows[-1]
    assert row["weight/trace"] == pytest.approx(1 / row["loss/trace"], rel=1e-5)
    expected = weighted_sum(parts, {"adversarial": 1.0, "trace": 1 / row["loss/trace"]})
    check_gradients(found, {**expected, **{name: found[name] for name in critic}}, tolerance=1e-3)


def test_rows_of_a_named_rest():
    """What the generator's loss is beside L1 is a task; the critic's own loss is none."""
    net, monitor = adopt(make(), **NAMED_REST), UncertaintyMonitor(table=False)
    pl.Trainer(**QUIET, max_epochs=2, callbacks=[monitor]).fit(net, loader())
    last = check_rows(monitor, {"trace", "critic"}, {"trace"})
    assert last["loss/critic"] == pytest.approx(
        net.trainer.callback_metrics["train/g_loss_step"].item() - 10 * last["loss/trace"], rel=1e-4
    )


@pytest.mark.parametrize("learnt", [False, True])
def test_a_resumed_fit_equals_one_that_never_stopped_and_its_checkpoint_is_the_hosts(learnt, tmp_path):
    path = check_resumed(
        pl,
        lambda: adopt(make(), **GIVEN, weighting=weighting_of(learnt), beside="netG" if learnt else None),
        loader(),
        tmp_path,
    )
    net = ecgen.load_model(path)
    assert type(net) is Pulse2PulseGAN
    assert ecgen.sample(path, n=2, seed=0).shape == (2, 2, 5000)


def test_the_callback_adopts_as_the_function_does():
    nets = [make(), adopt(make(), **GIVEN)]
    adoption = AdoptLosses(GIVEN["tasks"], GIVEN["parts"], rest="plain")
    for net, callbacks in zip(nets, ([UncertaintyMonitor(table=False), adoption], []), strict=True):
        torch.manual_seed(1)
        pl.Trainer(**QUIET, max_epochs=1, callbacks=callbacks).fit(net, loader())
    assert nets[0].sigma() == nets[1].sigma()
    assert type(nets[0]).__name__ == "Pulse2PulseGAN"


@pytest.mark.parametrize("weighting", [AnalyticUncertaintyWeighting, UncertaintyWeighting])
def test_what_is_learnt_is_stepped_with_the_generator(weighting):
    """In the steps without one, σ stays."""
    net = adopt(make(), **GIVEN, weighting=weighting(), beside="netG")
    sigmas = Sigmas()
    pl.Trainer(**QUIET, max_epochs=2, callbacks=[sigmas]).fit(net, loader())
    assert math.isnan(sigmas.seen[0])
    with_one, without = sigmas.seen[1::2], sigmas.seen[2::2]
    assert with_one[:-1] == without
    assert len(set(with_one)) >= 3


class Sigmas(pl.Callback):
    """Keeps the σ after every batch."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, *_):
        self.seen.append(pl_module.sigma()["trace"])


# -- two processes -----------------------------------------------------------------------------------------------------

BOTH = "ddp_find_unused_parameters_true"  # in a step of the critic the generator has no gradient


def run(cells):
    rank = torch.distributed.get_rank()
    net = adopt(make(), **GIVEN, weighting=AnalyticUncertaintyWeighting(decay=0.0))
    torch.manual_seed(rank)
    fitted = pl.Trainer(**QUIET, max_epochs=1, strategy=BOTH, devices=RANKS, use_distributed_sampler=False)
    fitted.fit(net, loader(rank))
    own = fitted.callback_metrics["train/l1_step"].item()
    return {"state": {"state": net.state_dict(), "sigma": net.sigma()["trace"], "l1": own}}


@pytest.mark.cells("tests.hosts.test_ecgen", "state")
def test_two_processes_stay_together(found):
    """Each has its own records and draws its own noise; σ is of both, and so are the networks."""
    ranks = [found("state", rank=rank) for rank in range(RANKS)]
    assert ranks[0]["l1"] != ranks[1]["l1"]
    together = math.sqrt(2) * (ranks[0]["l1"] + ranks[1]["l1"]) / 2
    assert [rank["sigma"] for rank in ranks] == pytest.approx([together] * 2, rel=1e-5)
    for name, value in ranks[0]["state"].items():
        assert torch.equal(value, ranks[1]["state"][name]), name
