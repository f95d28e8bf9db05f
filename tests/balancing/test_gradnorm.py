import json
import math
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn

from lightning_uncertainty import MultiTaskMixin, Task
from lightning_uncertainty.balancing import GradNorm
from lightning_uncertainty.balancing.step import Step

VECTOR = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["gradnorm"]
NAMES = ("a", "b", "c")


class Net(MultiTaskMixin, LightningModule):
    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(4, 8)
        tasks = {name: Task("gaussian", head=nn.Linear(8, 1)) for name in NAMES}
        self.register_tasks(tasks, weighting=GradNorm(**options))
        self.double()

    def total(self, batch):
        return self.task_step(self.trunk(batch["x"]).tanh(), batch, "train")


def batch_of(scales=(1.0, 5.0, 0.3), missing=(), seed=0):
    rng = torch.Generator().manual_seed(seed)
    batch = {"x": torch.randn(32, 4, generator=rng, dtype=torch.float64)}
    for name, scale in zip(NAMES, scales, strict=True):
        batch[name] = scale * torch.randn(32, 1, generator=rng, dtype=torch.float64)
    return batch | dict.fromkeys(missing, torch.full((32, 1), math.nan, dtype=torch.float64))


def norms_of(net, batch):
    """Norm of every unweighted loss's gradient at the features, one by one."""
    features = net.trunk(batch["x"]).tanh().detach().requires_grad_()
    pairs = net.task_losses({name: head(features) for name, head in net.task_heads.items()}, batch)
    return [torch.autograd.grad(total / count, features)[0].norm().item() for total, count in pairs.values()]


def losses_of(net, batch):
    with torch.no_grad():
        pairs = net.task_losses(net.task_outputs(net.trunk(batch["x"]).tanh()), batch)
        return torch.stack([total / count for total, count in pairs.values()])


def step_of(losses, weights):
    return Step((losses * weights).sum(), losses, weights, {})


def test_a_step_as_worked_out_by_hand():
    inputs, expected = VECTOR["inputs"], VECTOR["expected"]
    weighting = GradNorm(inputs["alpha"], inputs["lr"]).bind(dict.fromkeys(NAMES, Task("gaussian").likelihood)).double()
    weighting.weight.copy_(torch.tensor(inputs["w"]))
    weighting.first_loss.copy_(torch.tensor(inputs["loss0"], dtype=torch.float64))
    weights = torch.tensor(inputs["w"], dtype=torch.float64)
    step = step_of(torch.tensor(inputs["loss"], dtype=torch.float64), weights)
    norms = torch.tensor(inputs["grad_norms_unweighted"], dtype=torch.float64)
    assert weighting.take_gramian(norms.square().diag(), step) is None
    assert weighting.weight.tolist() == pytest.approx(expected["w_renormalised"], rel=1e-9)


def published(weights, norms, rates, alpha, lr):
    """A step of Algorithm 1: down the gradient of `|G - mean(G) r^alpha|`, the target held constant, then rescaled."""
    weights = weights.clone().requires_grad_()
    sizes = weights * norms
    target = (sizes.mean() * (rates / rates.mean()) ** alpha).detach()
    (slope,) = torch.autograd.grad((sizes - target).abs().sum(), weights)
    moved = weights.detach() - lr * slope
    return moved * weights.detach().sum() / moved.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 3.0])
def test_steps_of_any_numbers_are_the_published_ones(alpha):
    weighting = GradNorm(alpha, lr=0.01).bind(dict.fromkeys(NAMES, Task("gaussian").likelihood)).double()
    for _ in range(20):
        weights, norms, begun, losses = 0.5 + torch.rand(4, 3, dtype=torch.float64)
        weighting.weight.copy_(weights)
        weighting.first_loss.copy_(begun)
        weighting.take_gramian((weights * norms).square().diag(), step_of(losses, weights))
        expected = published(weights, norms, losses / begun, alpha, 0.01)
        assert weighting.weight.tolist() == pytest.approx(expected.tolist(), rel=1e-12)


def test_training_takes_the_published_steps_from_unequal_weights():
    """The second batch has other losses: rates are relative to those of the first."""
    net = Net(alpha=1.5, lr=0.01)
    weighting, weights = net.task_weighting, torch.tensor([0.5, 1.5, 1.0], dtype=torch.float64)
    weighting.weight.copy_(weights)
    first = batch_of()
    begun = losses_of(net, first)
    for batch in (first, batch_of((3.0, 1.0, 0.3), seed=1)):
        rates = losses_of(net, batch) / begun
        weights = published(weights, torch.tensor(norms_of(net, batch), dtype=torch.float64), rates, 1.5, 0.01)
        net.total(batch).backward()
        assert weighting.weight.tolist() == pytest.approx(weights.tolist(), rel=1e-9)
        assert weighting.first_loss.tolist() == pytest.approx(begun.tolist(), rel=1e-12)
    assert rates.max() > 2 * rates.min()


def test_the_norms_are_those_of_the_features():
    net, batch = Net(alpha=0.0, lr=1e-3), batch_of()
    norms = torch.tensor(norms_of(net, batch), dtype=torch.float64)
    net.total(batch).backward()
    moved = 1 - 1e-3 * torch.sign(norms - norms.mean()) * norms
    assert net.task_weighting.weight.tolist() == pytest.approx((3 * moved / moved.sum()).tolist(), rel=1e-9)


def test_alpha_zero_levels_the_norms():
    net, batch = Net(alpha=0.0, lr=0.005), batch_of()
    for _ in range(2000):
        net.total(batch).backward()
    weighted = net.task_weighting.weight * torch.tensor(norms_of(net, batch), dtype=torch.float64)
    assert (weighted / weighted.mean()).tolist() == pytest.approx([1, 1, 1], abs=0.05)
    assert net.task_weighting.weight.sum() == pytest.approx(3)


def test_the_force_favours_the_task_that_lags():
    """Of two tasks with equal gradients, the one that has come less far gains weight."""
    weighting = GradNorm(alpha=1.5).bind(dict.fromkeys(("slow", "fast"), Task("gaussian").likelihood))
    weighting(torch.tensor([1.0, 1.0]), torch.tensor([True, True]))
    step = step_of(torch.tensor([0.9, 0.1]), torch.ones(2))
    weighting.take_gramian(torch.eye(2, dtype=torch.float64), step)
    assert weighting.weight[0] > 1 > weighting.weight[1]
    assert weighting.weight.sum() == pytest.approx(2)


def test_the_total_is_weighed_by_what_earlier_steps_left():
    net = Net()
    total = net.total(batch_of())
    row = net.take_row()
    assert list(row["weight"].values()) == [1.0, 1.0, 1.0]
    assert total.item() == pytest.approx(sum(row["loss"].values()))
    total.backward()
    after = net.task_weighting.weight.tolist()
    net.total(batch_of(seed=1)).backward()
    assert list(net.take_row()["weight"].values()) == pytest.approx(after)


def test_absent_tasks_keep_their_weight_and_start_later():
    net = Net()
    net.total(batch_of(missing=["b"])).backward()
    assert net.task_weighting.weight[1] == 1
    assert net.task_weighting.first_loss[1] == 0
    assert net.task_weighting.weight[[0, 2]].sum() == pytest.approx(2)
    net.total(batch_of()).backward()
    assert net.task_weighting.first_loss[1] > 0
    before = net.task_weighting.weight.clone()
    net.total(batch_of(missing=NAMES)).backward()
    assert torch.equal(net.task_weighting.weight, before)


def test_no_weight_reaches_zero_and_gradients_that_are_not_finite_change_none():
    net = Net(lr=1e9)
    for seed in range(3):
        net.total(batch_of(seed=seed)).backward()
        assert (net.task_weighting.weight > 0).all()
        assert net.task_weighting.weight.sum() == pytest.approx(3)
    before = net.task_weighting.weight.clone()
    step = step_of(torch.ones(3), before)
    net.task_weighting.take_gramian(torch.full((3, 3), math.inf, dtype=torch.float64), step)
    assert torch.equal(net.task_weighting.weight, before)
    net.task_weighting.take_gramian(torch.full((3, 3), math.nan, dtype=torch.float64), step)
    assert torch.equal(net.task_weighting.weight, before)


def test_losses_without_split_features_are_refused():
    net = Net()
    with pytest.raises(RuntimeError, match="GradNorm should see the shared features"):
        net.weigh({name: torch.ones((), requires_grad=True) for name in NAMES})


@pytest.mark.parametrize("options", [{"alpha": -1.0}, {"lr": 0.0}, {"lr": math.inf}, {"alpha": math.nan}])
def test_options_that_make_no_sense(options):
    with pytest.raises(ValueError, match="alpha should be at least 0 and lr positive, both finite: found"):
        GradNorm(**options)
