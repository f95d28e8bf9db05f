"""In a training step the host neither reads from the device nor copies to it."""

import pytest
import torch
from torch import nn

from lightning_uncertainty import MultiTaskMixin, Task
from lightning_uncertainty.balancing.solvers.gramian import SOLVERS
from lightning_uncertainty.tasks import HeteroscedasticHead, Rescale
from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting
from tests._nets import Owning, columns
from tests.architectures._architectures import ARCHITECTURES, TWO, Scenes, batch_of, make
from tests.gpu._cases import EVERY, LIKELIHOODS, OUTPUTS, labels_for
from tests.gpu._device import moved, on, only_gpu, ways_of_waiting, without_waiting

STEPS = 5


def do_not_wait(net, step, optimizer, device, steps=STEPS):
    """Run a step, which finds out what steps need not ask again, and then some that do not wait."""

    def whole():
        optimizer.zero_grad()
        step().backward()
        optimizer.step()

    if device == "meta":  # which cannot be asked
        net._task_fit.begin(net)
        net.task_weighting._step = 0
    with on(device):
        whole()
    if device != "meta":
        net.take_row()
    with without_waiting(device):
        for _ in range(steps):
            whole()


@ways_of_waiting
@pytest.mark.parametrize("name", EVERY)
def test_steps_of_every_weighting_do_not_wait(name, device):
    net = Owning(EVERY[name]()).to(device)
    batch = moved(columns(missing=True), device)
    optimizer = torch.optim.SGD(net.parameter_groups(lr=1e-2))
    do_not_wait(net, lambda: net.task_step(net.trunk(batch["x"]).tanh(), batch, "train"), optimizer, device)
    assert device == "meta" or set(net.take_row()["loss"]) == {"depth", "kind"}


class Likely(MultiTaskMixin, nn.Module):
    """A task of every likelihood, in each spelling of its options."""

    def __init__(self, weighting):
        super().__init__()
        heads = {name: nn.Linear(4, OUTPUTS[name]) for name in LIKELIHOODS}
        burning = HeteroscedasticHead(nn.Sequential(nn.Linear(4, 1), Rescale(3.0, 2.0)), nn.Linear(4, 1), burn_in=2)
        heads["HeteroscedasticGaussian"] = burning
        tasks = {name: Task(kind, head=heads[name]) for name, kind in LIKELIHOODS.items()}
        self.register_tasks(tasks, weighting=weighting)


@ways_of_waiting
@pytest.mark.parametrize("weighting", [UncertaintyWeighting, FixedWeighting])
def test_steps_of_every_likelihood_do_not_wait(weighting, device):
    net = Likely(weighting()).to(device)
    features = torch.randn(6, 4).to(device)
    batch = moved(labels_for(6), device)
    optimizer = torch.optim.SGD(net.parameter_groups(lr=1e-3))
    do_not_wait(net, lambda: net.task_step(features, batch, "train"), optimizer, device)
    if device != "meta":
        assert all(parameter.isfinite().all() for parameter in net.parameters())


@ways_of_waiting
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_steps_of_every_architecture_do_not_wait(name, device):
    net = Scenes(make(name), TWO).to(device)
    batch = moved(batch_of(), device)
    optimizer = torch.optim.SGD(net.parameter_groups(lr=1e-3))
    do_not_wait(net, lambda: net.training_step(batch, 0), optimizer, device, steps=1)


@pytest.mark.parametrize("tasks", [2, 3, 10])
@pytest.mark.parametrize("name", ["mgda", "pcgrad", "imtl_g"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=only_gpu)])
def test_solvers_do_not_wait(name, tasks, device):
    rows = torch.randn(tasks, 16, dtype=torch.float64)
    given = moved([rows @ rows.T, torch.ones(tasks, dtype=torch.float64), torch.tensor(3)], device)
    SOLVERS[name]()(*given)  # loads libraries
    with without_waiting(device):
        weights = SOLVERS[name]()(*given)
    assert weights.isfinite().all()
