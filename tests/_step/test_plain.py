"""Checkpoints as the host alone would have written them: the oracle is the host alone."""

import copy
from contextlib import nullcontext

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty import (
    FixedWeighting,
    MultiTaskMixin,
    UncertaintyMonitor,
    UncertaintyWeighting,
    callbacks,
    own_group,
)
from lightning_uncertainty._step.plain import OWN_CALLBACKS, OWN_PARTS
from tests._nets import Owning, trainer, tuples
from tests._versions import averages


class Host(LightningModule):
    """A network with a normalisation, whose losses are summed, by one of several optimizers."""

    def __init__(self, optimizer="grouped", scheduler="step"):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.depth, self.kind = nn.Linear(4, 1), nn.Linear(4, 3)
        self.frozen = nn.Linear(4, 1).requires_grad_(False)
        self.kind_of_optimizer, self.kind_of_scheduler = optimizer, scheduler

    def losses(self, batch):
        x, depth, kind = batch
        x = self.norm(x)
        return {"depth": F.mse_loss(self.depth(x)[:, 0], depth), "kind": F.cross_entropy(self.kind(x), kind)}

    def training_step(self, batch, batch_idx):
        return sum(self.losses(batch).values())

    def groups(self):
        return [{"params": list(self.parameters()), "lr": 1e-2, "weight_decay": 0.0}]

    def configure_optimizers(self):
        parameters = {
            "grouped": self.groups,
            "all": self.parameters,
            "trained": lambda: [p for p in self.parameters() if p.requires_grad],
        }[self.kind_of_optimizer]()
        optimizer = torch.optim.Adam(parameters, lr=1e-2)
        scheduler = {
            "step": lambda: torch.optim.lr_scheduler.StepLR(optimizer, 1),
            "lambda": lambda: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step),
            "plateau": lambda: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, min_lr=1e-6),
            "sequential": lambda: torch.optim.lr_scheduler.SequentialLR(
                optimizer,
                [torch.optim.lr_scheduler.ConstantLR(optimizer), torch.optim.lr_scheduler.StepLR(optimizer, 1)],
                [1],
            ),
        }[self.kind_of_scheduler]()
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss"}}


class Weighed(MultiTaskMixin, Host):
    def __init__(self, weighting=None, **options):
        super().__init__(**options)
        self.register_tasks({"depth": "gaussian", "kind": "categorical"}, weighting=weighting)

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        self.log("loss", sum(losses.values()))
        return self.weigh(losses)

    def groups(self):
        return self.parameter_groups(lr=1e-2)


class Logged(Host):
    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        self.log("loss", total)
        return total


def fitted(kind, path=None, more=(), **options):
    """A fit that begins as every other."""
    torch.manual_seed(0)
    own = Host()
    net = kind(**options)
    net.load_state_dict(own.state_dict(), strict=kind is Logged)
    fit = trainer(max_epochs=2, callbacks=list(more))
    torch.manual_seed(1)
    fit.fit(net, tuples())
    if path is not None:
        fit.save_checkpoint(path)
    return net


def shapes(value):
    """All there is but numbers."""
    if isinstance(value, dict):
        return {key: shapes(part) for key, part in value.items() if not isinstance(key, str) or "version" not in key}
    if isinstance(value, list | tuple):
        return [shapes(part) for part in value]
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


@pytest.mark.filterwarnings("ignore:the checkpoint has nothing of")
@pytest.mark.parametrize("scheduler", ["step", "lambda", "plateau", "sequential"])
@pytest.mark.parametrize("optimizer", ["grouped", "all", "trained"])
def test_a_file_is_what_the_host_alone_writes_and_the_host_resumes_from_it(optimizer, scheduler, tmp_path):
    options, monitor = {"optimizer": optimizer, "scheduler": scheduler}, UncertaintyMonitor(table=False)
    net = fitted(Weighed, tmp_path / "ours.ckpt", [monitor], weighting=UncertaintyWeighting(), **options)
    fitted(Logged, tmp_path / "host.ckpt", **options)
    net.write_plain_checkpoint(tmp_path / "ours.ckpt", tmp_path / "plain.ckpt")
    plain, host = (torch.load(tmp_path / f"{name}.ckpt", weights_only=True) for name in ("plain", "host"))
    for state in (*plain["optimizer_states"], *host["optimizer_states"]):
        for group in state["param_groups"]:
            group["betas"] = group["weight_decay"] = None
    assert shapes(plain) == shapes(host)
    resumed = Logged(**options)
    trainer(max_epochs=3).fit(resumed, tuples(), ckpt_path=tmp_path / "plain.ckpt")
    assert resumed.trainer.global_step == 12
    ours = torch.load(tmp_path / "ours.ckpt", weights_only=True)
    assert "task_weighting.offset" in ours["state_dict"]  # which was left alone


@pytest.mark.filterwarnings("ignore:the checkpoint has nothing of")
def test_under_equal_weights_every_number_is_the_hosts(tmp_path):
    net = fitted(Weighed, tmp_path / "ours.ckpt", weighting=FixedWeighting(), optimizer="all")
    fitted(Logged, tmp_path / "host.ckpt", optimizer="all")
    plain = net.plain_checkpoint(torch.load(tmp_path / "ours.ckpt"))
    host = torch.load(tmp_path / "host.ckpt")
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        torch.testing.assert_close(plain[key], host[key], rtol=1e-6, atol=1e-7)


def test_a_plain_state_loads_strictly_and_ours_does_not():
    net, host = Weighed(), Host()
    assert host.load_state_dict(net.plain_state_dict(), strict=True) == ([], [])
    with pytest.raises(RuntimeError, match="Unexpected"):
        host.load_state_dict(net.state_dict())
    assert list(net.plain_state_dict()) == list(host.state_dict())


def test_heads_that_tasks_own_stay_and_what_else_we_add_goes():
    net = Owning()
    parts = {key.split(".")[0] for key in net.plain_state_dict()}
    assert parts == {"trunk", "task_heads"}
    ours = {name for name, _ in net.named_children() if name.startswith("task_")}
    assert ours - {"task_heads", "task_splitter"} == set(OWN_PARTS)
    assert set(OWN_CALLBACKS) == set(callbacks.__all__)


class Outer(Weighed):
    """Has another of us within it."""

    def __init__(self, **options):
        Host.__init__(self)
        self.inner = Weighed()
        self.register_tasks({"depth": "gaussian"})


def test_those_within_are_plain_too():
    assert not [key for key in Outer().plain_state_dict() if "task_" in key]


class Around(LightningModule):
    """Runs a part that has the tasks, and is none of us itself."""

    def __init__(self, part):
        super().__init__()
        self.part, self.other = part(), nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        losses = self.part.losses(batch)
        return self.part.weigh(losses) if isinstance(self.part, MultiTaskMixin) else sum(losses.values())

    def configure_optimizers(self):
        tasks = getattr(self.part, "task_weighting", None)
        with nullcontext() if tasks is None else own_group(tasks):
            return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_a_part_makes_the_checkpoint_of_what_is_around_it_plain():
    fits = {}
    for kind in (Weighed, Host):
        torch.manual_seed(0)
        fits[kind] = trainer(max_epochs=1, logger=False)
        fits[kind].fit(Around(kind), tuples())
    whole = fits[Weighed].lightning_module
    plain = whole.part.plain_checkpoint(fits[Weighed]._checkpoint_connector.dump_checkpoint())
    alone = fits[Host]._checkpoint_connector.dump_checkpoint()
    assert list(plain["state_dict"]) == list(alone["state_dict"])
    groups = [[group["params"] for group in each["optimizer_states"][0]["param_groups"]] for each in (plain, alone)]
    assert groups[0] == groups[1]


@averages
@pytest.mark.filterwarnings("ignore:the checkpoint has nothing of")
def test_an_average_of_weights_is_plain_too(tmp_path):
    from pytorch_lightning.callbacks import EMAWeightAveraging

    net = Weighed(optimizer="all")
    fit = trainer(max_epochs=1, callbacks=[EMAWeightAveraging(decay=0.9)])
    kept = []
    net.on_save_checkpoint = lambda checkpoint: kept.append(net.plain_checkpoint(checkpoint))
    net.on_train_epoch_end = lambda: fit.save_checkpoint(tmp_path / "mean.ckpt")
    fit.fit(net, tuples())
    for key in ("state_dict", "current_model_state"):
        assert list(kept[0][key]) == list(Host().state_dict())


def test_a_checkpoint_without_optimizers_is_plain():
    net = Weighed()
    plain = net.plain_checkpoint({"state_dict": net.state_dict(), "epoch": 3})
    assert plain.keys() == {"state_dict", "epoch"}
    assert list(plain["state_dict"]) == list(Host().state_dict())


def test_a_fit_writes_plain_checkpoints_where_it_is_told_to(tmp_path):
    net = Weighed(optimizer="all")
    net.on_save_checkpoint = lambda checkpoint: checkpoint.update(net.plain_checkpoint(checkpoint))
    fit = trainer(max_epochs=1)
    fit.fit(net, tuples())
    fit.save_checkpoint(tmp_path / "plain.ckpt")
    trainer(max_epochs=2).fit(Logged(optimizer="all"), tuples(), ckpt_path=tmp_path / "plain.ckpt")


def test_an_optimizer_that_does_not_tell_is_refused():
    net = Weighed()
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam([{"params": parameters[:2]}, {"params": parameters[2:]}])
    checkpoint = {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()]}
    before = copy.deepcopy(checkpoint["optimizer_states"])
    with pytest.raises(ValueError, match=r"should tell which parameters are log-variances.*: found 9 in 2 groups; pop"):
        net.plain_checkpoint(checkpoint)
    assert checkpoint["optimizer_states"] == before


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"should be one file: found the folder .*dcp_to_torch_save"):
        Weighed().write_plain_checkpoint(tmp_path, tmp_path / "plain.ckpt")


def test_named_parameters_of_a_sharded_optimizer_are_known_by_name():
    net = Weighed()
    names = [name for name, _ in net.named_parameters()]
    state = {"state": {name: {"step": 1} for name in names}, "param_groups": [{"params": names, "lr": 0.1}]}
    (plain,) = net.plain_checkpoint({"state_dict": {}, "optimizer_states": [state]})["optimizer_states"]
    own = [name for name, _ in Host().named_parameters()]
    assert list(plain["state"]) == plain["param_groups"][0]["params"] == own
