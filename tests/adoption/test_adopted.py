"""Checkpoints of adopted modules: of the host's shape, to and fro."""

import warnings

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_uncertainty import AdoptLosses, MultiTaskMixin, UncertaintyMonitor, UncertaintyWeighting, adopt
from lightning_uncertainty.adoption import unadopt
from tests._nets import trainer
from tests._versions import averages, exact_resume
from tests.adoption._hosts import PARTS, TASKS, Host, Loader, rows, seeded

LOG = PARTS["log"]


def fit(host, steps, *callbacks, ckpt_path=None, **options):
    torch.manual_seed(1)
    quiet = {"enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in callbacks)}
    fitted = trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **{**quiet, **options})
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
    around = torch.nn.ModuleDict({"net": host})
    assert set(around.state_dict()) == {f"net.{name}" for name in host.state_dict()}
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


def test_parts_that_are_in_no_loss_of_manual_optimization_are_told():
    parts = {"depth": "log:no_such", "height": "weight:no_such"}
    host = adopt(seeded(TwoOptimizers, FORMS["list"]), TASKS, {**parts, "height": "call:judge@1"})
    with pytest.warns(
        UserWarning, match=r"found none in 10 steps: 'log:no_such' was never reached; 'call:judge@1' was"
    ):
        fit(host, 24)


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
