"""A compiled model trains as the eager one, in few graphs without breaks, whatever labels are missing."""

import weakref
from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from pytorch_lightning import LightningModule
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskMixin, Task, UncertaintyMonitor, UncertaintyWeighting, masked_sum
from lightning_uncertainty.balancing._base import BalancingWeighting
from lightning_uncertainty.likelihoods import as_likelihood
from tests._nets import tensors, trainer
from tests._tiers import few
from tests.trainer._weightings import BALANCING, BY_EPOCH, LEARNT, WEIGHTINGS

TASKS = {"depth": ("gaussian", 1), "width": ("laplace", 1), "kind": ("categorical", 3), "edge": ("bernoulli", 1)}
TWO, THREE = ("depth", "kind"), ("depth", "width", "kind")
LOGGED_EVERY = 10
GRAPHS = {True: 2, False: 1}  # of a step, by whether log-variances are learnt
AROUND_A_BREAK = 4  # of a step that breaks where it tells the epoch
AROUND_BREAKS = {"GradNorm": 4, "GradientBalancing": 5}  # where it splits the features, and where it notes the total

each_weighting = pytest.mark.parametrize("weighting", few(WEIGHTINGS))
# where a step breaks, torch's compiler looks for .grad of what it has computed, and hides the warning from users
at_a_break = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


@pytest.fixture(autouse=True)
def _compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


class Owning(MultiTaskMixin, LightningModule):
    """Depth 2, four tasks."""

    def __init__(self, weighting, tasks, **options):
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        heads = {name: nn.Linear(8, TASKS[name][1]) for name in tasks}
        self.make(heads, weighting, options)

    def make(self, heads, weighting, options):
        tasks = {name: Task(TASKS[name][0], head=head) for name, head in heads.items()}
        self.register_tasks(tasks, weighting=weighting, **options)

    def forward(self, x):
        return self.trunk(x).tanh()

    def training_step(self, batch, batch_idx):
        return self.task_step(self(batch["x"]), batch, "train")

    def validation_step(self, batch, batch_idx):
        self.task_step(self(batch["x"]), batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=1e-2))


class Computing(Owning):
    """Depth 1: it computes its losses and hands over pairs."""

    def make(self, heads, weighting, options):
        self.heads = nn.ModuleDict(heads)
        self.register_tasks({name: TASKS[name][0] for name in heads}, weighting=weighting, **options)

    def losses(self, batch):
        z = self(batch["x"])
        out = {name: head(z) for name, head in self.heads.items()}
        seen = ~batch["depth"].isnan()
        error = (out["depth"][:, 0] - batch["depth"].nan_to_num()).square()
        count = (batch["kind"] != -100).sum()
        return {
            "depth": masked_sum(error, seen),
            "kind": (F.cross_entropy(out["kind"], batch["kind"], reduction="sum"), count),
        }

    def training_step(self, batch, batch_idx):
        return self.weigh(self.losses(batch))


def batches(count, tasks):
    """In 2^T batches every subset of the tasks is without labels once."""
    rng, dealt = torch.Generator().manual_seed(0), []
    for step in range(count):
        x, noise = torch.randn(8, 4, generator=rng), torch.randn(8, 2, generator=rng)
        batch = {"depth": 3 * x[:, 0] + noise[:, 0], "width": x[:, 1] + noise[:, 1]}
        batch |= {"kind": x[:, :3].argmax(1), "edge": (x[:, 3] > 0).float()}
        for index, name in enumerate(tasks):
            missing = slice(0, 8) if step >> index & 1 else slice(2 * index, 2 * index + 3)
            batch[name][missing] = -100 if name == "kind" else torch.nan
        dealt.append({"x": x, **{name: batch[name] for name in tasks}})
    return dealt


def fit(net, compiled=None, steps=40, epochs=1):
    """Train what is compiled, or else the module; return the module's tensors and the monitor's rows."""
    monitor = UncertaintyMonitor(table=False)
    fitting = trainer(max_epochs=epochs, callbacks=[monitor], log_every_n_steps=LOGGED_EVERY)
    dealt = DataLoader(batches(steps, tuple(net.task_likelihoods())), batch_size=None)
    fitting.fit(net if compiled is None else compiled, dealt)
    return tensors(net), monitor.history.rows


def make(kind, weighting, tasks=THREE, **options):
    torch.manual_seed(0)
    return kind(WEIGHTINGS[weighting](), tasks, **options)


def assert_same(found, expected):
    (state, rows), (expected_state, expected_rows) = found, expected
    assert len(rows) == len(expected_rows) > 0
    torch.testing.assert_close(state, expected_state, rtol=1e-5, atol=1e-6, equal_nan=True)
    for row, other in zip(rows, expected_rows, strict=True):
        assert row == pytest.approx(other, rel=1e-5, abs=1e-5)


def breaks_in(weighting):
    """Whether a compiled step breaks where it tells the epoch, or splits features."""
    return weighting.needs_epoch or isinstance(weighting, BalancingWeighting)


def compiled_module(net, backend):
    return torch.compile(net, backend=backend, fullgraph=not breaks_in(net.task_weighting))


def compiled_forward(net, backend):
    net.compile(backend=backend, fullgraph=True)
    return net


COMPILED = {"torch.compile(net)": compiled_module, "net.compile()": compiled_forward}


@at_a_break
@each_weighting
@pytest.mark.parametrize("how", COMPILED)
def test_a_compiled_fit_equals_an_eager_one(how, weighting):
    """Tasks that own their heads; labels are missing in part, of some tasks, of all."""
    net, backend = make(Owning, weighting), CompileCounterWithBackend("aot_eager")
    found = fit(net, COMPILED[how](net, backend))
    whole = how == "torch.compile(net)"
    around = AROUND_BREAKS.get(weighting, AROUND_A_BREAK if weighting in BY_EPOCH else GRAPHS[weighting in LEARNT])
    assert backend.frame_count == (around if whole else 1)
    assert len(counters["graph_break"]) == whole * (2 if weighting in BALANCING else weighting in BY_EPOCH)
    assert_same(found, fit(make(Owning, weighting)))


class Seeing(Owning):
    """Sums up what it sees of its outputs."""

    def make(self, *given):
        super().make(*given)
        self.register_buffer("seen", torch.zeros(()))

    def on_task_outputs(self, stage, outputs, batch):
        self.seen += outputs["depth"].detach().square().mean()


def test_outputs_are_seen_within_a_compiled_step():
    net, backend = make(Seeing, "UncertaintyWeighting", TWO), CompileCounterWithBackend("aot_eager")
    found = fit(net, torch.compile(net, backend=backend, fullgraph=True), 8)
    assert net.seen > 0
    assert not counters["graph_break"]
    assert_same(found, fit(make(Seeing, "UncertaintyWeighting", TWO), steps=8))


@at_a_break
@pytest.mark.parametrize("weighting", few(BY_EPOCH, BY_EPOCH[:1]))
def test_epochs_cost_no_graphs(weighting):
    net, backend = make(Owning, weighting), CompileCounterWithBackend("aot_eager")
    found = fit(net, compiled_module(net, backend), epochs=4)
    assert backend.frame_count == AROUND_A_BREAK
    assert_same(found, fit(make(Owning, weighting), epochs=4))


@pytest.mark.parametrize("weighting", ["ConstrainedUncertaintyWeighting", "AnalyticUncertaintyWeighting"])
def test_a_compiled_fit_of_computed_losses_equals_an_eager_one(weighting):
    """Pairs, of which some are of no labels."""
    net, backend = make(Computing, weighting, TWO), CompileCounterWithBackend("aot_eager")
    found = fit(net, torch.compile(net, backend=backend, fullgraph=True), 20)
    assert not counters["graph_break"]
    assert_same(found, fit(make(Computing, weighting, TWO), steps=20))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
@each_weighting
def test_the_gradient_is_of_the_step_that_is_compiled(weighting):
    """Backward comes after the step has changed its buffers; here it has the losses at hand to compute all anew."""
    tasks = {name: as_likelihood(TASKS[name][0]) for name in THREE}
    own, eager = (WEIGHTINGS[weighting]().bind(tasks) for _ in range(2))
    partitioned = "aot_eager_decomp_partition"  # it computes anew in backward what it can
    compiled = torch.compile(lambda x, present: own(x.exp(), present).total, backend=partitioned, fullgraph=True)
    for present in ([True, True, False], [True, False, False], [True, True, True], [False, True, True]):
        found = []
        for weigh in (compiled, lambda x, present: eager(x.exp(), present).total):
            x = torch.linspace(-1, 3, 3).mul(sum(present)).requires_grad_()
            weigh(x, torch.tensor(present)).backward()
            found.append(x.grad)
        torch.testing.assert_close(*found, rtol=1e-6, atol=0.0)
        for one, other in zip(own.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-5, atol=1e-6)
            assert torch.equal(one.grad == 0, other.grad == 0)  # Adam makes a whole step of any rounding error


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
@pytest.mark.parametrize("weighting", LEARNT)
def test_a_start_that_follows_the_first_labels_is_compiled_too(weighting):
    tasks = {name: as_likelihood(TASKS[name][0]) for name in THREE}
    own, eager = (WEIGHTINGS[weighting]().bind(tasks) for _ in range(2))

    def weigh(x, labels, each=own):
        each.count_labels(labels)
        return each(x.exp(), labels > 0).total

    compiled = torch.compile(weigh, backend="aot_eager_decomp_partition", fullgraph=True)
    for labels in ([5.0, 9.0, 0.0], [20.0, 0.0, 3.0], [20.0, 40.0, 3.0], [1.0, 1.0, 40.0], [9.0, 9.0, 9.0]):
        found = []
        for call in (compiled, partial(weigh, each=eager)):
            x = torch.linspace(-1, 3, 3).mul(sum(labels) / 20).requires_grad_()
            call(x, torch.tensor(labels)).backward()
            found.append(x.grad)
        torch.testing.assert_close(*found, rtol=1e-6, atol=0.0)
        torch.testing.assert_close(dict(own.named_buffers()), dict(eager.named_buffers()), equal_nan=True)
        torch.testing.assert_close(own.offset.grad, eager.offset.grad, rtol=1e-5, atol=1e-6)
    assert own.started.all()


def test_all_subsets_of_labels_share_few_graphs():
    """In 200 steps and 20 rows: one until tasks have started, and one since."""
    net, backend = make(Owning, "UncertaintyWeighting", tuple(TASKS)), CompileCounter()
    fit(net, torch.compile(net, backend=backend, fullgraph=True), 200)
    assert backend.frame_count == 2


def overwriting():
    """A backend that, as CUDA graphs do, writes over what a run returned when the next one begins."""
    returned = []

    def forward(graph, inputs):
        def run(*arguments):
            for alive in filter(None, (reference() for reference in returned)):
                alive.detach().fill_(-1)
            found = graph(*arguments)
            theirs = {each.untyped_storage().data_ptr() for each in arguments if isinstance(each, torch.Tensor)}
            own = [each for each in found if isinstance(each, torch.Tensor)]
            returned[:] = [weakref.ref(each) for each in own if each.untyped_storage().data_ptr() not in theirs]
            return found

        return make_boxed_func(run)

    def backward(graph, inputs):
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=forward, bw_compiler=backward, partition_fn=min_cut_rematerialization_partition)


@pytest.mark.parametrize("weighting", few(name for name in WEIGHTINGS if not breaks_in(WEIGHTINGS[name]())))
def test_nothing_is_kept_of_what_a_step_returns(weighting):
    net = make(Owning, weighting, TWO)
    found = fit(net, torch.compile(net, backend=overwriting(), fullgraph=True), 20)
    assert_same(found, fit(make(Owning, weighting, TWO), steps=20))


def test_without_a_monitor_nothing_is_kept_at_all():
    net = make(Owning, "UncertaintyWeighting", TWO)
    compiled = torch.compile(net, backend=overwriting(), fullgraph=True)
    trainer(max_epochs=1).fit(compiled, DataLoader(batches(8, TWO), batch_size=None))
    assert net.take_row() == {}


def test_none_costs_a_graph_for_every_subset():
    """Dynamo looks at the structure of a batch; masked labels leave it as it is."""
    net, backend = make(Owning, "FixedWeighting", TWO), CompileCounter()
    step = torch.compile(lambda batch: net.training_step(batch, 0), backend=backend)
    dealt = batches(8, TWO)
    graphs = []
    for missing in ((), ("depth",), ("kind",), TWO):
        for batch in dealt:
            step({**batch, **dict.fromkeys(missing)})
        graphs.append(backend.frame_count)
    assert graphs == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
def test_inductor_trains_as_eager_does():
    net, eager = (make(Owning, "ConstrainedUncertaintyWeighting", TWO) for _ in range(2))
    found, _ = fit(net, torch.compile(net, fullgraph=True), steps=LOGGED_EVERY - 1)
    expected, _ = fit(eager, steps=LOGGED_EVERY - 1)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_validation_compiles_around_what_is_logged():
    ends = []
    for compiled in (True, False):
        net = make(Owning, "FixedWeighting", TWO)
        fitting = trainer(max_epochs=1, callbacks=[UncertaintyMonitor(table=False)])
        loader = DataLoader(batches(4, TWO), batch_size=None)
        fitting.fit(torch.compile(net, backend="aot_eager") if compiled else net, loader, loader)
        ends.append({key: value.item() for key, value in fitting.callback_metrics.items()})
    assert "val/balanced_loss" in ends[0]
    assert ends[0] == pytest.approx(ends[1], rel=1e-5)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_step_is_skipped_in_a_compiled_fit_too(bad):
    """At the price of a graph break, as the loss is read."""
    ends = []
    for compiled in (True, False):
        net = make(Computing, "UncertaintyWeighting", TWO, on_nonfinite="skip_step")
        dealt = batches(12, TWO)
        dealt[4]["x" if bad != bad else "depth"][7] = bad
        fitting = trainer(max_epochs=1, callbacks=[UncertaintyMonitor(table=False)])
        model = torch.compile(net, backend="aot_eager") if compiled else net
        with pytest.warns(UserWarning, match="a training step is skipped"):
            fitting.fit(model, DataLoader(dealt, batch_size=None))
        assert net.skipped_steps == 1
        ends.append(tensors(net))
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)


# torch's compiler itself makes an instance of every autograd.Function that it meets
@pytest.mark.filterwarnings("ignore:.*autograd.function.Function.*should not be instantiated:DeprecationWarning")
def test_a_compiled_fit_within_bounds_equals_an_eager_one():
    ends = []
    for compiled in (True, False):
        torch.manual_seed(0)
        net = Owning(UncertaintyWeighting(bounds={"depth": (-1.0, 1.5)}), TWO)
        model = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
        ends.append(fit(net, model, LOGGED_EVERY - 1)[0])
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
