"""Checkpoints of adopted modules: of the host's shape, to and fro."""

import copy
import pickle
import warnings

import pytest
import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR
from torch.optim.swa_utils import SWALR

from lightning_uncertainty import (
    AdoptLosses,
    FixedWeighting,
    MultiTaskMixin,
    UncertaintyMonitor,
    UncertaintyWeighting,
    adopt,
)
from lightning_uncertainty.adoption import unadopt
from tests._nets import trainer
from tests._versions import averages, exact_resume
from tests.adoption._hosts import PARTS, TASKS, Host, Loader, rows, seeded

LOG = PARTS["log"]


def fit(host, steps, *callbacks, ckpt_path=None, **options):
    torch.manual_seed(1)
    quiet = {"enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks)}
    fitted = trainer(max_steps=steps, callbacks=list(callbacks), **{"max_epochs": -1, **quiet, **options})
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*does not have a DataLoader|.*without a validation|.*resuming from|Be aware that when"
        )
        fitted.fit(host, Loader(rows()), ckpt_path=ckpt_path)
    return fitted


def saved(fitted, name="net.ckpt"):
    fitted.save_checkpoint(name)
    return torch.load(name, weights_only=True)


@pytest.fixture(params=[None, UncertaintyWeighting], ids=["analytic", "learnt"])
def weighting(request):
    return request.param and request.param()


def test_a_checkpoint_has_the_hosts_shape(weighting):
    host = adopt(seeded(Host), TASKS, LOG, weighting=weighting)
    found = saved(fit(host, 4))
    plain = saved(fit(seeded(Host), 4), "plain.ckpt")
    assert found["state_dict"].keys() == plain["state_dict"].keys() == host.state_dict().keys()
    assert set(found) - set(plain) == {"lightning_uncertainty"}
    assert found["hyper_parameters"] == plain["hyper_parameters"]
    loaded = Host.load_from_checkpoint("net.ckpt")
    assert type(loaded) is type(type(host).load_from_checkpoint("net.ckpt")) is Host
    for name, value in host.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name].to(value), value, rtol=0, atol=1e-6)
    seeded(Host).load_state_dict(host.state_dict())


KINDS = {}


class Registered(Host):
    """As hosts that write down which of their classes a checkpoint is of."""

    def on_save_checkpoint(self, checkpoint):
        super().on_save_checkpoint(checkpoint)
        checkpoint["kind"] = KINDS.get(type(self))

    def on_load_checkpoint(self, checkpoint):
        super().on_load_checkpoint(checkpoint)
        assert KINDS.get(type(self)) == checkpoint["kind"]


KINDS[Registered] = "registered"


def test_the_hosts_own_hooks_of_a_checkpoint_see_its_class():
    fitted = fit(adopt(seeded(Registered), TASKS, LOG), 2)
    assert saved(fitted)["kind"] == "registered"
    host = adopt(seeded(Registered), TASKS, LOG)
    fit(host, 4, ckpt_path="net.ckpt")
    assert isinstance(host, MultiTaskMixin)
    assert type(unadopt(host)) is Registered


def bits(state):
    return {name: value.double().nan_to_num(-7).tolist() for name, value in state.items()}


@exact_resume
@pytest.mark.parametrize("kind", ["log", "weight", "call", "function"])
def test_a_fit_resumes_to_the_last_bit(kind, weighting, tmp_path):
    def host():
        net = adopt(seeded(Host), TASKS, PARTS[kind], weighting=weighting)
        net.trunk[2] = torch.nn.Identity()  # in place of dropout, whose draws a checkpoint does not keep
        return net

    whole, resumed = host(), host()
    fit(whole, 8, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1))
    assert fit(resumed, 8, ckpt_path=tmp_path / "step=4.ckpt").global_step == 8
    assert bits(resumed.state_dict()) == bits(whole.state_dict())
    assert bits(resumed._own_state()) == bits(whole._own_state())


def test_a_callback_that_adopts_resumes_before_or_after_the_monitor(weighting):
    def callbacks(before):
        own = [AdoptLosses(TASKS, LOG, weighting), UncertaintyMonitor(table=False)]
        return own if before else own[::-1]

    for before in (True, False):
        first, second = seeded(Host), seeded(Host)
        saved(fit(first, 4, *callbacks(before)))
        both = callbacks(before)
        fit(second, 8, *both, ckpt_path="net.ckpt")
        monitor = next(one for one in both if isinstance(one, UncertaintyMonitor))
        assert [row["step"] for row in monitor.history.rows] == list(range(8))


def test_a_checkpoint_of_the_host_alone_resumes_adopted():
    saved(fit(seeded(Host), 4))
    host = adopt(seeded(Host), TASKS, LOG)
    assert fit(host, 8, ckpt_path="net.ckpt").global_step == 8
    assert all(value > 0 for value in host.sigma().values())


def test_a_host_that_is_adopted_no_longer_resumes():
    host = adopt(seeded(Host), TASKS, LOG)
    saved(fit(host, 4))
    assert fit(seeded(Host), 8, ckpt_path="net.ckpt").global_step == 8
    unadopt(host)
    assert fit(host, 4).global_step == 4


@pytest.mark.parametrize(("first", "second"), [(None, UncertaintyWeighting), (UncertaintyWeighting, None)])
def test_log_variances_in_one_optimizer_alone_are_told(first, second):
    saved(fit(adopt(seeded(Host), TASKS, LOG, weighting=first and first()), 4))
    host = adopt(seeded(Host), TASKS, LOG, weighting=second and second())
    whose = "those of the checkpoint" if first else "these"
    with pytest.raises(RuntimeError, match=f"found log-variances in {whose} alone; load its weights and fit anew"):
        fit(host, 8, ckpt_path="net.ckpt")
    host.load_state_dict(torch.load("net.ckpt")["state_dict"], strict=False)
    assert fit(host, 4).global_step == 4
    with pytest.warns(UserWarning, match="the checkpoint is not of"):  # weights alone
        trainer().validate(host, Loader(rows()), ckpt_path="net.ckpt")


def test_a_state_of_the_host_leaves_sigma_as_it_is():
    host = adopt(seeded(Host), TASKS, LOG)
    fit(host, 4)
    sigma = host.sigma()
    host.load_state_dict(seeded(Host).state_dict())
    assert host.sigma() == sigma
    around = torch.nn.ModuleDict({"module": host})
    assert set(around.state_dict()) == {f"module.{name}" for name in host.state_dict()}
    around.load_state_dict(around.state_dict())
    assert host.sigma() == sigma


@averages
def test_an_average_of_weights_is_the_hosts():
    from pytorch_lightning.callbacks import WeightAveraging

    host = adopt(seeded(Host), TASKS, LOG)
    found = saved(fit(host, 4, WeightAveraging()))
    assert found["state_dict"].keys() == found["current_model_state"].keys() == host.state_dict().keys()
    other = adopt(seeded(Host), TASKS, LOG)
    fit(other, 8, WeightAveraging(), ckpt_path="net.ckpt")
    assert all(value > 0 for value in other.sigma().values())


def test_validation_is_logged_beside_the_hosts_own_keys():
    parts = {"depth": "log:val_depth", "height": "log:val_height"}
    host = adopt(seeded(Host), TASKS, LOG, validation=parts)
    fitted = trainer()
    (found,) = fitted.validate(host, Loader(rows(12)))
    assert found["val/depth/loss"] == pytest.approx(found["val_depth"])
    assert found["val/height/loss"] == pytest.approx(found["val_height"])
    assert found["val/balanced_loss"] > 0
    (plain,) = trainer().validate(seeded(Host), Loader(rows(12)))
    assert {name: found[name] for name in plain} == plain
    (without,) = trainer().validate(adopt(seeded(Host), TASKS, LOG), Loader(rows(12)))
    assert without == plain


VALIDATION = {"depth": "log:val_depth", "height": "log:val_height"}


def test_validation_is_in_the_unit_of_training():
    host = adopt(seeded(Host), TASKS, LOG, validation=VALIDATION, keep_host_weights=True)
    with pytest.warns(UserWarning, match=r"found none known of depth, height before a step of training; left out"):
        (found,) = trainer().validate(host, Loader(rows()))
    assert found.keys() == {"val_depth", "val_height"}
    fitted = fit(host, 4)
    (found,) = fitted.validate(host, Loader(rows()))
    for task, weight in zip(TASKS, (0.5, 0.02), strict=True):
        assert found[f"val/{task}/loss"] == pytest.approx(weight * found[f"val_{task}"])
    fitted.save_checkpoint("net.ckpt")
    again = adopt(seeded(Host), TASKS, LOG, validation=VALIDATION, keep_host_weights=True)
    (same,) = trainer().validate(again, Loader(rows()), ckpt_path="net.ckpt")
    assert same == found
    assert {name for name in torch.load("net.ckpt")["lightning_uncertainty"] if name.startswith("host")} == {
        "host_weights.depth",
        "host_weights.height",
    }


class Logging(Host):
    """Logs under one key more in validation."""

    key = "val/depth/loss"

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log(self.key, 3.0)


class LoggingBalanced(Logging):
    key = "val/balanced_loss"


class LoggingLate(Host):
    def on_validation_epoch_end(self):
        self.log("val/height/loss", 3.0)


@pytest.mark.parametrize("kind", [Logging, LoggingBalanced, LoggingLate])
def test_a_host_that_logs_under_the_keys_of_validation_is_told(kind):
    host = adopt(seeded(kind), TASKS, LOG, validation=VALIDATION)
    with pytest.raises(RuntimeError, match=r"found that it logs 'val/.*' itself; call the task otherwise"):
        trainer().validate(host, Loader(rows()))
    trainer().validate(adopt(seeded(kind), TASKS, LOG), Loader(rows()))


def test_a_batch_of_validation_may_have_no_labels_of_a_task():
    class Partly(Host):
        def validation_step(self, batch, batch_idx):
            if batch_idx == 0:
                super().validation_step(batch, batch_idx)

    host = adopt(seeded(Partly), TASKS, LOG, validation=VALIDATION)
    (found,) = trainer().validate(host, Loader(rows()))
    assert found["val/depth/loss"] == pytest.approx(found["val_depth"])


class Shared(Host):
    """Its validation calls its training step."""

    def validation_step(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)


def test_a_validation_that_calls_the_training_step_is_the_hosts():
    host = adopt(seeded(Shared), TASKS, LOG)
    (found,) = trainer().validate(host, Loader(rows()))
    (plain,) = trainer().validate(seeded(Shared), Loader(rows()))
    assert found == plain
    assert host.task_weighting.log_variance.isnan().all()


def test_the_shared_modules_are_those_that_were_named():
    host = adopt(seeded(Host), TASKS, LOG, shared="trunk")
    assert [id(p) for p in host.shared_parameters()] == [id(p) for p in host.trunk.parameters()]
    with pytest.raises(RuntimeError, match=r"found no shared= in the adoption"):
        adopt(seeded(Host), TASKS, LOG).shared_parameters()
    assert isinstance(host, MultiTaskMixin)


# -- optimizers --------------------------------------------------------------------------------------------------------


class TwoOptimizers(Host):
    """The judge's optimizer is first; its step comes after a zero_grad of its own."""

    def __init__(self, forms):
        super().__init__()
        self.automatic_optimization = False
        self.judge, self.forms = torch.nn.Linear(1, 1), forms

    def training_step(self, batch, batch_idx):
        judge, generator = self.optimizers()
        near, tall = self.losses(batch)
        self.log_dict({"depth_loss": near, "height_loss": tall})
        generator.zero_grad()
        self.manual_backward(near + tall)
        generator.step()
        judge.zero_grad()
        self.manual_backward(self.judge(near.detach().reshape(1, 1)).square().mean())
        judge.step()

    def configure_optimizers(self):
        judge = torch.optim.SGD(self.judge.parameters(), 0.01)
        return self.forms(judge, torch.optim.Adam([*self.trunk.parameters(), *self.head.parameters()], 0.01))


FORMS = {
    "list": lambda *optimizers: list(optimizers),
    "tuple of lists": lambda *optimizers: (list(optimizers), []),
    "dicts": lambda *optimizers: tuple({"optimizer": optimizer} for optimizer in optimizers),
}


@pytest.mark.parametrize("form", FORMS)
def test_log_variances_go_to_the_optimizer_that_is_meant(form):
    def host(**options):
        return adopt(seeded(TwoOptimizers, FORMS[form]), TASKS, LOG, weighting=UncertaintyWeighting(), **options)

    with pytest.raises(
        RuntimeError, match=r"found 2 optimizers \(SGD, Adam\), and nobody said which that is; name a mod"
    ):
        fit(host(), 4)
    net = host(beside="trunk")
    fitted = fit(net, 4)
    assert [[g.get("name") for g in each.param_groups] for each in fitted.optimizers] == [
        [None],
        [None, "log_variances"],
    ]
    assert net.task_weighting.offset.abs().min() > 0
    fit(adopt(seeded(TwoOptimizers, FORMS[form]), TASKS, LOG), 4)  # nothing to be placed


def test_log_variances_beside_what_another_loss_trains_are_told():
    host = seeded(TwoOptimizers, FORMS["list"])
    net = adopt(host, TASKS, LOG, weighting=UncertaintyWeighting(), beside="judge")
    with pytest.warns(UserWarning, match=r"found none in 10 steps of optimizer number 1, SGD; .*`beside=` of `adopt`"):
        fit(net, 20)  # of either optimizer


class Given(Host):
    """Has its optimizer from outside."""

    def configure_optimizers(self):
        return self.given


def test_an_optimizer_that_the_host_was_given_is_told():
    def host(**options):
        net = seeded(Given)
        net.given = torch.optim.SGD(net.parameters(), 0.01)
        return adopt(net, TASKS, LOG, **options)

    with pytest.raises(RuntimeError, match=r"found one that was built before, as the host was given it; leave the opt"):
        fit(host(weighting=UncertaintyWeighting()), 4)
    fit(host(), 4)


class Scheduled(Host):
    """Has a number for every group."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda epoch: 1.0])]


def test_schedulers_that_count_groups_are_told():
    with pytest.raises(RuntimeError, match=r"found that it raises: Expected 2 lr_lambdas, but got 1; if it has a list"):
        fit(adopt(seeded(Scheduled), TASKS, LOG, weighting=UncertaintyWeighting()), 2)
    fit(adopt(seeded(Scheduled), TASKS, LOG), 2)


class Configured(Host):
    """Has what it is told to have."""

    def __init__(self, optimizer, scheduler=None):
        super().__init__()
        self.optimizer, self.scheduler = optimizer, scheduler

    def configure_optimizers(self):
        optimizer = self.optimizer(self)
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]


class Rates(Callback):
    """Takes note of the rate of log-variances over the network's in every step."""

    def __init__(self):
        self.ratios = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        network, own = optimizer.param_groups
        self.ratios.append(own["lr"] / network["lr"])


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda optimizer: CyclicLR(optimizer, 1e-3, 1e-2, 5),
        lambda optimizer: SWALR(optimizer, 0.05, anneal_epochs=5),
        lambda optimizer: OneCycleLR(optimizer, 1e-2, total_steps=30),
    ],
    ids=["CyclicLR", "SWALR", "OneCycleLR"],
)
def test_log_variances_keep_their_rate_under_a_scheduler_of_one_rate(scheduler):
    host, rates = seeded(Configured, lambda net: torch.optim.Adam(net.parameters(), 1e-2), scheduler), Rates()
    fit(adopt(host, TASKS, LOG, weighting=UncertaintyWeighting()), 20, rates)
    assert rates.ratios == pytest.approx([10.0] * 20)


def test_optimizers_that_no_weighting_fits_are_told_with_what_an_adopter_can_do():
    def lbfgs(net):
        return torch.optim.LBFGS(net.parameters(), 1e-2)

    for options in ({}, {"weighting": UncertaintyWeighting()}):
        with pytest.raises(RuntimeError, match=r"found the host's LBFGS.*adopt with weighting=FixedWeighting\("):
            fit(adopt(seeded(Configured, lbfgs), TASKS, LOG, **options), 2)
    fit(adopt(seeded(Configured, lbfgs), TASKS, LOG, weighting=FixedWeighting()), 2)
    with pytest.raises(RuntimeError, match=r"found none that the host's configure_optimizers returns; take Analytic"):
        fit(adopt(seeded(Configured, lambda net: None), TASKS, LOG, weighting=UncertaintyWeighting()), 2)


class Opposed(Host):
    """Two players on one loss: the first makes it small, the second large."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.opponent = torch.nn.Linear(4, 4)

    def training_step(self, batch, batch_idx):
        player, opponent = self.optimizers()
        for optimizer, sign in ((player, 1), (opponent, -1)):
            near, tall = self.losses({**batch, "x": self.opponent(batch["x"])})
            self.log_dict({"depth_loss": near, "height_loss": tall})
            optimizer.zero_grad()
            self.manual_backward(sign * (near + tall))
            self.seen = {
                name: None if p.grad is None else p.grad.clone() for name, p in self.opponent.named_parameters()
            }
            optimizer.step()

    def configure_optimizers(self):
        player = torch.optim.Adam([*self.trunk.parameters(), *self.head.parameters()], 0.01)
        return [player, torch.optim.SGD(self.opponent.parameters(), 0.0)]


def test_an_opponents_loss_of_the_same_parts_passes():
    host, plain = adopt(seeded(Opposed), TASKS, LOG), seeded(Opposed)
    for net in (host, plain):
        net.trunk[2] = torch.nn.Identity()
        fit(net, 2)
    # the opponent's gradient is that of the plain sum, where the player's parameters are the same
    first, second = adopt(seeded(Opposed), TASKS, LOG), seeded(Opposed)
    for net in (first, second):
        net.trunk[2] = torch.nn.Identity()
        net.configure_optimizers = lambda net=net: [torch.optim.SGD(net.parameters(), 0.0) for _ in range(2)]
        fit(net, 10)
    for name, gradient in second.seen.items():
        assert torch.equal(first.seen[name], gradient)
    assert all(value > 0 for value in first.sigma().values())


MISTYPED = {"depth": "log:depth_los", "height": "call:judge@1"}
IDLE = r"'log:depth_los' was never reached \(logged was depth_loss, height_loss\); 'call:judge@1' was never reached"


def test_parts_that_are_in_no_loss_of_manual_optimization_are_told():
    def host(**options):
        return adopt(seeded(TwoOptimizers, FORMS["list"]), TASKS, MISTYPED, **options)

    with pytest.warns(UserWarning, match=f"found none in 4 steps: {IDLE}; nothing is weighed"):  # a short epoch
        fit(host(), 8)
    mend = r"; name them otherwise .* begins in a later epoch, say may_be_absent=\['depth', 'height'\]"
    for batches, first in ((rows(), 4), (rows(48), 10)):
        with (
            pytest.warns(UserWarning, match=f"found none in {first} steps: {IDLE}; nothing is weighed"),
            pytest.raises(RuntimeError, match=f"found none in 12 steps, to the end of an epoch: {IDLE}{mend}"),
        ):
            trainer(max_epochs=4).fit(host(), Loader(batches))
    with pytest.warns(UserWarning, match="found none in 4 steps"):
        fit(host(may_be_absent=TASKS), 24)


class Later(TwoOptimizers):
    """Its generator begins in the fourth epoch."""

    def training_step(self, batch, batch_idx):
        if self.current_epoch > 3:
            super().training_step(batch, batch_idx)


def test_a_generator_may_begin_later_if_told():
    host = adopt(seeded(Later, FORMS["list"]), TASKS, LOG, may_be_absent=TASKS)
    with pytest.warns(UserWarning, match="found none in 4 steps"):
        fit(host, 100, max_epochs=6)
    assert all(value > 0 for value in host.sigma().values())


class Lossless(Host):
    def training_step(self, batch, batch_idx):
        return {"total": super().training_step(batch, batch_idx)}


def test_a_dict_without_a_loss_is_lightnings_to_tell():
    with pytest.raises(MisconfigurationException, match="'loss' key needs to be present"):
        fit(adopt(seeded(Lossless), TASKS, LOG), 2)


# -- hosts with states of their own ------------------------------------------------------------------------------------


class NoKeywords(Host):
    def state_dict(self):
        return super().state_dict()


class Trimmed(Host):
    """Saves its head alone."""

    strict_loading = False

    def state_dict(self, *args, **kwargs):
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name.startswith("head")}


class Filtering(Host):
    """Leaves a frozen part out of what it saves."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["state_dict"] = {n: v for n, v in self.state_dict().items() if n != "vector"}
        checkpoint["backup"] = self.state_dict()

    def on_load_checkpoint(self, checkpoint):
        missing = self.state_dict().keys() - checkpoint["state_dict"].keys()
        assert missing == {"vector"}
        checkpoint["state_dict"]["vector"] = self.vector


@exact_resume
@pytest.mark.parametrize("kind", [NoKeywords, Trimmed, Filtering])
def test_states_of_the_hosts_own_making(kind, weighting, tmp_path):
    def host():
        net = adopt(seeded(kind), TASKS, LOG, weighting=weighting)
        net.trunk[2] = torch.nn.Identity()
        return net

    whole, resumed = host(), host()
    fit(whole, 8, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1))
    checkpoint = torch.load(tmp_path / "step=4.ckpt")
    assert not [name for name in (*checkpoint["state_dict"], *checkpoint.get("backup", ())) if "task_" in name]
    assert len(checkpoint["lightning_uncertainty"]) > 3
    if kind is not Trimmed:
        kind.load_from_checkpoint(tmp_path / "step=4.ckpt", weights_only=False)
    fit(resumed, 8, ckpt_path=tmp_path / "step=4.ckpt")
    if kind is not Trimmed:
        assert bits(resumed.state_dict()) == bits(whole.state_dict())
        assert bits(resumed._own_state()) == bits(whole._own_state())
    assert resumed._own_state()["task_weighting.log_variance"].isfinite().all()


class WithGradients(Host):
    """Its validation runs its step with gradients on, as where forces are gradients."""

    def validation_step(self, batch, batch_idx):
        with torch.enable_grad():
            return self.training_step({name: value.clone() for name, value in batch.items()}, batch_idx)


def test_validation_trains_nothing_even_with_gradients_on():
    host, plain = (adopt(seeded(kind), TASKS, LOG) for kind in (WithGradients, Host))
    for net in (host, plain):
        net.trunk[2] = torch.nn.Identity()
        torch.manual_seed(0)
        options = {"inference_mode": False, "max_epochs": 3}
        trainer(**options).fit(net, Loader(rows()), Loader(rows(8, seed=1)))
    assert bits(host._own_state()) == bits(plain._own_state())
    trainer(inference_mode=False).validate(host, Loader(rows()))
    assert bits(host._own_state()) == bits(plain._own_state())


class OwnBackward(TwoOptimizers):
    def manual_backward(self, loss):
        loss.backward()


class Backward(TwoOptimizers):
    """Calls backward of its loss itself."""

    def training_step(self, batch, batch_idx):
        generator = self.optimizers()[1]
        near, tall = self.losses(batch)
        self.log_dict({"depth_loss": near, "height_loss": tall})
        (near + tall).backward()
        generator.step()


def test_a_backward_that_is_not_manual_backward_is_told():
    with pytest.raises(RuntimeError, match=r"should call self.manual_backward.* and calls it never"):
        fit(adopt(seeded(Backward, FORMS["list"]), TASKS, LOG), 2)
    host = adopt(seeded(OwnBackward, FORMS["list"]), TASKS, LOG)
    fit(host, 2)
    assert all(value > 0 for value in host.sigma().values())


class LogsAtTheEnd(TwoOptimizers):
    def training_step(self, batch, batch_idx):
        judge, generator = self.optimizers()
        near, tall = self.losses(batch)
        for optimizer in (judge, generator):
            optimizer.zero_grad()
        self.manual_backward(self.judge(near.detach().reshape(1, 1)).mean() + near + tall)
        generator.step()
        self.log_dict({"depth_loss": near, "height_loss": tall})


def test_parts_that_are_logged_after_manual_backward_are_told():
    with pytest.raises(RuntimeError, match="and gives it nothing before these are seen; name parts that are made"):
        fit(adopt(seeded(LogsAtTheEnd, FORMS["list"]), TASKS, LOG), 2)
    parts = {"depth": "call:far", "height": "call:tall_of"}
    host = adopt(seeded(LogsAtTheEnd, FORMS["list"]), TASKS, parts, rest="plain")
    fit(host, 2)
    assert all(value > 0 for value in host.sigma().values())


def test_a_part_that_is_not_in_validation_is_told():
    host = adopt(seeded(Host), TASKS, LOG, validation={"depth": "log:val_depth", "height": "log:nothing"})
    with (
        pytest.warns(UserWarning, match=r"found none for height \(log:nothing\) in the first step"),
        pytest.warns(UserWarning, match="no label of height"),
    ):
        trainer().validate(host, Loader(rows()))


# -- what a host does to itself after it was adopted -------------------------------------------------------------------


class InSetup(Host):
    def setup(self, stage):
        self.sigma = 3.0


class InConfigureModel(Host):
    def configure_model(self):
        self.task_heads = torch.nn.ModuleDict({"depth": torch.nn.Linear(1, 1)})


class InFitStart(Host):
    def on_fit_start(self):
        self._task_specs = {"depth": 1}


class InEpochStart(Host):
    def on_train_epoch_start(self):
        self.weigh = torch.ones(2)


class OfValidation(Host):
    def on_validation_start(self):
        self.task_step = None


LATE = {
    InSetup: "sigma",
    InConfigureModel: "task_heads",
    InFitStart: "_task_specs",
    InEpochStart: "weigh",
    OfValidation: "task_step",
}


@pytest.mark.parametrize("beforehand", [True, False])
@pytest.mark.parametrize("kind", LATE)
def test_names_that_a_host_takes_later_are_told_before_an_optimizer_moves(kind, beforehand):
    host = seeded(kind)
    before = {name: value.clone() for name, value in host.state_dict().items()}
    validation = {"depth": "log:val_depth", "height": "log:val_height"}
    if beforehand:
        adopt(host, TASKS, LOG, validation=validation)
    callbacks = [] if beforehand else [AdoptLosses(TASKS, LOG, validation=validation)]
    with pytest.raises(
        RuntimeError,
        match=f"after it was adopted, too: found that {kind.__name__} has set {LATE[kind]} since; rename it",
    ):
        trainer(callbacks=callbacks, num_sanity_val_steps=2).fit(host, Loader(rows()), Loader(rows()))
    assert all(torch.equal(host.state_dict()[name], value) for name, value in before.items())
    assert LATE[kind] in {**vars(unadopt(host)), **host._modules, **host._buffers}


def test_names_are_its_own_in_copies_and_within_what_wraps_a_module():
    host = adopt(seeded(Host), TASKS, LOG)
    fit(host, 2)
    for net in (copy.deepcopy(host), pickle.loads(pickle.dumps(host))):
        net.task_heads = torch.nn.ModuleDict({"wrapped": net.task_heads})
        fit(net, 4)


@pytest.mark.parametrize("late", [True, False])
def test_a_module_that_is_compiled_whole_is_told(late):
    host = seeded(Host)
    net = adopt(host, TASKS, LOG) if late else host
    compiled = torch.compile(net, backend="eager")
    with pytest.raises(TypeError, match=r"found one on the Host itself, as torch.compile of a whole LightningModule"):
        fit(compiled, 2, *([] if late else [AdoptLosses(TASKS, LOG)]))
    assert host.global_step == 0


def test_a_module_that_compiles_its_forward_trains_but_where_steps_are_called():
    host = adopt(seeded(Host), TASKS, LOG)
    host.compile(backend="eager")
    fit(host, 2)
    host.trainer = trainer(strategy="ddp")
    with pytest.raises(TypeError, match=r"found that Host.compile\(\) was called, under a strategy that calls the mod"):
        host.setup("fit")


# -- losses that are made where a graph is another's -------------------------------------------------------------------


class Criterion(torch.nn.Module):
    def __init__(self, wa=0.5, wb=0.02):
        super().__init__()
        self.wa, self.wb = wa, wb

    def forward(self, near, tall):
        return self.wa * near + self.wb * tall

    def squared(self, near, tall):
        return self.wa * near * tall


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, loss):
        ctx.save_for_backward(weight, loss)
        return weight * loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        weight, loss = ctx.saved_tensors
        return gradient * loss, gradient * weight


class Adding(Host):
    """Adds its losses up as it is told."""

    def __init__(self, way, backend="aot_eager"):
        super().__init__()
        self.criterion, self.way = Criterion(), way
        self.compiled = torch.compile(self.criterion, backend=backend)
        self.product = torch.compile(self.criterion.squared, backend=backend)
        self.learnt = torch.nn.Parameter(torch.zeros(2))
        self.trained = torch.compile(lambda a, b, v: (v.softmax(0) * torch.stack([a, b])).sum(), backend=backend)

    def training_step(self, batch, batch_idx):
        near, tall = self.losses(batch)
        self.log_dict({"depth_loss": near, "height_loss": tall})
        return self.way(self, near, tall, batch)


def compiled(host, near, tall, batch):
    return host.compiled(near, tall)


def checkpointed(host, near, tall, batch):
    def whole(batch):
        return host.criterion(*host.losses(batch))

    return torch.utils.checkpoint.checkpoint(whole, batch, use_reentrant=False)


def once(host, near, tall, batch):
    weights = [torch.as_tensor(weight, dtype=near.dtype) for weight in (host.criterion.wa, host.criterion.wb)]
    return sum(Once.apply(weight, loss) for weight, loss in zip(weights, (near, tall), strict=True))


BY_WEIGHT = {"depth": "weight:criterion.wa", "height": "weight:criterion.wb"}
ADDED = {
    "compiled": (
        compiled,
        BY_WEIGHT,
        r"differentiable twice: found that for one of 'weight:criterion.wa', .*uncompiled",
    ),
    "checkpoint": (
        checkpointed,
        BY_WEIGHT,
        r"within a checkpoint.* found that one of 'weight:criterion.wa', .*name the",
    ),
    "once": (once, BY_WEIGHT, "should have a graph: found none for depth, height, as of a function that is differ"),
    "a product": (
        lambda host, near, tall, batch: host.product(near, tall),
        LOG,
        "differentiable twice: found that for one of 'log:depth_loss', 'log:height_loss' it is compiled",
    ),
    "trained": (
        lambda host, near, tall, batch: host.trained(near, tall, host.learnt),
        LOG,
        "found that the host trains those of depth, height, which",
    ),
}


BY_DYNAMO = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")


@BY_DYNAMO
@pytest.mark.parametrize("name", ADDED)
def test_weights_where_no_leaf_can_be_are_told_before_an_optimizer_moves(name):
    way, parts, found = ADDED[name]
    host = adopt(seeded(Adding, way), TASKS, parts)
    before = {key: value.clone() for key, value in host.state_dict().items()}
    with pytest.raises(RuntimeError, match=found):
        fit(host, 2)
    assert all(torch.equal(host.state_dict()[key], value) for key, value in before.items())
    assert (host.criterion.wa, host.criterion.wb) == (0.5, 0.02)


PATHS = {"depth": "weight:compiled.wa", "height": "weight:compiled._orig_mod.wb"}


@BY_DYNAMO
@pytest.mark.parametrize(("backend", "parts"), [("aot_eager", LOG), ("eager", LOG), ("eager", PATHS)])
def test_losses_may_be_added_up_by_what_is_compiled(backend, parts):
    host, plain = adopt(seeded(Adding, compiled, backend), TASKS, parts), adopt(seeded(Host), TASKS, LOG)
    for net in (host, plain):
        net.trunk[2] = torch.nn.Identity()
        fit(net, 6)
    assert host.sigma() == pytest.approx(plain.sigma(), rel=1e-12)
    assert (host.criterion.wa, host.criterion.wb) == (0.5, 0.02)


class SharedCriterion(TwoOptimizers):
    """The judge's loss is made by the generator's criterion, before it or after."""

    def __init__(self, first=False, alone=False):
        super().__init__(FORMS["list"])
        self.first, self.alone = first, alone

    def of_judge(self, batch):
        judge = self.optimizers()[0]
        judge.zero_grad()
        self.manual_backward(self.far(self.judge(batch["depth"][:, None]), batch["height"][:, None]))
        judge.step()

    def training_step(self, batch, batch_idx):
        generator = self.optimizers()[1]
        if self.first:
            self.of_judge(batch)
        near, tall = self.losses(batch)
        generator.zero_grad()
        self.manual_backward(near + (0.0 if self.alone else self.scale.value * tall))
        generator.step()
        if not self.first:
            self.of_judge(batch)


def test_a_criterion_that_another_optimizers_loss_is_made_by_is_told():
    parts = {"depth": "call:far", "height": "weight:scale.value"}
    with pytest.raises(
        RuntimeError,
        match=r"found one of depth, height and one of depth, .*=\['height'\]; or name the one .* as in 'call:far@0'",
    ):
        fit(adopt(seeded(SharedCriterion), TASKS, parts), 4)
    with pytest.raises(RuntimeError, match=r"found none for height: .*=\['height'\]; or name the one .* 'call:far@0'"):
        fit(adopt(seeded(SharedCriterion, True), TASKS, parts), 4)
    for first in (False, True):
        host = adopt(seeded(SharedCriterion, first), TASKS, {**parts, "depth": f"call:far@{int(first)}"})
        before = host.judge.weight.item()
        fit(host, 4)
        assert host.judge.weight.item() != before
        assert all(value > 0 for value in host.sigma().values())


def test_totals_of_several_optimizers_by_any_call_are_warned_of():
    tasks = {"depth": "laplace"}
    with pytest.warns(UserWarning, match=r"2 optimizers .* found 2 totals of depth in a step, .* as in 'call:far@0'"):
        fit(adopt(seeded(SharedCriterion, alone=True), tasks, {"depth": "call:far"}), 4)
    fit(adopt(seeded(SharedCriterion, alone=True), tasks, {"depth": "call:far@0"}), 4)


def test_totals_of_parts_of_their_own_pass():
    class Apart(TwoOptimizers):
        def training_step(self, batch, batch_idx):
            generator = self.optimizers()[1]
            near, tall = self.losses(batch)
            self.log_dict({"depth_loss": near, "height_loss": tall})
            generator.zero_grad()
            self.manual_backward(near, retain_graph=True)
            self.manual_backward(tall)
            generator.step()

    host = adopt(seeded(Apart, FORMS["list"]), TASKS, LOG, may_be_absent=TASKS)
    fit(host, 4)
    assert all(value > 0 for value in host.sigma().values())


class Outer(LightningModule):
    """Trains a module within it, which may be adopted."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def training_step(self, batch, batch_idx):
        return self.inner.training_step(batch, batch_idx)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


class Silent(Host):
    def log(self, *args, **kwargs):
        """Leave that to the outer one."""


@exact_resume
def test_the_state_of_a_part_of_another_module_keeps_sigma(weighting, tmp_path):
    def outer():
        host = seeded(Silent)
        host.trunk[2] = torch.nn.Identity()
        return Outer(adopt(host, TASKS, PARTS["call"], weighting=weighting))

    whole, resumed = outer(), outer()
    fit(whole, 8, ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=4, save_top_k=-1))
    found = torch.load(tmp_path / "step=4.ckpt")["state_dict"]
    assert {f"inner.{name}" for name in whole.inner._own_state()} <= found.keys()
    fit(resumed, 8, ckpt_path=tmp_path / "step=4.ckpt")
    assert bits(resumed.state_dict()) == bits(whole.state_dict())
    assert resumed.inner.sigma() == whole.inner.sigma()
    Outer(seeded(Silent)).load_state_dict(found, strict=False)
    other = outer()
    other.load_state_dict(Outer(seeded(Silent)).state_dict())  # as a checkpoint of before the adoption


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._forward_module."])
def test_the_state_of_a_module_in_a_wrapper_has_the_hosts_shape(prefix):
    host = adopt(seeded(Host), TASKS, LOG)
    assert host.state_dict(prefix=prefix).keys() == {f"{prefix}{name}" for name in seeded(Host).state_dict()}


class Built(Host):
    """Makes its network when a fit begins."""

    def make(self):
        self.trunk, self.head = (part.double() for part in self.made)

    def __init__(self, hook):
        super().__init__()
        self.made = self.trunk, self.head  # a tuple, which is no part of it
        self.trunk[2] = torch.nn.Identity()
        del self.trunk, self.head
        self.hook = hook

    def setup(self, stage):
        super().setup(stage)
        if self.hook == "setup":
            self.make()

    def configure_model(self):
        if self.hook == "configure_model":
            self.make()


@pytest.mark.parametrize("hook", ["setup", "configure_model"])
@pytest.mark.parametrize("before", [True, False])
def test_a_network_that_is_made_late_has_sigma_of_its_dtype(hook, before, weighting):
    torch.manual_seed(0)
    late = Built(hook)
    if before:
        adopt(late, TASKS, LOG, weighting=weighting)
    fit(late, 8, *([] if before else [AdoptLosses(TASKS, LOG, weighting)]))
    torch.manual_seed(0)
    soon = Built("never")
    soon.make()
    fit(adopt(soon, TASKS, LOG, weighting=weighting), 8)
    assert late.sigma() == soon.sigma()
    assert {value.dtype for value in late._own_state().values() if value.is_floating_point()} >= {torch.float64}
