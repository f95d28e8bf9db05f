"""Weightings, likelihoods, solvers and tasks as hyper-parameters: in checkpoints, in loggers, and used twice."""

import copy
import io

import pytest
import torch
from lightning_fabric.utilities.logger import _convert_params, _flatten_dict, _sanitize_callable_params
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_uncertainty import (
    MultiTaskMixin,
    Task,
    UncertaintyMonitor,
    UncertaintyWeighting,
    likelihoods,
    weightings,
)
from lightning_uncertainty.balancing import GradientBalancing, solvers
from lightning_uncertainty.likelihoods import AsGeneric, Categorical
from lightning_uncertainty.weightings import Weighting
from tests._nets import dicts, trainer
from tests.trainer._weightings import WEIGHTINGS

OTHERS = {
    "options": lambda: UncertaintyWeighting(
        {"depth": 1.0}, bounds=(-3.0, float("inf")), shared=[["depth"]], memory=None
    ),
    "every solver": lambda: GradientBalancing("pcgrad", UncertaintyWeighting(start=0.5), heads="weighted"),
    "an object for a solver": lambda: GradientBalancing(solvers.MGDA()),
}
MAKERS = {**WEIGHTINGS, **OTHERS}


class Saving(MultiTaskMixin, LightningModule):
    """Everything that it is given is a hyper-parameter."""

    def __init__(self, weighting=None, tasks=None, lr=1e-2):
        super().__init__()
        self.save_hyperparameters()
        tasks = tasks or {"depth": Task("gaussian"), "kind": "categorical"}
        self.trunk = nn.Linear(4, 8)
        self.heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "kind": nn.Linear(8, 3)})
        self.register_tasks(tasks, weighting=weighting)

    def training_step(self, batch, batch_idx):
        features = self.split_features(self.trunk(batch["x"]).tanh())
        outputs = {name: head(features[name]) for name, head in self.heads.items()}
        return self.weigh(self.task_losses(outputs, batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=self.hparams.lr))


def fit(net, **options):
    found = {"ckpt_path": options.pop("ckpt_path", None)}
    own = trainer(callbacks=[UncertaintyMonitor(table=False)], **options)
    own.fit(net, dicts(), **found)
    return own


@pytest.mark.filterwarnings("ignore:Attribute 'weighting' is an instance of `nn.Module`")
@pytest.mark.parametrize("name", MAKERS)
def test_a_weighting_is_saved_loaded_and_resumed(name, tmp_path):
    weighting = MAKERS[name]()
    shown, net = repr(weighting), Saving(weighting)
    fit(net, max_epochs=1).save_checkpoint(tmp_path / "own.ckpt")
    loaded = Saving.load_from_checkpoint(tmp_path / "own.ckpt", weights_only=True)
    assert repr(loaded.task_weighting) == repr(net.task_weighting)
    assert repr(loaded.hparams.weighting) == repr(weighting) == shown
    for key, value in net.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[key], value, rtol=0, atol=0, equal_nan=True)
    again = fit(Saving(weighting), max_epochs=2, ckpt_path=tmp_path / "own.ckpt")
    assert again.global_step == 8


@pytest.mark.filterwarnings("ignore:Attribute 'weighting' is an instance of `nn.Module`")
@pytest.mark.parametrize("name", MAKERS)
def test_what_is_given_stays_as_it_was_and_builds_any_number(name):
    options = {"weighting": MAKERS[name](), "tasks": {"depth": Task("gaussian"), "kind": Categorical()}}
    nets = [Saving(**options) for _ in range(2)]
    assert options["weighting"].tasks == ()
    assert list(options["weighting"].parameters()) == []
    assert nets[0].task_weighting is not nets[1].task_weighting
    for own in nets:
        fit(own, max_epochs=1)
    assert options["weighting"].tasks == ()
    copied = copy.deepcopy(nets[0])
    with pytest.raises(ValueError, match="a weighting belongs to one module"):
        Saving(copied.task_weighting)


@pytest.mark.parametrize("name", likelihoods.LIKELIHOODS)
def test_a_likelihood_and_a_task_are_loaded(name):
    kind = likelihoods.LIKELIHOODS[name]()
    for value in (kind, Task(kind, target="label", auxiliary=True), AsGeneric(kind) if kind.normalised else kind):
        file = io.BytesIO()
        torch.save({"hyper_parameters": {"value": value}}, file)
        file.seek(0)
        assert repr(torch.load(file, weights_only=True)["hyper_parameters"]["value"]) == repr(value)


@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_a_solver_is_loaded(name):
    file, solver = io.BytesIO(), solvers.SOLVERS[name]()
    torch.save(solver, file)
    file.seek(0)
    assert torch.load(file, weights_only=True) == solver


class OfOnesOwn(Weighting):
    """A user's."""

    def weigh(self, losses, present):
        return weightings.Weighted((losses * present).sum(), torch.ones_like(losses) * present, None)


def test_a_weighting_of_ones_own_is_loaded():
    file = io.BytesIO()
    torch.save(OfOnesOwn({"depth": 2.0}), file)
    file.seek(0)
    assert repr(torch.load(file, weights_only=True)) == "OfOnesOwn(base_weights={'depth': 2.0})"


@pytest.mark.filterwarnings("ignore:Attribute 'weighting' is an instance of `nn.Module`")
@pytest.mark.parametrize("logger", [CSVLogger, TensorBoardLogger])
def test_loggers_show_hyper_parameters(logger, tmp_path):
    tasks = {"depth": Task("gaussian"), "kind": "categorical"}
    for weighting in (UncertaintyWeighting({"depth": 1.0}), GradientBalancing("pcgrad", UncertaintyWeighting())):
        own = logger(tmp_path)
        fit(Saving(weighting, tasks), max_epochs=1, logger=own)
        shown = own.experiment.hparams if logger is CSVLogger else own.hparams
        assert {"weighting", "tasks", "lr"} <= set(shown)
        own.save()


def test_loggers_show_what_a_weighting_was_given():
    """A module can be called, and what can be called is shown by its name."""
    for weighting in (UncertaintyWeighting({"depth": 1.0}), GradientBalancing("mgda", UncertaintyWeighting())):
        (shown,) = _sanitize_callable_params(_flatten_dict(_convert_params({"weighting": weighting}))).values()
        assert shown == repr(weighting)
    assert UncertaintyWeighting.__name__ == "UncertaintyWeighting"
