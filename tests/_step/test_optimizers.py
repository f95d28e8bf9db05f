"""Parameter groups, clipping apart, and guard rails about optimizers."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    UncertaintyMonitor,
    UncertaintyWeighting,
)
from tests._nets import Owning, Plain, columns, trainer, tuples

BATCH = tuple(columns().values())


def fit_with(optimizers, weighting=None, **options):
    net = type("Net", (Plain,), {"configure_optimizers": lambda self: optimizers(self)})(weighting)
    trainer(max_epochs=1, **options).fit(net, tuples())
    return net


@pytest.mark.parametrize("callbacks", [[], [UncertaintyMonitor()]])
def test_log_variances_in_no_optimizer_are_an_error_with_the_line_to_add(callbacks):
    with pytest.raises(RuntimeError, match=r"found them in none, so σ would never move.*self\.parameter_groups\(lr"):
        fit_with(lambda self: torch.optim.Adam(self.depth.parameters()), callbacks=callbacks)


def test_log_variances_in_two_optimizers_are_an_error():
    class Net(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [torch.optim.SGD(self.parameters(), 0.1), torch.optim.SGD(self.task_weighting.parameters(), 0.1)]

    with pytest.raises(RuntimeError, match=r"in 2 \(number 1, SGD; number 2, SGD\), so they would be stepped twice"):
        trainer(callbacks=[UncertaintyMonitor()]).fit(Net(), tuples())


def test_weight_decay_on_log_variances_warns_once_and_helper_groups_do_not():
    with pytest.warns(
        UserWarning, match=r"under weight decay 0\.01.*parameter_groups\(lr=\.\.\., weight_decay=0\.01\)"
    ) as caught:
        fit_with(lambda self: torch.optim.AdamW(self.parameters(), 1e-3))
    assert sum("weight decay" in str(warning.message) for warning in caught) == 1
    fit_with(lambda self: torch.optim.AdamW(self.parameter_groups(lr=1e-3, weight_decay=0.01)))


def test_frozen_log_variances_warn():
    def frozen(self):
        self.task_weighting.requires_grad_(False)
        return torch.optim.Adam(self.parameters())

    with pytest.warns(UserWarning, match=r"log-variances are frozen.*requires_grad_\(True\)"):
        fit_with(frozen)


@pytest.mark.parametrize("weighting", [AnalyticUncertaintyWeighting, FixedWeighting])
def test_a_weighting_without_parameters_needs_no_optimizer(weighting):
    net = Plain(weighting())
    assert len(net.parameter_groups(lr=0.1)) == 1
    trainer(callbacks=[UncertaintyMonitor()]).fit(net, tuples())


def test_parameter_groups_hold_every_parameter_once_log_variances_last():
    net = Owning()
    network, own = net.parameter_groups(lr=0.1, weight_decay=0.3, betas=(0.8, 0.9))
    assert sorted(map(id, network["params"] + own["params"])) == sorted(map(id, net.parameters()))
    assert own["params"] == [net.task_weighting.offset]
    assert (network["lr"], network["weight_decay"], own["lr"], own["weight_decay"]) == (0.1, 0.3, 1.0, 0.0)
    assert network["betas"] == own["betas"] == (0.8, 0.9)
    assert net.parameter_groups(lr=0.1, log_variance_lr=0.5)[1]["lr"] == 0.5


def kept_betas(optimizer, **options):
    """Those of the two groups after a fit."""
    net = fit_with(lambda self: optimizer(self.parameter_groups(lr=1e-2, **options)))
    return [group.get("betas") for group in net.optimizers().optimizer.param_groups]


class ThreeBetas(torch.optim.Adam):
    """As those of Adan: three of them."""

    def __init__(self, groups):
        super().__init__(groups)
        self.defaults["betas"] = (0.98, 0.92, 0.99)
        self.param_groups[0]["betas"] = self.defaults["betas"]

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            with torch.enable_grad():
                closure()
        for group in self.param_groups:
            _, _, _ = group["betas"]


@pytest.mark.parametrize(
    "optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax]
)
def test_log_variances_have_betas_of_their_own_where_an_optimizer_has_two(optimizer):
    assert kept_betas(optimizer) == [(0.9, 0.999), (0.9, 0.99)]
    assert kept_betas(optimizer, betas=(0.8, 0.9)) == [(0.8, 0.9)] * 2


@pytest.mark.parametrize(
    "optimizer", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.Adafactor]
)
def test_an_optimizer_without_betas_gets_none(optimizer):
    assert kept_betas(optimizer) == [None, None]


def test_an_optimizer_with_three_betas_keeps_its_own():
    assert kept_betas(ThreeBetas) == [(0.98, 0.92, 0.99)] * 2


def test_betas_of_their_own_survive_one_cycle_and_a_resume(tmp_path):
    class Net(Plain):
        def configure_optimizers(self):
            optimizer = torch.optim.Adam(self.parameter_groups(lr=1e-2))
            cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, [1e-2, 1e-1], total_steps=100)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cycle, "interval": "step"}}

    net, again = Net(), Net()
    first = trainer(max_epochs=1)
    first.fit(net, tuples())
    first.save_checkpoint(tmp_path / "one.ckpt")
    trainer(max_epochs=2).fit(again, tuples(), ckpt_path=tmp_path / "one.ckpt")
    for each in (net, again):
        network, own = each.optimizers().optimizer.param_groups
        assert (network["betas"][1], own["betas"][1]) == (0.999, 0.99)


def test_parts_of_the_network_may_have_groups_of_their_own():
    net = Owning()
    apart = list(net.task_heads["depth"].parameters())
    rest, own, log_variances = net.parameter_groups(
        lr=0.1, weight_decay=0.3, groups=[{"params": iter(apart), "lr": 10.0}], betas=(0.8, 0.9)
    )
    assert own == {"params": apart, "lr": 10.0, "weight_decay": 0.3, "betas": (0.8, 0.9), "lr_ratio": 100.0}
    assert sorted(map(id, rest["params"] + apart)) == sorted(map(id, net.parameter_groups(lr=0.1)[0]["params"]))
    assert (rest["lr"], log_variances["lr"], log_variances["weight_decay"]) == (0.1, 1.0, 0.0)


@pytest.mark.parametrize(
    "groups",
    [
        lambda net: [{"params": [net.task_heads["depth"].bias]}] * 2,
        lambda net: [{"params": [nn.Parameter(torch.zeros(1))]}],
        lambda net: [{"params": [net.task_weighting.offset]}],
    ],
    ids=["twice", "a stranger", "a log-variance"],
)
def test_a_group_should_hold_parameters_of_the_network_once(groups):
    net = Owning()
    with pytest.raises(ValueError, match=r"groups should hold parameters of the network, each once: found 1 that"):
        net.parameter_groups(lr=0.1, groups=groups(net))


class Lbfgs(Plain):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters())


@pytest.mark.parametrize("weighting", [UncertaintyWeighting, AnalyticUncertaintyWeighting])
def test_lbfgs_is_refused_by_what_a_step_changes(weighting):
    with pytest.raises(RuntimeError, match=r"evaluate a batch once a step: found LBFGS"):
        trainer(max_epochs=1).fit(Lbfgs(weighting()), tuples())


def test_lbfgs_takes_constant_weights():
    """And takes the steps of the plain sum."""
    net, alone, data = Lbfgs(FixedWeighting()), Plain(FixedWeighting()), tuples()
    alone.load_state_dict(net.state_dict())
    trainer(max_epochs=1).fit(net, data)
    optimizer = torch.optim.LBFGS(alone.parameters())

    def evaluate(batch):
        optimizer.zero_grad()
        total = sum(alone.losses(batch).values())
        total.backward()
        return total

    for batch in data:
        optimizer.step(partial(evaluate, batch))
    torch.testing.assert_close(list(net.parameters()), list(alone.parameters()))


# -- clipping ---------------------------------------------------------------------------------------------------------


def gradients(net):
    net.zero_grad()
    net.weigh(net.losses(BATCH)).backward()
    own = set(net.task_weighting.parameters())
    network = [parameter.grad for parameter in net.parameters() if parameter not in own]
    return network, [parameter.grad for parameter in own]


def norm(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors]).norm().item()


def far_off():
    """A net whose log-variances are far from their optimum, so that their published gradient is the largest of all."""
    return Plain(UncertaintyWeighting(start={"depth": -4.0, "kind": 6.0}, memory=None))


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_network_and_log_variances_are_clipped_each_as_if_alone(algorithm):
    net = far_off()
    optimizer = torch.optim.SGD(net.parameter_groups(lr=0.1))
    before = [[gradient.clone() for gradient in part] for part in gradients(net)]
    value = norm(before[0]) / 2
    assert norm(before[1]) > norm(before[0])
    net.clip_separately(optimizer, value, algorithm)
    for part, old in zip(gradients_now(net), before, strict=True):
        alone = [nn.Parameter(torch.zeros_like(gradient)) for gradient in old]
        for parameter, gradient in zip(alone, old, strict=True):
            parameter.grad = gradient
        clip = nn.utils.clip_grad_value_ if algorithm == "value" else nn.utils.clip_grad_norm_
        clip(alone, value)
        torch.testing.assert_close(part, [parameter.grad for parameter in alone])


def gradients_now(net):
    own = set(net.task_weighting.parameters())
    parts = [p.grad for p in net.parameters() if p not in own], [p.grad for p in own]
    return [[gradient.clone() for gradient in part] for part in parts]


@pytest.mark.parametrize("value", [None, 0.0, 1e9])
def test_nothing_is_clipped_without_a_value_or_below_it(value):
    net = far_off()
    optimizer = torch.optim.SGD(net.parameter_groups(lr=0.1))
    gradients(net)
    before = gradients_now(net)
    net.clip_separately(optimizer, value)
    torch.testing.assert_close(gradients_now(net), before, rtol=0, atol=0)


def test_an_unknown_algorithm_is_refused():
    net = Plain()
    with pytest.raises(ValueError, match="should be one of norm, value: found 'median'"):
        net.clip_separately(torch.optim.SGD(net.parameter_groups(lr=0.1)), 1.0, "median")


def test_the_trainers_hook_clips_separately_and_its_own_way_jointly():
    class Apart(Plain):
        def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
            self.clip_separately(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def norms_at_the_step(kind):
        norms = []

        class Watched(kind):
            def optimizer_step(self, *args, **kwargs):
                super().optimizer_step(*args, **kwargs)
                norms.extend(norm(part) for part in gradients_now(self))

        net = Watched(UncertaintyWeighting(start={"depth": -4.0, "kind": 6.0}, memory=None))
        trainer(max_steps=1, gradient_clip_val=0.5).fit(net, tuples())
        return norms

    assert norms_at_the_step(Apart) == pytest.approx([0.5, 0.5], rel=1e-4)
    network, own = norms_at_the_step(Plain)
    assert network < 0.4
    assert network**2 + own**2 == pytest.approx(0.25, rel=1e-4)
