"""Optimizers that somebody else builds hold log-variances in a group of their own."""

import warnings

import pytest
import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedulers
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau
from torch.optim.swa_utils import SWALR

from lightning_uncertainty import AnalyticUncertaintyWeighting, UncertaintyMonitor, UncertaintyWeighting, own_group
from lightning_uncertainty.likelihoods import as_likelihood
from tests._nets import Plain, trainer, tuples


@pytest.fixture
def weighting():
    return UncertaintyWeighting().bind({name: as_likelihood("gaussian") for name in ("depth", "height")})


@pytest.fixture
def net():
    return nn.Linear(3, 1)


def held(optimizer):
    """Parameters of each group, by identity."""
    return [[id(parameter) for parameter in group["params"]] for group in optimizer.param_groups]


def ids(*modules):
    return [id(parameter) for module in modules for parameter in module.parameters()]


GIVEN = {
    "network alone": lambda net, own: net.parameters(),
    "all": lambda net, own: [*net.parameters(), *own.parameters()],
    "all, own first": lambda net, own: [*own.parameters(), *net.parameters()],
    "named": lambda net, own: [*net.named_parameters(), *own.named_parameters()],
    "a group": lambda net, own: [{"params": [*net.parameters(), *own.parameters()]}],
    "a generator in a group": lambda net, own: [{"params": (p for m in (net, own) for p in m.parameters())}],
    "a group of own": lambda net, own: [{"params": net.parameters()}, {"params": own.parameters()}],
    "a group of a tensor": lambda net, own: [{"params": net.parameters()}, {"params": own.offset}],
}


@pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)
def test_whatever_an_optimizer_is_given_the_log_variances_are_a_group_of_their_own(given, net, weighting):
    with own_group(weighting):
        optimizer = AdamW(given(net, weighting), lr=0.01, weight_decay=0.2)
    assert held(optimizer) == [ids(net), ids(weighting)]
    network, own = optimizer.param_groups
    assert (network["lr"], network["weight_decay"], network["betas"]) == (0.01, 0.2, (0.9, 0.999))
    assert (own["lr"], own["weight_decay"], own["betas"], own["name"]) == (0.1, 0.0, (0.9, 0.99), "log_variances")


def test_groups_without_decay_keep_theirs_and_options_of_the_group_beside_are_taken_over(net, weighting):
    groups = [
        {"params": [net.weight], "weight_decay": 0.3},
        {"params": [net.bias, weighting.offset], "weight_decay": 0.1, "lr": 0.5, "amsgrad": True},
    ]
    with own_group(weighting):
        optimizer = AdamW(groups, lr=0.01)
    assert held(optimizer) == [[id(net.weight)], [id(net.bias)], [id(weighting.offset)]]
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.5, 5.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.1, 0.0]
    assert [group["amsgrad"] for group in optimizer.param_groups] == [False, True, True]
    assert "name" not in optimizer.param_groups[0]
    assert len(groups[1]["params"]) == 2  # theirs is as it was


def test_an_optimizer_without_two_betas_gets_none_and_a_rate_may_be_named(net, weighting):
    with own_group(weighting, log_variance_lr=0.3):
        optimizer = SGD(net.parameters(), lr=0.01)
    assert "betas" not in optimizer.param_groups[1]
    assert optimizer.param_groups[1]["lr"] == 0.3
    with own_group(weighting):
        rate = Adam(net.parameters(), lr=torch.tensor(0.01)).param_groups[1]["lr"]
    assert rate.item() == pytest.approx(0.1)


def test_torch_is_as_it_was_afterwards_even_after_an_error(net, weighting):
    before = torch.optim.Optimizer.__init__
    of_schedulers = LRScheduler.__init__, ReduceLROnPlateau.__init__
    with own_group(weighting):
        AdamW(net.parameters())
    with pytest.raises(ZeroDivisionError), own_group(weighting):
        raise ZeroDivisionError
    assert torch.optim.Optimizer.__init__ is before
    assert (LRScheduler.__init__, ReduceLROnPlateau.__init__) == of_schedulers
    assert held(AdamW(net.parameters())) == [ids(net)]


def test_two_weightings_have_a_group_each(net, weighting):
    other = UncertaintyWeighting().bind({"x": as_likelihood("gaussian")})
    with own_group(weighting), own_group(other):
        optimizer = Adam(net.parameters())
    assert sorted(map(tuple, held(optimizer))) == sorted(map(tuple, [ids(net), ids(weighting), ids(other)]))


def test_a_weighting_without_parameters_changes_nothing(net):
    weighting = AnalyticUncertaintyWeighting().bind({"depth": as_likelihood("gaussian")})
    with own_group(weighting):
        pass
    with own_group(weighting):
        assert held(Adam(net.parameters())) == [ids(net)]


def test_an_optimizer_around_another_one_keeps_the_group_in_both(net, weighting):
    class Around(torch.optim.Optimizer):
        """As SAM."""

        def __init__(self, params):
            super().__init__(params, {"lr": 0.01})
            self.base = SGD(self.param_groups, lr=0.01)

    with own_group(weighting):
        optimizer = Around([*net.parameters(), *weighting.parameters()])
    assert held(optimizer) == held(optimizer.base) == [ids(net), ids(weighting)]
    assert optimizer.base.param_groups[1]["lr"] == 0.1


def test_groups_of_parameter_groups_are_left_as_they_are():
    plain = Plain()
    with own_group(plain.task_weighting):
        optimizer = Adam(plain.parameter_groups(lr=0.01, log_variance_lr=0.02))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.02]


# -- several optimizers ------------------------------------------------------------------------------------------------


def test_of_several_optimizers_the_first_that_was_given_them_or_the_one_beside_has_them(net, weighting):
    other = nn.Linear(2, 2)
    with own_group(weighting):
        first = Adam([*net.parameters(), *weighting.parameters()])
        second = Adam([*other.parameters(), *weighting.parameters()])
    assert (held(first), held(second)) == ([ids(net), ids(weighting)], [ids(other)])
    for beside in (other, list(other.parameters()), other.parameters()):
        with own_group(weighting, beside=beside):
            first, second = Adam([*net.parameters(), *weighting.parameters()]), Adam(other.parameters())
        assert (held(first), held(second)) == ([ids(net)], [ids(other), ids(weighting)])


def test_where_none_of_several_was_given_them_a_warning_says_which_has_them(net, weighting):
    with pytest.warns(UserWarning, match=r"in the first of 2 optimizers.*beside=self\.generator"), own_group(weighting):
        first, _ = Adam(net.parameters()), Adam(nn.Linear(2, 2).parameters())
    assert held(first) == [ids(net), ids(weighting)]


def test_a_later_one_that_was_given_them_is_an_error_and_so_is_none(net, weighting):
    with pytest.raises(RuntimeError, match=r"given to number 2 of 2, after number 1.*beside="), own_group(weighting):
        Adam(net.parameters()), Adam([*nn.Linear(2, 2).parameters(), *weighting.parameters()])
    with pytest.raises(RuntimeError, match=r"found none being built; call within it"), own_group(weighting):
        pass
    with (
        pytest.raises(RuntimeError, match=r"found 1 built, none of which"),
        own_group(weighting, beside=nn.Linear(2, 2)),
    ):
        Adam(net.parameters())
    with pytest.raises(TypeError, match=r"found a Plain; give it `self\.task_weighting`"), own_group(Plain()):
        pass


# -- schedulers --------------------------------------------------------------------------------------------------------


def rates_of(scheduler, net, weighting, steps=20):
    with own_group(weighting):
        optimizer = SGD(net.parameters(), lr=0.01)
        schedule = scheduler(optimizer)
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step(*([1.0] if isinstance(schedule, ReduceLROnPlateau) else []))
    return rates


class OneRate(LRScheduler):
    """Has a number of its own for all groups."""

    def __init__(self, optimizer):
        for group in optimizer.param_groups:
            group["lr"] = 0.5
        super().__init__(optimizer)

    def get_lr(self):
        return [0.5 * 0.9**self.last_epoch for _ in self.optimizer.param_groups]


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, step / 10)),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=21),
        lambda optimizer: OneCycleLR(optimizer, max_lr=0.5, total_steps=21, cycle_momentum=False, three_phase=True),
        lambda optimizer: CyclicLR(optimizer, 0.01, 0.1, step_size_up=4, cycle_momentum=False),
        lambda optimizer: SWALR(optimizer, 0.05, anneal_epochs=5),
        lambda optimizer: ReduceLROnPlateau(optimizer, factor=0.1, patience=2, min_lr=4e-4),
        lambda optimizer: schedulers.SequentialLR(
            optimizer,
            [
                schedulers.LinearLR(optimizer, 0.1, 1.0, 5),
                CyclicLR(optimizer, 0.01, 0.1, step_size_up=4, cycle_momentum=False),
            ],
            milestones=[5],
        ),
    ],
    ids=["warm-up from 0", "OneCycleLR", "three phases", "CyclicLR", "SWALR", "a plateau's floor", "a sequence"],
)
def test_schedulers_that_are_built_within_keep_the_ratio_of_rates(scheduler, net, weighting):
    for network, own in rates_of(scheduler, net, weighting):
        assert own == pytest.approx(10 * network)


def test_rates_by_group_stay_as_they_are_given(net, weighting):
    for network, own in rates_of(lambda optimizer: CyclicLR(optimizer, [0.01, 0.02], [0.1, 0.2], 4), net, weighting):
        assert own == pytest.approx(2 * network)


def test_a_scheduler_that_cannot_keep_it_warns(net, weighting):
    with pytest.warns(UserWarning, match="should have a learning rate 10 times that of the network.*rates by group"):
        rates_of(OneRate, net, weighting)


@pytest.mark.parametrize("callbacks", [[], [UncertaintyMonitor(table=False)]], ids=["alone", "monitored"])
def test_a_fit_under_a_scheduler_that_cannot_keep_it_warns_once(callbacks):
    class Library(Plain):
        def configure_optimizers(self):
            with own_group(self.task_weighting):
                optimizer = torch.optim.SGD(self.parameters(), 1e-2, momentum=0.9)
                return [optimizer], [{"scheduler": OneRate(optimizer), "interval": "step"}]

    with pytest.warns(UserWarning, match="learning rate") as told:
        trainer(max_epochs=2, callbacks=callbacks, log_every_n_steps=1).fit(Library(), tuples())
    found = [str(one.message) for one in told if "learning rate" in str(one.message)]
    assert [text.partition(" that")[0] for text in found] == ["the log-variances should have a learning rate 10 times"]


def test_a_base_class_that_builds_optimizer_and_scheduler_trains_sigma_and_is_named_in_every_advice():
    class Library(Plain):
        def configure_optimizers(self):
            optimizer = AdamW([p for n, p in self.named_parameters() if "task" not in n], 1e-2)
            schedule = OneCycleLR(optimizer, 1e-2, total_steps=100)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Net(Library):
        def configure_optimizers(self):
            with own_group(self.task_weighting):
                return super().configure_optimizers()

    with pytest.raises(RuntimeError, match=r"with own_group\(self\.task_weighting\):.*AnalyticUncertaintyWeighting"):
        trainer(max_epochs=1).fit(Library(), tuples())
    net = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="pytorch_lightning")
        warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
        trainer(max_epochs=1, callbacks=[UncertaintyMonitor(table=False)]).fit(net, tuples())
    assert (net.task_weighting.offset != 0).all()


def test_decay_is_told_with_the_optimizer_that_has_it():
    class Net(Plain):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            own = self.task_weighting.parameters()
            return [Adam(self.depth.parameters()), AdamW([*self.kind.parameters(), *own])]

    with pytest.warns(UserWarning, match=r"weight decay 0\.01 in number 2, AdamW,.*own_group"):
        trainer(max_epochs=1).fit(Net(), tuples())
