"""A constant term beside the tasks, under every weighting: its base weight, or one clear refusal."""

import math

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torchmetrics import MeanAbsoluteError

from lightning_uncertainty import MultiTaskMixin, Task
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.calibration import recalibrate
from lightning_uncertainty.likelihoods import Categorical, Constant, Gaussian
from lightning_uncertainty.metrics import BalancedLoss
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    DynamicTaskPrioritization,
    FixedWeighting,
    GeometricLossWeighting,
    UncertaintyWeighting,
)
from tests._nets import dicts, trainer
from tests.weightings._properties import WEIGHTINGS, everywhere, train_step

TASKS = {"task0": Constant(), "depth": Gaussian(), "kind": Categorical()}
OTHERS = {name: kind for name, kind in TASKS.items() if name != "task0"}
TAKING = (UncertaintyWeighting, AnalyticUncertaintyWeighting, FixedWeighting, GradientBalancing)
LOSSES = torch.tensor([-1.7, 0.4, 2.5])


@pytest.mark.parametrize("listed", WEIGHTINGS, ids=lambda listed: listed.name)
def test_a_weighting_takes_it_or_says_why_not(listed):
    weighting = listed.make()
    if not isinstance(weighting, TAKING):
        with pytest.raises(ValueError, match=r"weights it decides on: found constant terms task0; add them to"):
            weighting.bind(TASKS)
        assert weighting.tasks == ()
    elif "one" not in listed.name:
        weighting._base_weights["task0"] = 1.0
        weighted = train_step(weighting.bind(TASKS), LOSSES, everywhere(3))
        assert weighted.total.isfinite()
        assert weighted.weights[0] == (weighting._weights.get("task0", 1.0) if "fixed" in listed.name else 1.0)


@pytest.mark.parametrize("inner", [GeometricLossWeighting, lambda: DynamicTaskPrioritization(1.0)])
def test_an_inner_weighting_says_why_not(inner):
    with pytest.raises(ValueError, match="found constant terms task0"):
        GradientBalancing("pcgrad", inner()).bind(TASKS)


@pytest.mark.parametrize("make", [UncertaintyWeighting, AnalyticUncertaintyWeighting])
@pytest.mark.parametrize("base", [1.0, 0.3, 0.0])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_its_term_is_b_l_and_the_others_are_as_without_it(make, base, sign):
    weighting, without = make(base_weights={"task0": base}).bind(TASKS), make().bind(OTHERS)
    for step in range(4):
        losses = LOSSES * torch.tensor([sign, 1.0, 1.0]) * (1 + step)
        found, other = train_step(weighting, losses, everywhere(3)), train_step(without, losses[1:], everywhere(2))
        torch.testing.assert_close(found.total, base * losses[0] + other.total)
        torch.testing.assert_close(found.weights, torch.cat([torch.tensor([base]), other.weights]))
        assert found.log_variances[0].isnan()


def test_a_fixed_weight_is_what_is_given():
    found = train_step(FixedWeighting({"task0": 0.1}).bind(TASKS), LOSSES, everywhere(3))
    torch.testing.assert_close(found.weights, torch.tensor([0.1, 1.0, 1.0]))


@pytest.mark.parametrize("options", [{"start": {"task0": 1.0}}, {"bounds": {"task0": (0.0, 1.0)}}])
def test_a_scale_asked_for_is_refused(options):
    with pytest.raises(ValueError, match="found task0, constant terms, which have none; leave these out"):
        UncertaintyWeighting(**options).bind(TASKS)


class Net(MultiTaskMixin, LightningModule):
    def __init__(self, tasks, weighting=None):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        heads = {"depth": Task("gaussian", nn.Linear(8, 1)), "kind": Task("categorical", nn.Linear(8, 3))}
        self.register_tasks({**tasks, **heads}, weighting=weighting)

    def forward(self, x):
        return self.task_outputs(self.made(x))

    def made(self, x):
        features = self.trunk(x).tanh()
        return {"features": features, "decay": features.square().sum(1) - 3.0}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-2))


class Owner(Net):
    """Its heads take the features out of what the trunk makes; the term is made beside them."""

    def __init__(self, weighting=None):
        super().__init__({"decay": "constant"}, weighting)
        for name, head in list(self.task_heads.items()):
            self.task_heads[name] = nn.Sequential(Taking("features"), head)

    def training_step(self, batch, batch_idx):
        return self.task_step(self.made(batch["x"]), batch, "train")

    def validation_step(self, batch, batch_idx):
        self.task_step(self.made(batch["x"]), batch, "val")


class Taking(nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, made):
        return made[self.key]


def test_a_network_makes_it_beside_predictions_and_nothing_asks_for_labels():
    net, fit = Owner(UncertaintyWeighting(base_weights={"decay": 0.1})), trainer(max_epochs=2)
    loader = dicts()
    fit.fit(net, loader, loader)
    assert net.auxiliary_tasks() == ["decay"]
    assert set(net.sigma()) == {"depth", "kind"}
    batch = {name: torch.cat([part[name] for part in loader]) for name in ("x", "depth", "kind")}
    with torch.no_grad():
        losses = {name: total / count for name, (total, count) in net.task_losses(net(batch["x"]), batch).items()}
    logged = fit.callback_metrics
    assert losses["decay"] < 0
    assert logged["val/decay/loss"].item() == pytest.approx(losses["decay"].item(), rel=1e-5)
    balanced = 0.5 * losses["depth"].log() + 0.5 * losses["kind"].log()
    assert logged["val/balanced_loss"].item() == pytest.approx(balanced.item(), rel=1e-5)
    net.drop_row()
    net.training_step(batch, 0)
    assert net.take_row()["weight"]["decay"] == pytest.approx(0.1)


@pytest.mark.filterwarnings("ignore:task 'kind' keeps its correction:UserWarning", "ignore:.*decay:UserWarning")
def test_recalibration_and_predictions_pass_it_by():
    net, loader = Owner(UncertaintyWeighting(start=0.0)), dicts()
    net.training_step(next(iter(loader)), 0)
    found = recalibrate(net, loader, inputs="x")
    assert set(found.tasks) == {"depth"}
    assert set(found.kept) == {"kind"}
    assert net.predict_tasks(torch.ones(2, 4))["decay"].total.isnan().all()


def test_it_has_no_metrics():
    with pytest.raises(ValueError, match=r"a constant term should have no metrics.*: found some of 'kl'"):
        Net({"kl": Task("constant", metrics=MeanAbsoluteError())})


def test_the_balanced_loss_leaves_it_out():
    weighting = UncertaintyWeighting().bind(TASKS)
    assert weighting.powers() == [0.0, 0.5, 0.5]
    metric = BalancedLoss(dict(zip(TASKS, weighting.powers(), strict=True)), weighting.normalised, weighting.constant)
    metric.update(torch.tensor([0.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, 1.0]))
    assert metric.compute().item() == pytest.approx(0.5 * math.log(6.0))
    metric.reset()  # without a warning
    metric.update(torch.tensor([5.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    assert metric.compute() is None


@pytest.mark.parametrize("solver", ["mgda", "frank_wolfe", "pcgrad", "imtl_g"])
def test_a_solver_does_not_see_it(solver):
    """The trunk's gradient is that without the term, and the term's own."""

    def gradient(tasks, weights):
        torch.manual_seed(0)
        net = Net(tasks, GradientBalancing(solver))
        features = net.split_features(net.trunk(x).tanh())
        losses = {
            "depth": (net.task_heads["depth"](features["depth"])[:, 0] - x[:, 0]).square().mean(),
            "kind": nn.functional.cross_entropy(net.task_heads["kind"](features["kind"]), x[:, :3].argmax(1)),
            "kl": 5.0 * features["kl"].square().mean() - 3.0 if "kl" in tasks else None,
        }
        net.weigh({name: losses[name] for name in net._task_specs}).backward()
        return net, net.trunk.weight.grad

    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    net, found = gradient({"kl": "constant"}, None)
    without, expected = gradient({}, None)
    own = torch.autograd.grad(5.0 * net.trunk(x).tanh().square().mean(), net.trunk.weight)[0]
    torch.testing.assert_close(found, expected + own)
    assert net.task_weighting.balance[0] == 1.0
    torch.testing.assert_close(net.task_weighting.balance[1:], without.task_weighting.balance)


@pytest.mark.parametrize("heads", ["unweighted", "weighted"])
@pytest.mark.parametrize("owners", [True, False])
@pytest.mark.parametrize("term", ["of a parameter", "of the features as they are"])
def test_a_term_that_goes_around_the_branches_has_its_own_gradient(term, owners, heads):
    """As a penalty on the trunk has, or a KL of the code: nothing of it comes by a head."""

    def of(net):
        return net.trunk.weight.square().sum() if term == "of a parameter" else net.trunk(x).tanh().square().mean()

    def gradients(tasks):
        torch.manual_seed(0)
        net = Net(tasks, GradientBalancing("imtl_g", heads=heads))
        features = net.trunk(x).tanh()
        if owners:
            outputs = net.task_outputs(features)
        else:
            branches = net.split_features(features)
            outputs = {name: head(branches[name]) for name, head in net.task_heads.items()}
        losses = {
            "depth": (outputs["depth"][:, 0] - x[:, 0]).square().mean(),
            "kind": nn.functional.cross_entropy(outputs["kind"], x[:, :3].argmax(1)),
            "kl": of(net) if "kl" in tasks else None,
        }
        net.weigh({name: losses[name] for name in net._task_specs}).backward()
        return net, [parameter.grad for parameter in (net.trunk.weight, *net.task_heads.parameters())]

    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    net, (found, *of_heads) = gradients({"kl": "constant"})
    _, (expected, *without) = gradients({})
    torch.testing.assert_close(found, expected + torch.autograd.grad(of(net), net.trunk.weight)[0])
    torch.testing.assert_close(of_heads, without)


class VAE(MultiTaskMixin, LightningModule):
    """Sixteen pixels that are two numbers and noise."""

    def __init__(self, kind):
        super().__init__()
        self.code, self.image = nn.Linear(16, 4), nn.Linear(2, 16)
        weighting = UncertaintyWeighting(base_weights={"kl": 1 / 16 if kind == "constant" else 1.0})
        self.register_tasks({"image": "gaussian", "kl": kind}, weighting=weighting)

    def step(self, x):
        mean, log_variance = self.code(x).chunk(2, 1)
        image = self.image(mean + (log_variance / 2).exp() * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
        return {"image": (image - x).square().mean(), "kl": kl}


def test_a_vae_whose_kl_is_weighed_as_a_task_collapses_and_with_a_constant_one_does_not():
    ends = {}
    for kind in ("constant", "generic"):
        torch.manual_seed(0)
        net, mixing = VAE(kind), torch.randn(2, 16)
        optimizer = torch.optim.Adam(net.parameter_groups(lr=1e-2))
        for _ in range(1500):
            optimizer.zero_grad()
            losses = net.step(torch.randn(64, 2) @ mixing + 0.1 * torch.randn(64, 16))
            net.weigh(losses).backward()
            optimizer.step()
        ends[kind] = losses["kl"].item(), net.sigma()["image"]
    assert ends["generic"][0] < 0.01  # nats
    assert ends["constant"][0] > 3.0
    assert ends["constant"][1] == pytest.approx(0.1, rel=0.2)  # the noise
    assert ends["generic"][1] > 0.8  # all that there is
