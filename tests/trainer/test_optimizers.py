"""Every optimizer of torch under `parameter_groups`, several optimizers, clipping."""

import inspect
import math

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty import MultiTaskMixin, UncertaintyMonitor, UncertaintyWeighting
from tests._nets import Plain, trainer, tuples

# -- optimizers --------------------------------------------------------------------------------------------------------


NO_GROUPS, NO_VECTORS, SPARSE = "LBFGS", "Muon", "SparseAdam"
OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if inspect.isclass(kind) and name not in {"Optimizer", NO_GROUPS, NO_VECTORS, SPARSE}
}
SLOW = {"Adadelta", "Adagrad"}  # their own rates shrink, or begin small
RESTLESS = {"RMSprop": 0.15}  # its steps are of a learning rate's length, 0.1, be the gradient rounding error alone


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_sigma_reaches_its_optimum_under_every_optimizer(name):
    """Losses of 9 and 0.05, constant: σ is 3 and √0.1 at the optimum, and begins at 1."""
    net = Plain(UncertaintyWeighting(start=0.0))
    optimizer = OPTIMIZERS[name](net.parameter_groups(lr=1e-2))
    gaps = []
    for _ in range(300):
        optimizer.zero_grad()
        net.weigh({"depth": torch.tensor(9.0), "kind": torch.tensor(0.05)}).backward()
        optimizer.step()
        gaps.append([abs(math.log(net.sigma()["depth"] / 3)), abs(math.log(net.sigma()["kind"] / math.sqrt(0.1)))])
    first, last = gaps[0], gaps[-1]
    assert first == pytest.approx([math.log(3), math.log(10) / 2], rel=1e-3)
    assert all(gap < start for start, gap in zip(first, last, strict=True))
    assert (max(last) < RESTLESS.get(name, 0.02)) == (name not in SLOW), last


@pytest.mark.parametrize(("name", "moved"), [("Adafactor", 0.01), ("Adadelta", 0.01), ("Adagrad", 0.2)])
def test_some_optimizers_hardly_move_sigma_at_a_small_rate(name, moved):
    """At lr=1e-3 Adam has closed a gap that these hardly begin to close in 300 steps."""
    left = {}
    for kind in (name, "Adam"):
        net = Plain(UncertaintyWeighting(start=0.0))
        optimizer = OPTIMIZERS[kind](net.parameter_groups(lr=1e-3))
        for _ in range(300):
            optimizer.zero_grad()
            net.weigh({"depth": torch.tensor(9.0), "kind": None}).backward()
            optimizer.step()
        left[kind] = math.log(3 / net.sigma()["depth"]) / math.log(3)
    assert left["Adam"] < 0.05
    assert 1 - moved < left[name] < 1


@pytest.mark.parametrize(("memory", "gradient"), [(20.0, 0.5), (None, 49.5)])
def test_radam_leaps_in_its_first_five_steps_under_the_published_gradient_alone(memory, gradient):
    """These steps are of the gradient's size times the rate."""
    net = Plain(UncertaintyWeighting(start=0.0, memory=memory))
    optimizer, path = torch.optim.RAdam(net.parameter_groups(lr=0.01)), []
    for _ in range(6):
        optimizer.zero_grad()
        net.weigh({"depth": torch.tensor(100.0), "kind": None}).backward()
        optimizer.step()
        path.append(net.sigma()["depth"])
    assert path[:2] == pytest.approx([1.0, math.exp(0.5 * 0.1 * gradient)], rel=1e-3)
    assert (max(path) > 2 * 10) is (memory is None)


class OnTwo(Plain):
    """Matrices and the rest under an optimizer each."""

    def __init__(self, matrices=torch.optim.SGD):
        super().__init__(UncertaintyWeighting(start=0.0))
        self.automatic_optimization = False
        self.matrices = matrices

    def training_step(self, batch, batch_idx):
        total = self.weigh(self.losses(batch))
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(total)
        for optimizer in self.optimizers():
            optimizer.step()
        return total

    def configure_optimizers(self):
        network, log_variances = self.parameter_groups(lr=0.1)
        matrices = [parameter for parameter in network["params"] if parameter.ndim == 2]
        network["params"] = [parameter for parameter in network["params"] if parameter.ndim != 2]
        return self.matrices(matrices, lr=0.1), torch.optim.SGD([network, log_variances])


def test_two_optimizers_train_as_one_and_leave_a_row_a_batch():
    class OnOne(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameter_groups(lr=0.1))

    one, two, rows = OnOne(UncertaintyWeighting(start=0.0)), OnTwo(), []
    two.load_state_dict(one.state_dict())
    loader = tuples()
    for net in (one, two):
        monitor = UncertaintyMonitor(table=False)
        trainer(callbacks=[monitor]).fit(net, loader)
        rows.append(monitor.history.rows)
    assert [row["step"] for row in rows[1]] == list(range(8))
    assert rows[0] == rows[1]
    torch.testing.assert_close(dict(two.named_parameters()), dict(one.named_parameters()), rtol=0, atol=0)


def test_muon_refuses_the_log_variances_and_takes_the_matrices():
    with pytest.raises(ValueError, match=r"only supports 2D parameters whereas we found .* torch.Size\(\[\d\]\)"):
        torch.optim.Muon(Plain().parameter_groups(lr=1e-3))
    net = OnTwo(torch.optim.Muon)
    before = net.depth.weight.clone()
    monitor = UncertaintyMonitor(table=False)
    trainer(callbacks=[monitor], max_epochs=10).fit(net, tuples())
    assert not torch.equal(net.depth.weight, before)
    first, last = monitor.history.rows[0], monitor.history.rows[-1]
    assert abs(last["sigma_gap/depth"]) < abs(first["sigma_gap/depth"]) / 2


def test_a_loss_with_an_optimizer_of_its_own_stays_out_of_the_weighting():
    """As in a GAN: one step of the weighted tasks, one of a critic that is no task."""

    class Net(Plain):
        def __init__(self):
            super().__init__(UncertaintyWeighting(start=0.0))
            self.critic = nn.Linear(1, 1)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            tasks, critic = self.optimizers()
            for optimizer, loss in (
                (critic, lambda: self.critic(self.depth(batch[0]).detach()).square().mean()),
                (tasks, lambda: self.weigh(self.losses(batch))),
            ):
                optimizer.zero_grad()
                self.manual_backward(loss())
                optimizer.step()

        def configure_optimizers(self):
            network, own = self.parameter_groups(lr=0.1)
            critic = set(self.critic.parameters())
            network["params"] = [parameter for parameter in network["params"] if parameter not in critic]
            return torch.optim.SGD([network, own]), torch.optim.SGD(critic, lr=0.1)

    class Alone(Plain):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameter_groups(lr=0.1))

    net, alone, loader = Net(), Alone(UncertaintyWeighting(start=0.0)), tuples()
    alone.load_state_dict({name: value for name, value in net.state_dict().items() if "critic" not in name})
    before, monitor = net.critic.weight.clone(), UncertaintyMonitor(table=False)
    trainer(callbacks=[monitor]).fit(net, loader)
    trainer().fit(alone, loader)
    assert net.sigma() == alone.sigma()
    assert not torch.equal(net.critic.weight, before)
    assert [row["step"] for row in monitor.history.rows] == list(range(8))


# -- clipping ----------------------------------------------------------------------------------------------------------


class Rooms(MultiTaskMixin, LightningModule):
    """Two regressions whose network is already good; labels of one are ten times as large."""

    def __init__(self, start, apart=False, memory=None):
        super().__init__()
        self.x = torch.randn(256, 4)
        self.labels = {"far": 10 * torch.randn(256), "near": torch.randn(256)}
        self.heads = nn.ModuleDict({"far": nn.Linear(4, 1), "near": nn.Linear(4, 1)})
        for head in self.heads.values():
            nn.init.zeros_(head.weight)
        weighting = UncertaintyWeighting(start=start, memory=memory)
        self.register_tasks(dict.fromkeys(self.heads, "gaussian"), weighting=weighting)
        self.apart = apart

    def training_step(self, batch, batch_idx):
        return self.weigh({name: F.mse_loss(self.heads[name](self.x)[:, 0], y) for name, y in self.labels.items()})

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        clip = self.clip_separately if self.apart else self.clip_gradients
        clip(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=0.0))


def factor_of(start, **options):
    """What clipping to a norm of 1 multiplies the network's gradient by, in the second step."""
    torch.manual_seed(0)
    net = Rooms(start, **options)
    trainer(max_epochs=1, gradient_clip_val=1.0).fit(net, torch.utils.data.DataLoader(range(2)))
    clipped = net.heads["far"].weight.grad.norm()
    net.zero_grad()
    net.training_step(None, 0).backward()
    return (clipped / net.heads["far"].weight.grad.norm()).item()


def test_clipping_by_the_joint_norm_takes_the_networks_step_under_the_published_gradient_while_sigma_is_far_off():
    """|dtotal/ds| is ½ |L/σ² - 1|: with σ = 1 and L = 100, about 50, beside which the network's norm is nothing."""
    assert factor_of(start=0.0) == pytest.approx(0.02, abs=0.003)
    assert factor_of(start=0.0, memory=20.0) == pytest.approx(1.0, rel=1e-5)
    assert factor_of(start=0.0, apart=True) == pytest.approx(1.0, rel=1e-5)
    assert factor_of(start=None) == pytest.approx(1.0, rel=1e-5)
