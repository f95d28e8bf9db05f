import copy
import io
import pickle
from typing import ClassVar

import lightning.pytorch
import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torchmetrics import MeanMetric

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    MultiTaskMixin,
    Task,
    UncertaintyMonitor,
    UncertaintyWeighting,
    adopt,
)
from lightning_uncertainty.adoption import unadopt
from lightning_uncertainty.weightings import DynamicWeightAverage
from tests._nets import trainer
from tests.adoption._hosts import PARTS, TASKS, WEIGHTS, ByHand, Host, Loader, both, host_of, rows, seeded, squares

LOG = PARTS["log"]
WEIGHTINGS = [AnalyticUncertaintyWeighting, UncertaintyWeighting, DynamicWeightAverage]


def gradients(net, batch, seed=1):
    net.zero_grad()
    torch.manual_seed(seed)
    total = net.training_step(batch, 0)
    total.backward()
    return total.item(), {name: value.grad.clone() for name, value in net.named_parameters() if value.grad is not None}


@pytest.fixture(autouse=True)
def _no_trainer(recwarn):
    """A step that is called by hand logs to nobody."""
    import warnings

    warnings.filterwarnings("ignore", ".*reference is not registered")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", PARTS)
def test_gradients_are_those_of_a_step_written_by_hand_to_the_last_bit(kind, weighting):
    host = adopt(host_of(kind), TASKS, PARTS[kind], weighting=weighting())
    by_hand = seeded(ByHand, weighting()).train()
    for step, batch in enumerate(rows(40)):  # beyond those whose total is looked at
        found, expected = gradients(host, batch, step), gradients(by_hand, batch, step)
        assert found[0] == expected[0]
        assert found[1].keys() == expected[1].keys()
        for name, gradient in expected[1].items():
            assert torch.equal(found[1][name], gradient), (step, name)
    assert host.sigma() == by_hand.sigma()


@pytest.mark.parametrize("kind", PARTS)
def test_host_weights_stay_if_asked(kind):
    host = adopt(host_of(kind), TASKS, PARTS[kind], keep_host_weights=True)
    expected = seeded(ByHand)
    expected.weigh = lambda losses: MultiTaskMixin.weigh(
        expected, dict(zip(losses, [w * loss for w, loss in zip(WEIGHTS, losses.values(), strict=True)], strict=True))
    )
    for batch in rows():
        found, by_hand = gradients(host, batch), gradients(expected, batch)
        for name, gradient in by_hand[1].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-12, atol=1e-14)


def test_all_weights_may_be_named_at_once():
    one, two = (adopt(host_of("buffer"), TASKS, parts) for parts in ("weight:vector", PARTS["buffer"]))
    for batch in rows():
        found, expected = gradients(one, batch), gradients(two, batch)
        assert found[0] == expected[0]


class Regularised(Host):
    def training_step(self, batch, batch_idx):
        self.regulariser = sum(parameter.square().sum() for parameter in self.head.parameters())
        return super().training_step(batch, batch_idx) + 0.1 * self.regulariser


def test_a_rest_is_refused_unless_it_is_told_what_it_is():
    batch = rows()[0]
    with pytest.raises(RuntimeError, match=r"found .* of which .* no part explains, with losses depth .* rest='plain'"):
        adopt(seeded(Regularised), TASKS, LOG).training_step(batch, 0)
    host, by_hand = adopt(seeded(Regularised), TASKS, LOG, rest="plain"), seeded(ByHand)
    for step, batch in enumerate(rows()):
        found = gradients(host, batch, step)
        torch.manual_seed(step)
        by_hand.zero_grad()
        rest = 0.1 * sum(parameter.square().sum() for parameter in by_hand.head.parameters())
        (by_hand.training_step(batch, 0) + rest).backward()
        for name, parameter in by_hand.named_parameters():
            torch.testing.assert_close(found[1][name], parameter.grad, rtol=1e-12, atol=1e-14)


def test_a_rest_may_be_a_task():
    tasks = {**TASKS, "size": "constant"}
    host = adopt(seeded(Regularised), tasks, LOG, rest="size")
    plain = adopt(seeded(Regularised), TASKS, LOG, rest="plain")
    for step, batch in enumerate(rows()):
        found, expected = gradients(host, batch, step), gradients(plain, batch, step)
        assert found[0] == pytest.approx(expected[0], rel=1e-12)
        for name, gradient in expected[1].items():
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-12, atol=1e-14)


class Variational(Host):
    """The weight of its KL term begins at 0, and an entropy is made large."""

    beta = 0.0

    def training_step(self, batch, batch_idx):
        kl, entropy = self.head.weight.square().sum(), self.head.bias.square().sum().log()
        self.log_dict({"kl": kl, "entropy": entropy})
        return super().training_step(batch, batch_idx) + self.beta * kl - 0.01 * entropy


@pytest.mark.parametrize("weighting", [AnalyticUncertaintyWeighting, UncertaintyWeighting])
@pytest.mark.parametrize("kl", ["log:kl", "weight:beta"])
def test_a_constant_term_keeps_the_hosts_weight_as_it_is_annealed(kl, weighting):
    tasks, parts = {**TASKS, "kl": "constant", "entropy": "constant"}, {**LOG, "kl": kl, "entropy": "log:entropy"}
    host = adopt(seeded(Variational), tasks, parts, weighting=weighting())
    plain = adopt(seeded(Variational), TASKS, LOG, rest="plain", weighting=weighting())
    for step, batch in enumerate(rows(32)):
        host.beta = plain.beta = 0.1 * step
        found, expected = gradients(host, batch, step), gradients(plain, batch, step)
        for name, _ in seeded(Variational).named_parameters():
            gradient = expected[1][name]
            torch.testing.assert_close(found[1][name], gradient, rtol=1e-9, atol=1e-12)


def test_a_constant_term_is_in_validation_as_in_training():
    class Validated(Variational):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("val_kl", torch.tensor(3.0))

    tasks, parts = {**TASKS, "kl": "constant"}, {**LOG, "kl": "log:kl"}
    validation = {"depth": "log:val_depth", "kl": "log:val_kl"}
    host = adopt(seeded(Validated), tasks, parts, rest="plain", validation=validation)
    host.beta = 0.5
    fit = trainer(max_epochs=1)
    fit.fit(host, Loader(rows()), Loader(rows()))
    assert fit.callback_metrics["val/kl/loss"].item() == pytest.approx(1.5)


def labels(batch):
    return {"depth": 1, "height": 4}


def test_a_divisor_wants_a_count():
    with pytest.raises(ValueError, match=r"divisor= undoes .* found no count=; say count="):
        adopt(seeded(Host), TASKS, LOG, divisor=lambda batch: 6)


def test_labels_are_counted_and_what_the_host_divided_by_is_undone():
    by_hand = seeded(ByHand)
    by_hand.weigh = lambda losses: MultiTaskMixin.weigh(
        by_hand, {"depth": (losses["depth"] * 6, 1), "height": (losses["height"] * 6, 4)}
    )
    hosts = [
        adopt(seeded(Host), TASKS, LOG, count=labels, divisor=lambda batch: 6),
        adopt(seeded(Host), TASKS, LOG, count=f"{__name__}.labels", divisor=lambda batch: {"depth": 6, "height": 6}),
    ]
    for batch in rows():
        expected = gradients(by_hand, batch)
        for host in hosts:
            assert gradients(host, batch)[0] == pytest.approx(expected[0], rel=1e-12)
    with pytest.raises(RuntimeError, match=r"count= should return labels by task: found a int; return a dict"):
        adopt(seeded(Host), TASKS, LOG, count=lambda batch: 3).training_step(batch, 0)


class Missing(Host):
    """Leaves a task out of the sum, the log or both, in some batches."""

    def __init__(self, when, how):
        super().__init__()
        self.when, self.how = when, how

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.log("depth_loss", near)
        if batch_idx not in self.when:
            self.log("height_loss", tall)
            return near + tall
        if self.how == "zero":
            self.log("height_loss", tall * 0)
            return near + tall * 0
        if self.how == "logged":
            self.log("height_loss", tall)
        return near


@pytest.mark.parametrize("how", ["nothing", "logged", "zero"])
def test_a_task_may_be_absent_from_the_first_step_if_told(how):
    def run(net, when, **options):
        host = adopt(net, TASKS, LOG, **options)
        for step, batch in enumerate(rows(24)):
            host.training_step(batch, step)
        return host

    if how != "zero":  # a loss of zero is one, unless it is told that it means none
        with pytest.raises(
            RuntimeError, match=r"found none for height: 'log:height_loss' was .*may_be_absent=\['height'\]"
        ):
            run(seeded(Missing, {0}, how), {0})
    host = run(seeded(Missing, {0, 1, 5}, how), {0, 1, 5}, may_be_absent=["height"])
    by_hand = seeded(ByHand)
    for step, batch in enumerate(rows(24)):
        near, tall = by_hand.losses(batch)
        by_hand.weigh({"depth": near, "height": None if step in {0, 1, 5} else tall})
    if how == "nothing":
        assert host.sigma() == by_hand.sigma()
    assert host.sigma() == pytest.approx(by_hand.sigma(), rel=1)  # dropout draws differ


def test_a_task_that_was_there_may_be_missing_later():
    host = adopt(seeded(Missing, {1}, "nothing"), TASKS, LOG)
    for step, batch in enumerate(rows()):
        host.training_step(batch, step)
    assert host.task_weighting.log_variance.isfinite().all()


SKIP = {"on_nonfinite": "skip_step"}


# -- what cannot be adopted --------------------------------------------------------------------------------------------


class Own(MultiTaskMixin, LightningModule):
    def training_step(self, batch, batch_idx):
        return None


class Stepless(LightningModule):
    pass


class Taken(Host):
    def __init__(self):
        super().__init__()
        self.sigma = 3.0
        self.task_heads = nn.ModuleDict()


class Method(Host):
    def weigh(self):
        return None


def compiled():
    host = Host()
    host.training_step = host.training_step
    return host


@pytest.mark.parametrize(
    ("module", "found"),
    [
        (lambda: nn.Linear(1, 1), "takes a LightningModule: found a Linear"),
        (lambda: Host, r"takes a LightningModule: found the class Host; give an instance, as Host\(\.\.\.\)"),
        (lambda: torch.compile(Host(), backend="eager"), "found a OptimizedModule; adopt the module itself"),
        (Own, "found Own, a MultiTaskMixin; call weigh in its step"),
        (Stepless, "found none in Stepless"),
        (compiled, "found one on the Host itself, as torch.compile of a whole LightningModule puts there"),
        (Taken, "found sigma, task_heads in Taken"),
        (Method, "found weigh in Method"),
    ],
)
def test_what_cannot_be_adopted_is_told_and_stays_as_it_is(module, found):
    host = module()
    kind = type(host)
    with pytest.raises(TypeError, match=found):
        adopt(host, TASKS, LOG)
    assert type(host) is kind


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"tasks": {}}, "tasks should be at least one"),
        ({"tasks": {"depth": "laplace", "height": "nothing"}}, "likelihood"),
        ({"tasks": {"depth": "laplace", "height": Task("gaussian", head=nn.Linear(1, 1))}}, "found some for height"),
        ({"parts": {"depth": "log:a"}}, "every task should have a part"),
        (
            {"shared": "trunc"},
            r"shared should name modules of the host: found no trunc; it has trunk, head",
        ),
        ({"shared": ["trunk", "trunk.7"]}, r"found no trunk\.7; it has"),
        (
            {"beside": "generator"},
            r"beside should name modules of the host: found no generator; it has trunk",
        ),
        ({"rest": "width"}, r"rest should be 'plain' or a task \(depth, height\): found 'width'"),
        ({"may_be_absent": "width"}, "tasks should be among depth, height: found width"),
        ({"count": 3}, "count should be a function of the batch, or its dotted name: found a int"),
        ({"count": labels, "divisor": 3}, "divisor should be a function of the batch"),
        ({"validation": {"width": "log:a"}}, "found width"),
        ({"validation": {"depth": "weight:weights[0]"}}, "found weight:weights"),
        ({"on_nonfinite": "skip"}, "on_nonfinite should be"),
        ({"renamed": {"old": "width"}}, "renamed should lead"),
    ],
)
def test_slips_are_told_before_anything_changes(options, found):
    host = Host()
    before, modules = set(vars(host)), [name for name, _ in host.named_modules()]
    with pytest.raises(ValueError, match=found):
        adopt(host, **{"tasks": TASKS, "parts": LOG, **options})
    assert type(host) is Host
    assert set(vars(host)) == before
    assert [name for name, _ in host.named_modules()] == modules


class AskingItself(Host):
    @torch.no_grad()
    @torch.enable_grad()
    def training_step(self, batch, batch_idx):
        return super(self.__class__, self).training_step(batch, batch_idx)


class AskingItsType(Host):
    def configure_optimizers(self):
        above = super(type(self), self)
        return above.configure_optimizers()


class Going(Host):
    """Goes up in ways that work in a subclass."""

    def __init__(self):
        super(self.__class__, self).__init__()

    def training_step(self, batch, batch_idx):
        assert self.__class__ is type(self)
        return super(Going, self).training_step(batch, batch_idx)  # noqa: UP008

    def validation_step(self, batch, batch_idx):
        return super().validation_step(batch, batch_idx)


@pytest.mark.parametrize(("kind", "method"), [(AskingItself, "training_step"), (AskingItsType, "configure_optimizers")])
def test_a_host_that_never_goes_up_in_a_subclass_is_told(kind, method):
    host = kind()
    with pytest.raises(TypeError, match=rf"in {kind.__name__}.{method}, which is itself again in any subclass"):
        adopt(host, TASKS, LOG)
    assert type(host) is kind
    with pytest.warns(UserWarning, match="reference is not registered"):
        assert adopt(Going().double(), TASKS, LOG).training_step(rows()[0], 0).requires_grad


def test_validation_needs_a_validation_step():
    host = Other()
    with pytest.raises(ValueError, match=r"needs a host that has a validation_step: found none in Other; leave it out"):
        adopt(host, TASKS, LOG, validation={"depth": "log:val_depth"})
    assert type(host) is Other
    adopt(host, TASKS, LOG, validation={})


def test_a_module_has_one_adoption():
    host = adopt(Host(), TASKS, LOG)
    weighting = host.task_weighting
    assert adopt(host, TASKS, LOG).task_weighting is weighting
    for options in ({"parts": PARTS["weight"]}, {"weighting": UncertaintyWeighting()}, {"rest": "plain"}, SKIP):
        with pytest.raises(RuntimeError, match=r"should have one adoption: found one that asks for something else"):
            adopt(host, **{"tasks": TASKS, "parts": LOG, **options})
    unadopt(host)
    assert adopt(host, TASKS, PARTS["weight"]).task_weighting is not weighting


def test_an_optimizer_that_is_built_elsewhere_takes_no_log_variances():
    host = Host()
    host.configure_optimizers = lambda: torch.optim.SGD(host.parameters(), 0.1)
    with pytest.raises(RuntimeError, match=r"found one on the Host itself.* take AnalyticUncertaintyWeighting\(\)"):
        adopt(host, TASKS, LOG, weighting=UncertaintyWeighting())
    assert type(host) is Host
    assert isinstance(adopt(host, TASKS, LOG), MultiTaskMixin)


BAD = [
    ("log:no_such", RuntimeError, "'log:no_such' was never reached"),
    ("log:number", RuntimeError, "'log:number' was seen as a float"),
    (
        "log:train_loss",
        RuntimeError,
        "found that 'log:train_loss', .* holds 'log:depth_loss', the part of task 'depth'",
    ),
    ("weight:trunk[0].weight", RuntimeError, "not trained: found one that requires a gradient"),
    ("weight:hparams.lr", RuntimeError, "'weight:hparams.lr' is there, but the loss does not depend on it"),
    ("weight:no_such", RuntimeError, "found no attribute 'no_such' in a Host"),
    ("call:no_such", RuntimeError, "found no attribute 'no_such' in a Host"),
    ("call:far@2", RuntimeError, "'call:far@2' was never reached"),
    ("function:torch.nn.functional.mse_loss@0", RuntimeError, "was seen as a Tensor without graph"),
]


@pytest.mark.parametrize(("part", "error", "found"), BAD)
def test_parts_that_are_none_are_told_before_the_first_step_of_an_optimizer(part, error, found):
    host = adopt(Host().double(), TASKS, {"depth": "log:depth_loss", "height": part})
    before = copy.deepcopy(host.state_dict())
    with pytest.raises(error, match=found):
        trainer().fit(host, Loader(rows()))
    assert all(torch.equal(value, before[name]) for name, value in host.state_dict().items())
    assert host._adoption.watch is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda host: host.weights.__setitem__(0, 0.0), "found 0 for depth"),
        (lambda host: host.weights.__setitem__(0, -1.0), "found -1 for depth"),
    ],
)
@pytest.mark.parametrize("kind", ["log", "weight"])
def test_weights_that_are_no_weights_are_told(kind, change, found):
    host = adopt(Host().double(), TASKS, PARTS[kind])
    change(host)
    with pytest.raises(RuntimeError, match=found):
        host.training_step(rows()[0], 0)


def test_guards_look_again_where_rows_are_logged():
    class Turns(Host):
        def training_step(self, batch, batch_idx):
            total = super().training_step(batch, batch_idx)
            return total if self.global_step < 6 else total + 1000

    host = adopt(Turns().double(), TASKS, LOG)
    with pytest.raises(RuntimeError, match="no part explains"):
        trainer(max_steps=12, max_epochs=-1, log_every_n_steps=10).fit(host, Loader(rows()))
    assert host.global_step == 9


# -- what an adopted module is -----------------------------------------------------------------------------------------


def test_it_is_its_host_still():
    host = Host()
    assert adopt(host, TASKS, LOG) is host
    assert (type(host).__name__, type(host).__module__) == ("Host", Host.__module__)
    assert type(host).__qualname__ == "Host"
    assert isinstance(host, Host)
    assert isinstance(host, MultiTaskMixin)
    assert host.hparams == {"lr": 1e-2, "buffer": False}
    assert type(type(host)(lr=3.0)) is Host  # as load_from_checkpoint builds it


def test_it_is_given_back():
    host = seeded(Host)
    before, names = set(vars(host)), list(host.state_dict())
    adopt(host, TASKS, LOG, weighting=UncertaintyWeighting())
    host.training_step(rows()[0], 0)
    assert unadopt(host) is host
    assert type(host) is Host
    assert set(vars(host)) == before
    assert list(host.state_dict()) == names
    assert not list(host.named_buffers())[1:]
    with pytest.raises(TypeError, match="unadopt takes a module that is adopted: found a Host"):
        unadopt(host)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda host: pickle.loads(pickle.dumps(host)), "torch.save"])
def test_copies_and_pickles_train_on(copied):
    host = adopt(seeded(Host), TASKS, PARTS["mixed"], weighting=UncertaintyWeighting())
    host.training_step(rows()[0], 0)
    if copied == "torch.save":
        torch.save(host, buffer := io.BytesIO())
        buffer.seek(0)
        other = torch.load(buffer, weights_only=False)
    else:
        other = copied(host)
    assert type(other) is type(host)
    assert other.sigma() == host.sigma()
    found, expected = gradients(other, rows()[1]), gradients(host, rows()[1])
    assert found[0] == expected[0]
    assert other.task_weighting is not host.task_weighting


def test_its_class_may_be_changed_again():
    host = adopt(seeded(Host), TASKS, LOG)
    host.__class__ = type(f"FSDP{type(host).__name__}", (type(host),), {})  # as fully_shard does
    assert host.training_step(rows()[0], 0).requires_grad
    assert type(copy.deepcopy(host)).__name__ == "Host"
    with pytest.raises(TypeError, match="its class was changed since, as fully_shard does: unadopt before"):
        unadopt(host)


class Other(lightning.pytorch.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2).double()

    def training_step(self, batch):
        made = self.net(batch["x"])
        near, tall = (made[:, 0] - batch["depth"]).abs().mean(), (made[:, 1] - batch["height"]).square().mean()
        self.log("depth_loss", near)
        self.log("height_loss", tall)
        return {"loss": near + tall, "near": near.detach()}

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


@pytest.mark.parametrize("parts", [LOG, both("call:training_step@['near']", "log:height_loss")])
def test_the_other_namespace_a_step_of_one_argument_and_a_dict(parts):
    host, monitor = adopt(Other(), TASKS, parts), UncertaintyMonitor(table=False)
    fit = trainer(lightning.pytorch, callbacks=[monitor])
    if parts is LOG:
        fit.fit(host, Loader(rows()))
        assert len(monitor.history.rows) == 8
    else:
        with pytest.raises(RuntimeError, match=r"'call:training_step@\['near'\]' was seen as a Tensor without graph"):
            fit.fit(host, Loader(rows()))


# -- hosts with habits of their own ------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["weight:hparams.alpha", "weight:hparams['alpha']"])
def test_a_hyper_parameter_is_a_weight_and_stays_one(part):
    class Hyper(Other):
        def __init__(self, alpha=0.25):
            super().__init__()
            self.save_hyperparameters()

        def training_step(self, batch):
            made = self.net(batch["x"])
            near, tall = (made[:, 0] - batch["depth"]).abs().mean(), (made[:, 1] - batch["height"]).square().mean()
            self.log("height_loss", tall)
            return self.hparams.alpha * near + tall

    host = adopt(Hyper(), TASKS, both(part, "log:height_loss"))
    for batch in rows():
        host.training_step(batch)
        assert host.hparams == {"alpha": 0.25}
        assert isinstance(host.hparams.alpha, float)


class Annealed(Host):
    """Changes its weight in the step."""

    def __init__(self, in_place=False):
        super().__init__()
        self.beta, self.in_place = 1.0, in_place

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.log("height_loss", tall)
        total = self.beta * near + tall
        if self.in_place:
            self.beta *= 0.5
        else:
            self.beta = self.beta * 0.5
        return total


def test_a_host_may_change_its_weight():
    host = adopt(seeded(Annealed), TASKS, both("weight:beta", "log:height_loss"))
    for step, batch in enumerate(rows(), 1):
        host.training_step(batch, 0)
        assert host.beta == 0.5**step
        assert isinstance(host.beta, float)
    host = adopt(seeded(Annealed, in_place=True), TASKS, both("weight:beta", "log:height_loss"))
    with pytest.raises(RuntimeError, match=r"should not be changed in place .*: found that one of 'weight:beta' is"):
        host.training_step(batch, 0)
    assert host.beta == 1.0


class Curriculum(Host):
    """Logs both losses always, and leaves one out of the total later."""

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.log_dict({"depth_loss": near, "height_loss": tall})
        return near + tall if batch_idx < 5 else near


def test_a_part_that_is_seen_but_left_out_later_is_told_where_steps_are_looked_at():
    host = adopt(seeded(Curriculum), TASKS, LOG)
    with pytest.raises(RuntimeError, match="'log:height_loss' was seen, but the loss does not depend on it"):
        trainer(log_every_n_steps=8).fit(host, Loader(rows(32)))
    host, by_hand = adopt(seeded(Curriculum), TASKS, LOG, may_be_absent=["height"]), seeded(ByHand)
    for step, batch in enumerate(rows(40)):
        torch.manual_seed(step)
        host.training_step(batch, step)
        torch.manual_seed(step)
        near, tall = by_hand.losses(batch)
        by_hand.weigh({"depth": near, "height": tall if step < 5 else None})
    assert host.sigma() == by_hand.sigma()


class Gated(Host):
    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        return torch.maximum(self.weights[0] * near, self.scale.value * tall)


def test_a_maximum_by_its_weights_is_refused():
    with pytest.raises(
        RuntimeError, match=r"found exactly 0 for (depth|height), as of labels that are missing or a tot"
    ):
        adopt(seeded(Gated), TASKS, PARTS["weight"]).training_step(rows()[0], 0)


class Detached(Host):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx).detach()


def test_a_loss_without_graph_is_told():
    with pytest.raises(RuntimeError, match="a host's loss should have a graph: found one that depends on nothing"):
        adopt(seeded(Detached), TASKS, LOG).training_step(rows()[0], 0)


def test_one_weight_is_one_parts_by_whatever_path():
    for parts in (both("weight:weights[0]", "weight:weights[-2]"), both("weight:vector[0]", "weight:vector[0][0]")):
        with pytest.raises(RuntimeError, match="a weight should be one part's: found that 'weight:"):
            adopt(seeded(Host), TASKS, parts).training_step(rows()[0], 0)


def test_counts_are_of_tasks_and_by_functions_that_there_are():
    with pytest.raises(ValueError, match="tasks should be among depth, height: found Depth; register them all"):
        adopt(seeded(Host), TASKS, LOG, count=lambda batch: {"Depth": 4}).training_step(rows()[0], 0)
    for name in ("labels", "nowhere.labels", f"{__name__}.nothing"):
        with pytest.raises(ValueError, match="a function should be given by its dotted name"):
            adopt(seeded(Host), TASKS, LOG, count=name)
    adopt(seeded(Host), TASKS, LOG, count=f"{__name__}.Labels.of").training_step(rows()[0], 0)


class Labels:
    @staticmethod
    def of(batch):
        return labels(batch)


def test_a_task_that_may_be_absent_and_always_is_is_told():
    host = adopt(seeded(Host), TASKS, both("log:depth_loss", "log:nothing"), may_be_absent=["height"], rest="plain")
    for batch in rows(396):
        host.training_step(batch, 0)
    with pytest.warns(UserWarning, match="found height in none of 100 steps: 'log:nothing' was never reached"):
        host.training_step(batch, 0)


class Registry(Host):
    known: ClassVar = {}

    def __init_subclass__(cls, name, **options):
        super().__init_subclass__(**options)
        assert name not in Registry.known
        Registry.known[name] = cls


class Registered(Registry, name="one"):
    pass


class Watchful(type(LightningModule)):
    names: ClassVar = set()

    def __init__(cls, name, bases, members):
        super().__init__(name, bases, members)
        if name in Watchful.names:
            raise KeyError(f"{name} is registered")
        Watchful.names.add(name)


class Watched(Host, metaclass=Watchful):
    pass


class Guarded(Host):
    """Takes no attribute after it was built."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "closed", True)

    def __setattr__(self, name, value):
        if getattr(self, "closed", False) and not name.startswith("_") and name != "training":
            raise AttributeError(f"{name} cannot be set")
        super().__setattr__(name, value)


def test_hosts_that_look_at_their_subclasses_or_attributes():
    adopt(seeded(Registered), TASKS, LOG).training_step(rows()[0], 0)
    assert Registry.known == {"one": Registered}
    with pytest.raises(
        TypeError, match=r"should allow a subclass of its name: found that Watched does not: .* registered"
    ):
        adopt(Watched(), TASKS, LOG)
    host = adopt(seeded(Guarded), TASKS, LOG)
    host.training_step(rows()[0], 0)
    assert unadopt(host).closed


class Metered(Host):
    def __init__(self):
        super().__init__()
        self.meter = MeanMetric()

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.meter(near.detach())
        self.log("depth_loss", self.meter)
        self.log("height_loss", tall)
        return near + tall


def test_a_metric_that_is_logged_is_no_loss():
    with pytest.raises(RuntimeError, match="'log:depth_loss' was seen as a MeanMetric, a metric; name it otherwise"):
        adopt(seeded(Metered), TASKS, LOG).training_step(rows()[0], 0)


class Endless(Host):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + torch.tensor(torch.inf) * (batch_idx == 0)


def test_a_rest_that_is_not_finite_is_told():
    with pytest.raises(RuntimeError, match=r"found inf, of which inf no part explains"):
        adopt(seeded(Endless), TASKS, LOG).training_step(rows()[0], 0)


class Switched(Host):
    product = False

    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        return total * total if self.product else total


def test_every_fit_is_looked_at_from_its_first_step():
    host = adopt(seeded(Switched), TASKS, LOG)
    fit = trainer(log_every_n_steps=1000, max_epochs=2)
    fit.fit(host, Loader(rows()))
    host.product = True
    fit.fit_loop.max_epochs = 4
    with pytest.raises(RuntimeError, match="found a second derivative"):
        fit.fit(host, Loader(rows()))


def test_keys_with_lightnings_endings_are_hinted_at():
    with pytest.raises(
        RuntimeError, match=r"'log:height_loss_step' was never reached \(Lightning adds _step and _epoch"
    ):
        adopt(seeded(Host), TASKS, both("log:depth_loss", "log:height_loss_step")).training_step(rows()[0], 0)


class Popping(Host):
    def training_step(self, batch, batch_idx):
        return super().training_step({name: batch.pop(name) for name in list(batch)}, batch_idx)


def test_labels_are_counted_in_the_batch_as_it_came():
    host = adopt(seeded(Popping), TASKS, LOG, count=lambda batch: dict.fromkeys(TASKS, len(batch["x"])))
    host.training_step(rows()[0], 0)
    assert all(value > 0 for value in host.sigma().values())


def test_a_rest_that_is_nothing_is_no_task():
    tasks = {**TASKS, "size": "gaussian"}
    with pytest.raises(RuntimeError, match="found exactly 0 for size"):
        adopt(seeded(Host), tasks, LOG, rest="size").training_step(rows()[0], 0)


class Sometimes(Host):
    """Has batches without any labels, in which it may train something else."""

    other = 0.0

    def training_step(self, batch, batch_idx):
        if batch_idx:
            return self.other * self.head(self.trunk(batch["x"])).square().mean()
        return super().training_step(batch, batch_idx)


def test_a_step_without_any_part():
    host = adopt(seeded(Sometimes), TASKS, LOG)
    host.training_step(rows()[0], 0)
    _, found = gradients(Late(host), rows()[0])
    assert not any(gradient.any() for gradient in found.values())
    host.other = 1.0
    with pytest.raises(RuntimeError, match="found none of them in it: 'log:depth_loss' was never reached"):
        host.training_step(rows()[0], 1)
    host = adopt(unadopt(host), TASKS, LOG, rest="plain")
    host.training_step(rows()[0], 0)
    _, found = gradients(Late(host), rows()[0])
    assert any(gradient.any() for gradient in found.values())


class Late(nn.Module):
    """Its second batch."""

    def __init__(self, host):
        super().__init__()
        self.host = host

    def training_step(self, batch, batch_idx):
        return self.host.training_step(batch, 1)


def test_counts_tell_of_labels_that_come_late():
    host = adopt(seeded(Host), TASKS, PARTS["weight"], count=lambda batch: {"depth": 4, "height": batch["labels"]})
    host.tall_of = lambda made, batch: squares(made[:, 1], batch["height"]) * (batch["labels"] > 0)
    for step, batch in enumerate(rows()):
        host.training_step({**batch, "labels": 4 * (step > 1)}, 0)
    assert all(value > 0 for value in host.sigma().values())


class Nested(Host):
    """Logs, or hands on, sums of its losses."""

    def sums(self, loss):
        return loss

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        total = self.sums(near) + self.scale.value * tall
        self.log_dict({"near": near, "again": near, "tall": tall, "total": total, "double": 2 * total})
        return self.sums(total)


NESTED = {
    "a total": (both("log:near", "log:total"), r"'log:total', .*'height', holds 'log:near', .*rest='height'"),
    "the first": (both("log:total", "log:tall"), r"'log:total', .*'depth', holds 'log:tall', .*rest='depth'"),
    "by weight": (both("log:total", "weight:scale.value"), "'log:total', .* holds 'weight:scale.value'"),
    "the same": (both("log:near", "log:again"), "'log:near', .* holds 'log:again'"),
    "by calls": (both("call:sums", "weight:scale.value"), "'call:sums', .* holds 'call:sums'"),
}


@pytest.mark.parametrize("rest", [None, "plain"])
@pytest.mark.parametrize("name", NESTED)
def test_a_part_within_another_is_told_as_such(name, rest):
    parts, found = NESTED[name]
    with pytest.raises(RuntimeError, match=f"a part should not hold another, .* found that {found}"):
        adopt(seeded(Nested), TASKS, parts, rest=rest).training_step(rows()[0], 0)


def test_the_rest_of_a_total_is_a_task_in_place_of_its_part():
    one = adopt(seeded(Nested), TASKS, {"depth": "log:near"}, rest="height")
    two = adopt(seeded(Nested), TASKS, both("log:near", "log:tall"), keep_host_weights=True)
    for batch in rows():
        assert gradients(one, batch)[0] == pytest.approx(gradients(two, batch)[0], rel=1e-12)


class Broken(Host):
    """Adds something that is not finite at times."""

    def __init__(self, when, spoilt=False):
        super().__init__()
        self.trunk[2] = nn.Identity()
        self.when, self.spoilt = when, spoilt

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        near = near * float("nan") if self.spoilt and batch_idx in self.when else near
        self.log_dict({"depth_loss": near, "height_loss": tall})
        rest = 1e-3 * self.head.weight.square().sum()
        return near + tall + (rest * float("nan") if batch_idx in self.when else rest)


@pytest.mark.parametrize("spoilt", [False, True])
def test_a_step_whose_rest_is_not_finite_is_skipped(spoilt):
    host = adopt(seeded(Broken, {0, 3, 5}, spoilt), TASKS, LOG, rest="plain", on_nonfinite="skip_step")
    found = "as its loss is not finite: {'depth'" if spoilt else "as the rest of the host's loss is not finite"
    with pytest.warns(UserWarning, match=f"a training step is skipped, .*{found}"):
        trainer(max_epochs=1).fit(host, Loader(rows(32)))
    other = adopt(seeded(Broken, set()), TASKS, LOG, rest="plain")
    trainer(max_epochs=1).fit(other, Loader(batch for step, batch in enumerate(rows(32)) if step not in {0, 3, 5}))
    assert host.skipped_steps == 3
    assert host.sigma() == other.sigma()
    for one, two in zip(host.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=2e-2, atol=1e-2)  # Adam's own count of steps runs on


@pytest.mark.parametrize("when", [0, 5])
def test_a_rest_that_is_not_finite_is_told_before_an_optimizer_moves(when):
    host = adopt(seeded(Broken, {when}), TASKS, LOG, rest="plain")
    with pytest.raises(
        RuntimeError, match=r"the rest of a host's loss, .*, should be finite: found nan where the tasks"
    ):
        trainer(max_epochs=1).fit(host, Loader(rows(32)))
    assert host.global_step == when
    assert all(parameter.isfinite().all() for parameter in host.parameters())


def test_batches_without_any_part_have_a_rest_that_is_looked_at():
    host = adopt(seeded(Sometimes), TASKS, LOG, rest="plain")
    host.training_step(rows()[0], 0)
    host.other = float("nan")
    with pytest.raises(RuntimeError, match="the rest of a host's loss"):
        host.training_step(rows()[0], 1)


class MadeLater(Host):
    """Makes its network when a fit begins; and has a second name for a part of it."""

    def __init__(self):
        super().__init__()
        self.made = self.trunk, self.head
        del self.trunk, self.head

    def configure_model(self):
        self.trunk, self.head = self.made
        self.alias = nn.ModuleDict({"trunk": self.trunk})


def test_modules_that_are_made_later_may_be_named():
    host = adopt(seeded(MadeLater), TASKS, LOG, shared="alias.trunk", beside="trunk", weighting=UncertaintyWeighting())
    host.made = tuple(part.double() for part in host.made)
    trainer(max_epochs=1).fit(host, Loader(rows()))
    assert len(host.shared_parameters()) == 2
    for options in ({"shared": "encoder"}, {"beside": "encoder"}):
        host = adopt(seeded(MadeLater), TASKS, LOG, **options)
        with pytest.raises(ValueError, match=r"should name modules .*: found no encoder; it has far, tr"):
            trainer(max_epochs=1).fit(host, Loader(rows()))
        assert host.global_step == 0
