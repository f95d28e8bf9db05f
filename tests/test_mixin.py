"""The mixin: registration, weighing, labels that are missing, checkpoints, guard rails."""

import copy
import inspect
import math
import pickle
import typing
import warnings

import lightning.pytorch as lightning_pytorch
import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities import CombinedLoader
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import MeanAbsoluteError, MetricCollection

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    MultiTaskMixin,
    Task,
    UncertaintyMonitor,
    UncertaintyWeighting,
    masked_sum,
)
from lightning_uncertainty.balancing import GradNorm
from lightning_uncertainty.likelihoods import Categorical, Gaussian, HeteroscedasticGaussian
from lightning_uncertainty.predictions import DeepEnsemble
from lightning_uncertainty.weightings import (
    ConstrainedUncertaintyWeighting,
    DynamicTaskPrioritization,
    DynamicWeightAverage,
    SmoothTchebycheff,
    SoftOptimalUncertaintyWeighting,
)
from tests._nets import Owning, Plain, columns, dicts, read_nothing, tensors, trainer, tuples
from tests.trainer._weightings import BALANCING, FOLLOWING, WEIGHTINGS

NAN = float("nan")
BATCH = tuple(columns().values())


def net_of(tasks, host=pytorch_lightning.LightningModule, **options):
    class Net(MultiTaskMixin, host):
        def __init__(self):
            super().__init__()
            self.register_tasks(tasks, **options)

    return Net()


# -- registration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a.b", "type", "train", "values", "1st", "a b", 3])
def test_unusable_names_are_refused(name):
    with pytest.raises(ValueError, match="a task's name should be"):
        net_of({name: "gaussian"})


def test_duplicate_empty_and_unknown_registrations_are_refused():
    with pytest.raises(ValueError, match="'depth' twice"):
        net_of([("depth", "gaussian"), ("depth", "laplace")])
    with pytest.raises(ValueError, match="at least one"):
        net_of({})
    with pytest.raises(ValueError, match=r"one of gaussian, laplace.*found 'gausian'"):
        net_of({"depth": "gausian"})
    with pytest.raises(ValueError, match=r"base_weights should name registered tasks \(depth\): found dept"):
        net_of({"depth": "gaussian"}, weighting=UncertaintyWeighting(base_weights={"dept": 1.0}))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            ["depth", "kind"],
            r"tasks should be given by name, .* as in \{.*\}: found \['depth', 'kind'\]",
        ),
        ("depth", "tasks should be given by name.*found 'depth'"),
        (3, "tasks should be given by name.*found 3"),
        ([("depth", "gaussian", 1.0)], "tasks should be given by name"),
        (None, "tasks should be at least one"),
        ({"depth": Gaussian}, r"a likelihood should be one of .*; write Gaussian\(...\)"),
        ({"depth": nn.MSELoss()}, r"a likelihood should be one of .* found MSELoss\(\)"),
    ],
)
def test_slips_in_tasks_are_told(tasks, message):
    with pytest.raises(ValueError, match=message):
        net_of(tasks)


@pytest.mark.parametrize("head", [nn.Linear, lambda features: features, "linear"])
def test_a_head_is_a_module(head):
    with pytest.raises(ValueError, match=r"a head should be a torch.nn.Module.*: found"):
        Task("gaussian", head=head)


@pytest.mark.parametrize("renamed", [["old"], "old", 3, {"old": ["depth"]}])
def test_slips_in_renamed_are_told(renamed):
    with pytest.raises(ValueError, match=r"renamed should .*\{'old': 'new'\}"):
        net_of({"depth": "gaussian"}, renamed=renamed)


@pytest.mark.parametrize(
    ("weighting", "message"),
    [
        (lambda: UncertaintyWeighting, r"weighting should be a Weighting: found .*as in UncertaintyWeighting\(\)"),
        (lambda: "uncertainty", "weighting should be a Weighting: found 'uncertainty'; make an object"),
        (lambda: {"depth": 1.0}, "weighting should be a Weighting: found"),
        (lambda: UncertaintyWeighting(start=[0.0]), r"start should be finite numbers: found \[0.0\] for task 'depth'"),
        (lambda: UncertaintyWeighting(start="data"), "start should be finite numbers: found 'data'"),
        (lambda: UncertaintyWeighting({"depth": None}), "start should be finite numbers: found None for task 'depth'"),
        (lambda: UncertaintyWeighting(start=torch.zeros(2)), "start should be finite numbers: found tensor"),
        (
            lambda: UncertaintyWeighting(bounds=(None, 2)),
            r"bounds .* -inf or inf for none: found \(None, 2\)",
        ),
        (
            lambda: UncertaintyWeighting(bounds={"depth": 3}),
            "bounds should be a lower and .* found 3 for task",
        ),
        (lambda: UncertaintyWeighting(bounds=3), "bounds should be a lower and .* found 3 for task"),
        (lambda: UncertaintyWeighting(bounds=()), r"bounds should be a lower and a higher .* found \(\) for task"),
        (lambda: UncertaintyWeighting(base_weights=[1.0]), "base_weights should be given by task name"),
        (
            lambda: UncertaintyWeighting(base_weights={"depth": "x"}),
            "base_weights should be finite numbers",
        ),
        (lambda: UncertaintyWeighting(shared=["depth"]), "shared should be groups of task names"),
        (lambda: UncertaintyWeighting(shared=3), "shared should be groups of task names"),
        (lambda: UncertaintyWeighting(memory="x"), "memory should be a number of steps"),
        (lambda: UncertaintyWeighting(restart="x"), "restart should be a number of steps"),
        (lambda: FixedWeighting([1.0]), "weights should be given by task name"),
        (lambda: FixedWeighting({"depth": None}), "weights should be finite numbers"),
        (lambda: SmoothTchebycheff(preferences=[1.0]), "preferences should be given by task name"),
        (lambda: SmoothTchebycheff("x"), "temperature should be positive and finite: found 'x'"),
        (lambda: SoftOptimalUncertaintyWeighting([1]), "temperature should be positive and finite"),
        (lambda: DynamicWeightAverage(None), "temperature should be positive and finite: found None"),
        (lambda: AnalyticUncertaintyWeighting("x"), r"decay should lie in \[0, 1\): found 'x'"),
        (lambda: DynamicTaskPrioritization(2.0, decay="x"), r"decay should lie in \[0, 1\): found 'x'"),
        (
            lambda: ConstrainedUncertaintyWeighting(mean_log_variance="x"),
            "mean_log_variance should be finite",
        ),
        (lambda: GradNorm("x"), "alpha should be at least 0"),
    ],
)
def test_slips_in_a_weighting_are_told(weighting, message):
    with pytest.raises(ValueError, match=message):
        net_of({"depth": "gaussian", "width": "gaussian"}, weighting=weighting())


def test_a_metric_called_loss_is_refused():
    metrics = MetricCollection({"loss": MeanAbsoluteError()})
    with pytest.raises(ValueError, match="a metric of task 'depth' should not be called 'loss'"):
        net_of({"depth": Task("gaussian", metrics=metrics)})


def test_registering_twice_is_refused_and_changes_nothing():
    net = Plain()
    before = net.task_weighting
    with pytest.raises(RuntimeError, match="registered once"):
        net.register_tasks({"other": "gaussian"})
    assert net.task_weighting is before
    assert list(net.sigma()) == ["depth", "kind"]


def test_registering_before_init_is_refused():
    class Early(MultiTaskMixin, pytorch_lightning.LightningModule):
        def __init__(self):
            self.register_tasks({"depth": "gaussian"})

    with pytest.raises(RuntimeError, match=r"super\(\)\.__init__\(\) before register_tasks"):
        Early()


@pytest.mark.parametrize("call", ["weigh", "task_step", "sigma", "parameter_groups", "check_setup", "take_row"])
def test_calls_before_registration_name_the_mend(call):
    class Bare(MultiTaskMixin, pytorch_lightning.LightningModule):
        pass

    arguments = {"weigh": ({},), "task_step": (None, {}, "train"), "parameter_groups": (1e-3,)}.get(call, ())
    with pytest.raises(RuntimeError, match=rf"{call} needs tasks: call self.register_tasks"):
        getattr(Bare(), call)(*arguments)


# -- the host class --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", [pytorch_lightning, lightning_pytorch])
@pytest.mark.parametrize("mixin_first", [True, False])
def test_both_packages_and_both_orders_of_bases(package, mixin_first):
    bases = (MultiTaskMixin, package.LightningModule) if mixin_first else (package.LightningModule, MultiTaskMixin)
    body = {
        name: Plain.__dict__[name] for name in ("losses", "training_step", "validation_step", "configure_optimizers")
    }

    def init(self):
        package.LightningModule.__init__(self)
        self.depth, self.kind = nn.Linear(4, 1), nn.Linear(4, 3)
        self.register_tasks({"depth": "gaussian", "kind": "categorical"})

    net = type("Net", bases, {"__init__": init, **body})()
    fit = trainer(package, max_epochs=1, callbacks=[UncertaintyMonitor()])
    fit.fit(net, tuples(), tuples())
    assert set(fit.callback_metrics) >= {"sigma/depth", "weight/kind", "val/depth/loss", "val/balanced_loss"}
    assert all(math.isfinite(value) for value in net.sigma().values())


def test_the_mixin_has_no_init_and_overrides_no_hook():
    own = {name for name in vars(MultiTaskMixin) if not name.startswith("__")}
    for package in (pytorch_lightning, lightning_pytorch):
        assert own.isdisjoint(dir(package.LightningModule))
    assert "__init__" not in vars(MultiTaskMixin)


def test_the_hosts_type_hints_and_hyper_parameters_are_intact(tmp_path):
    class Net(Plain):
        def __init__(self, width: int = 4, kinds: dict | None = None) -> None:
            super().__init__()
            self.save_hyperparameters()

    assert typing.get_type_hints(Net.__init__)["width"] is int
    assert list(inspect.signature(Net).parameters) == ["width", "kinds"]
    net = Net(width=7, kinds={"depth": "gaussian"})
    assert dict(net.hparams) == {"width": 7, "kinds": {"depth": "gaussian"}}
    fit = trainer(max_epochs=1)
    fit.fit(net, tuples())
    fit.save_checkpoint(tmp_path / "net.ckpt")
    again = Net.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert again.hparams.width == 7
    assert again.sigma() == net.sigma()


def test_any_hook_may_be_overridden_without_super():
    hooks = [
        "on_fit_end",
        "on_fit_start",
        "on_train_start",
        "on_train_batch_end",
        "on_train_epoch_end",
        "on_validation_end",
    ]
    net = type("Net", (Plain,), dict.fromkeys(hooks, lambda self, *_: None))()
    fit = trainer(callbacks=[UncertaintyMonitor()])
    fit.fit(net, tuples(), tuples())
    assert net.task_weighting.offset.count_nonzero() == 2
    assert "sigma/depth" in fit.callback_metrics


def test_deepcopy_and_pickle_after_training_steps():
    net = Plain()
    net.training_step(BATCH, 0).backward()
    for again in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert again.sigma() == net.sigma()
        assert again.take_row() == copy.deepcopy(net).take_row()


# -- weigh -----------------------------------------------------------------------------------------------------------


def test_weigh_is_kendalls_sum_and_takes_the_dict_in_any_order():
    net = Plain(UncertaintyWeighting(start={"depth": 0.4, "kind": -0.3}))
    losses = net.losses(BATCH)
    expected = 0.5 * math.exp(-0.4) * losses["depth"] + 0.2 + math.exp(0.3) * losses["kind"] - 0.15
    torch.testing.assert_close(net.weigh(losses), expected)
    torch.testing.assert_close(net.weigh(dict(reversed(losses.items()))), expected)


def test_pairs_means_and_none_mean_what_they_say():
    net = Plain(FixedWeighting())
    total = net.weigh({"depth": (torch.tensor(6.0), torch.tensor(4.0)), "kind": (torch.tensor(1.0), 2)})
    assert total.item() == 2.0
    assert net.weigh({"depth": torch.tensor(1.5), "kind": None}).item() == 1.5
    assert net.weigh({"depth": None, "kind": (torch.tensor(float("nan")), 0)}).item() == 0.0


def test_the_weighting_hears_of_how_many_labels_losses_are():
    """Observed elements, whatever the sum of their weights is; a mean is of who knows how many."""
    weights = (0.01, 0.02, 0.03)
    tasks = {
        "weighted": Task(Categorical(class_weights=weights), target="kind"),
        "plain": Task("categorical", target="kind"),
        "missing": "gaussian",
        "mean": "gaussian",
    }
    net = net_of(tasks)
    batch = {"kind": torch.tensor([0, 1, 2, -100, 2]), "missing": torch.full((5,), NAN)}
    outputs = {name: torch.randn(5, 3) for name in ("weighted", "plain")}
    losses = net.task_losses(outputs | {"missing": torch.zeros(5)}, batch)
    net.weigh(losses | {"mean": torch.tensor(2.0)})
    assert net.task_weighting.labels.tolist() == [4, 4, 0, 32]
    assert net.task_weighting.started.tolist() == [0, 0, 0, 1]
    assert net.sigma()["weighted"] > 0
    net.weigh(dict.fromkeys(tasks) | {"plain": (torch.tensor(60.0), 30)})
    assert net.task_weighting.labels.tolist() == [4, 32, 0, 32]
    started = net.task_weighting.started.tolist()
    net.eval().weigh(net.task_losses(outputs, batch) | {"missing": None, "mean": None})
    assert net.task_weighting.started.tolist() == started == [0, 1, 0, 1]


def test_a_task_without_labels_neither_pulls_nor_drifts():
    net = Plain(UncertaintyWeighting(start={"depth": 0.3, "kind": -0.7}))
    total = net.weigh({"depth": torch.tensor(2.0), "kind": None})
    assert total.item() == pytest.approx(0.8908182206817179)  # ½ e^-0.3 · 2 + ½ · 0.3
    total.backward()
    assert net.task_weighting.offset.grad.tolist() == pytest.approx([-0.24081822068171788, 0.0])


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"depth": torch.tensor(1.0), "knd": torch.tensor(1.0)}, r"among depth, kind: found knd"),
        ({"depth": torch.tensor(1.0)}, "found none for kind; give None"),
        ({"depth": torch.tensor([1.0]), "kind": torch.tensor(1.0)}, r"0-dimens.*found a tensor \[1\] for task 'depth'"),
        ({"depth": 1.0, "kind": torch.tensor(1.0)}, "found a float for task 'depth'"),
        ({"depth": (torch.ones(2), 2), "kind": None}, r"found \(a tensor \[2\], a int\) for task 'depth'"),
        ({"depth": torch.tensor(-1.0), "kind": torch.tensor(1.0)}, "'depth' should be finite and at least 0: found -1"),
        ({"depth": torch.tensor(1.0), "kind": torch.tensor(float("nan"))}, "'kind' should be finite.*found nan"),
        ({"depth": torch.tensor(1.0), "kind": torch.tensor(float("inf"))}, "'kind' should be finite.*found inf"),
        *(
            ({"depth": torch.tensor(1.0), "kind": (torch.tensor(1.0), count)}, "'kind' should be finite.*found nan")
            for count in (-1, NAN, math.inf, -math.inf)
        ),
    ],
)  # fmt: skip
@pytest.mark.parametrize("weighting", [UncertaintyWeighting, AnalyticUncertaintyWeighting, FixedWeighting])
def test_bad_losses_are_refused_before_any_state_changes(weighting, losses, message):
    net = Plain(weighting())
    before = tensors(net)
    with pytest.raises(ValueError, match=message):
        net.weigh(losses)
    torch.testing.assert_close(tensors(net), before, equal_nan=True)
    assert net.take_row() == {}


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="one of train, val, test: found 'valid'"):
        Plain().weigh(Plain().losses(BATCH), stage="valid")


@pytest.mark.parametrize("stage", [None, "val"])
def test_evaluation_changes_no_training_state(stage):
    net = Plain(AnalyticUncertaintyWeighting())
    net.training_step(BATCH, 0)
    before = tensors(net)
    net.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # self.log without a Trainer
        total = net.weigh(net.losses(tuple(columns().values())), stage=stage)
    assert total.isfinite()
    torch.testing.assert_close(tensors(net), before)


class Reads(TorchDispatchMode):
    """Counts the reads of a tensor's value by the host."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        reads = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default)
        self.count += func in reads
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weighting", [UncertaintyWeighting, AnalyticUncertaintyWeighting, FixedWeighting])
def test_a_step_reads_a_few_values_on_eager_cpu_and_none_elsewhere(weighting, monkeypatch):
    def reads_of_a_step(net):
        losses = net.losses(BATCH)
        with Reads() as reads:
            net.weigh(losses)
        return reads.count

    net = Plain(weighting())
    net.weigh(net.losses(BATCH))  # every task has its start from here on
    assert 0 < reads_of_a_step(net) < 8
    read_nothing(monkeypatch)
    off = Plain(weighting())
    off.check_setup()
    assert [reads_of_a_step(off) for _ in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("weighting", [UncertaintyWeighting, AnalyticUncertaintyWeighting, FixedWeighting])
def test_elsewhere_than_on_eager_cpu_no_value_is_read(weighting, monkeypatch):
    """Tensors without values stand for those of a device: any read of one raises."""
    read_nothing(monkeypatch)
    net = Owning(weighting())
    net.check_setup()  # names are compared once a fit
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        batch = {name: mode.from_tensor(column) for name, column in columns(missing=True).items()}
        for _ in range(3):
            net.task_step(net.trunk(batch["x"]), batch, "train").backward()
        with pytest.raises(DataDependentOutputException):
            net.take_row()  # on logging steps, one is


def test_elsewhere_than_on_eager_cpu_a_bad_loss_is_told_with_the_next_row(monkeypatch):
    monkeypatch.setattr("lightning_uncertainty.mixin.reads_values", lambda device: False)
    net = Plain()
    net.weigh({"depth": torch.tensor(1.0), "kind": torch.tensor(float("nan"))})
    net.weigh({"depth": torch.tensor(1.0), "kind": torch.tensor(1.0)})
    with pytest.raises(ValueError, match="'kind' should be finite"):
        net.take_row()
    assert net.take_row() == {}


# -- learnt weights as constants ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighting", [name for name in WEIGHTINGS if name not in (*FOLLOWING, *BALANCING)])
def test_learnt_weights_as_constants_give_the_network_the_same_gradient(weighting):
    net = Plain(WEIGHTINGS[weighting]())
    trainer().fit(net, tuples())
    before = tensors(net)
    exported = net.fixed_weighting()
    torch.testing.assert_close(tensors(net), before, rtol=0, atol=0, equal_nan=True)
    constant = Plain(exported)
    constant.load_state_dict({name: value for name, value in net.state_dict().items() if "weighting" not in name})
    gradients = []
    for module in (net.eval(), constant.eval()):  # nothing learns between the two
        module.zero_grad()
        module.weigh(module.losses(BATCH)).backward()
        gradients.append([parameter.grad for parameter in (*module.depth.parameters(), *module.kind.parameters())])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("weighting", [UncertaintyWeighting, SoftOptimalUncertaintyWeighting])
def test_weights_that_the_next_batch_decides_are_no_constants(weighting):
    net = Plain(weighting())
    if weighting is SoftOptimalUncertaintyWeighting:
        trainer().fit(net, tuples())
    with pytest.raises(ValueError, match="the next batch decides those of depth, kind"):
        net.fixed_weighting()


# -- tasks that own their heads --------------------------------------------------------------------------------------


def test_task_losses_are_those_of_the_likelihood_over_observed_labels():
    net, batch = Owning(), columns(missing=True)
    outputs = net.task_outputs(net.trunk(batch["x"]))
    losses = {name: total / count for name, (total, count) in net.task_losses(outputs, batch).items()}
    seen = ~batch["depth"].isnan()
    torch.testing.assert_close(losses["depth"], F.mse_loss(outputs["depth"][seen, 0], batch["depth"][seen]))
    torch.testing.assert_close(losses["kind"], F.cross_entropy(outputs["kind"], batch["kind"]))


def test_missing_labels_leave_finite_gradients_in_every_parameter():
    net, batch = Owning(), columns(missing=True)
    batch["depth"] = None  # a loader that has run out
    net.task_step(net.trunk(batch["x"]), batch, "train").backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert net.task_heads["depth"].weight.grad.count_nonzero() == 0
    assert net.task_heads["kind"].weight.grad.count_nonzero() > 0


def test_targets_and_masks_by_key_and_by_function():
    tasks = {
        "near": Task("laplace", head=nn.Linear(4, 1), target="depth", mask="ok"),
        "far": Task("laplace", head=nn.Linear(4, 1), target=lambda b: b["depth"] * 2, mask=lambda b: ~b["ok"]),
    }
    net, batch = net_of(tasks), columns()
    batch["ok"] = torch.arange(32) < 20
    outputs = net.task_outputs(batch["x"])
    losses = net.task_losses(outputs, batch)
    near = (outputs["near"][:20, 0] - batch["depth"][:20]).abs().sum()
    far = (outputs["far"][20:, 0] - 2 * batch["depth"][20:]).abs().sum()
    torch.testing.assert_close(losses, {"near": (near, torch.tensor(20.0)), "far": (far, torch.tensor(12.0))})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": torch.zeros(7)}, r"task 'depth': labels of a gaussian task.*\[32\].*found \[7\]"),
        ({"kind": torch.zeros(32)}, r"task 'kind': labels of a categorical task.*found torch.float32"),
        ({"kind": torch.full((32,), 3)}, r"task 'kind': .*lie in \[0, 2\]: found 3 to 3"),
    ],
)
def test_bad_labels_name_the_task(change, message):
    net = Owning()
    before = tensors(net)
    with pytest.raises(ValueError, match=message):
        net.task_step(net.trunk(BATCH[0]), {**columns(), **change}, "train")
    torch.testing.assert_close(tensors(net), before, equal_nan=True)


def test_a_batch_without_the_label_and_a_task_without_a_head_name_the_mend():
    net = Owning()
    with pytest.raises(ValueError, match=r"labels of task 'depth' should be under 'depth'.*found keys x, kind"):
        net.task_step(net.trunk(BATCH[0]), {"x": BATCH[0], "kind": BATCH[2]}, "train")
    with pytest.raises(ValueError, match="found a list"):
        net.task_step(net.trunk(BATCH[0]), [1, 2], "train")
    with pytest.raises(RuntimeError, match="found none for depth, kind; give `Task"):
        Plain().task_step(None, {}, "train")


class Pick(nn.Module):
    def __init__(self, key):
        super().__init__()
        self.key = key

    def forward(self, features):
        return features[self.key]


class Making(Owning):
    """The network makes the outputs; one task may have a head all the same."""

    def __init__(self, heads):
        pytorch_lightning.LightningModule.__init__(self)
        self.trunk, self.kind = nn.Linear(4, 8), nn.Linear(8, 3)
        self.register_tasks({"depth": Task("gaussian", head=heads.get("depth")), "kind": "categorical"})


@pytest.mark.parametrize("heads", [{}, {"depth": nn.Sequential(Pick("z"), nn.Linear(8, 1))}])
def test_a_task_without_a_head_finds_its_output_among_the_features(heads):
    net = Making(heads)
    z = net.trunk(BATCH[0])
    made = {"kind": net.kind(z), **({"z": z} if heads else {"depth": z[:, :1]})}
    outputs = net.task_outputs(made)
    assert list(outputs) == ["depth", "kind"]
    assert outputs["kind"] is made["kind"]
    expected = heads["depth"](made) if heads else made["depth"]
    torch.testing.assert_close(outputs["depth"], expected)
    net.task_step(made, columns(), "train").backward()
    assert net.trunk.weight.grad.any()


def test_outputs_of_no_task_are_refused_and_missing_ones_named():
    net = Making({})
    made = {"kind": torch.ones(32, 3), "depth": torch.ones(32, 1)}
    with pytest.raises(ValueError, match=r"tasks should be among depth, kind: found width; register them all"):
        net.task_step({**made, "width": made["depth"]}, columns(), "train")
    with pytest.raises(RuntimeError, match=r"found none for depth; give .* hand over a mapping that has the outputs"):
        net.task_step({"kind": made["kind"]}, columns(), "train")


def test_metrics_see_observed_scalars_and_are_logged_by_stage_and_task():
    net = Owning()
    batches, fit = dicts(missing=True), trainer(max_epochs=1)
    fit.fit(net, batches, batches)
    table = columns_of(batches)
    with torch.no_grad():
        features = net.trunk(table["x"]).tanh()
        seen = ~table["depth"].isnan()
        error = (net.task_heads["depth"](features)[seen, 0] - table["depth"][seen]).abs().mean()
        logits, known = net.task_heads["kind"](features), table["kind"] >= 0
        hits = (logits.argmax(1) == table["kind"])[known].float().mean()
    logged = fit.callback_metrics
    torch.testing.assert_close(logged["val/depth/MeanAbsoluteError"], error)
    torch.testing.assert_close(logged["val/kind/MulticlassAccuracy"], hits)
    torch.testing.assert_close(logged["val/kind/loss"], F.cross_entropy(logits, table["kind"]))
    mse = F.mse_loss(net.task_heads["depth"](features)[seen, 0], table["depth"][seen])
    torch.testing.assert_close(logged["val/depth/loss"], mse)
    balanced = 0.5 * mse.log() + 0.5 * F.cross_entropy(logits, table["kind"]).log()
    torch.testing.assert_close(logged["val/balanced_loss"], balanced)
    assert not [key for key in logged if key.startswith("train/")]


def columns_of(loader):
    return {name: torch.cat([batch[name] for batch in loader]) for name in ("x", "depth", "kind")}


def test_train_metrics_on_request_and_collections():
    metrics = MetricCollection({"mae": MeanAbsoluteError()})

    class Net(Owning):
        def __init__(self):
            pytorch_lightning.LightningModule.__init__(self)
            self.trunk = nn.Linear(4, 8)
            self.register_tasks({"depth": Task("laplace", head=nn.Linear(8, 1), metrics=metrics)})

        def training_step(self, batch, batch_idx):
            return self.task_step(self.trunk(batch["x"]), batch, "train", train_metrics=True)

    fit = trainer(max_epochs=1)
    fit.fit(Net(), dicts())
    assert set(fit.callback_metrics) == {"train/depth/mae"}


def test_an_epoch_without_labels_logs_nothing_for_its_task_and_warns_once():
    batches = dicts()
    batches.dataset.table["depth"][:] = torch.nan
    net, fit = Owning(), trainer(max_epochs=3)
    with pytest.warns(UserWarning, match="no label of depth in this evaluation: left out of balanced_loss") as caught:
        fit.fit(net, dicts(), batches)
    assert sum("balanced_loss" in str(warning.message) for warning in caught) == 1
    assert {key for key in fit.callback_metrics if "loss" in key} == {"val/kind/loss", "val/balanced_loss"}
    torch.testing.assert_close(
        fit.callback_metrics["val/balanced_loss"], 0.5 * fit.callback_metrics["val/kind/loss"].log()
    )


def test_combined_loader_with_none_for_a_loader_that_ran_out():
    class Net(Plain):
        def training_step(self, batch, batch_idx):
            def loss(task):
                x, depth, kind = batch[task]
                return self.losses((x, depth, kind))[task]

            return self.weigh({task: None if batch[task] is None else loss(task) for task in ("depth", "kind")})

    net = Net()
    loader = CombinedLoader({"depth": tuples(32), "kind": tuples(8)}, mode="max_size")
    fit = trainer(max_epochs=1, callbacks=[UncertaintyMonitor()], log_every_n_steps=4)
    fit.fit(net, loader)
    assert set(fit.callback_metrics) >= {"sigma/depth", "sigma/kind"}
    assert all(math.isfinite(value) for value in net.sigma().values())


def test_several_validation_loaders_add_up_in_one_key():
    class Net(Plain):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            losses = self.losses(batch)
            self.weigh({"depth": losses["depth"], "kind": losses["kind"] if dataloader_idx else None}, stage="val")

    first, second, fit = tuples(24), tuples(8), trainer(max_epochs=1)
    net = Net()
    fit.fit(net, tuples(), [first, second])
    whole = [torch.cat(parts) for parts in zip(*[batch for loader in (first, second) for batch in loader], strict=True)]
    torch.testing.assert_close(fit.callback_metrics["val/depth/loss"], net.losses(whole)["depth"].detach())
    torch.testing.assert_close(fit.callback_metrics["val/kind/loss"], net.losses(next(iter(second)))["kind"].detach())


@pytest.mark.parametrize("kind", [Plain, Owning])
def test_a_net_that_was_validated_alone_can_be_fitted(kind):
    """Validation alone runs in inference mode, whose tensors cannot be updated elsewhere."""
    net, fit = kind(), trainer()
    loader = tuples if kind is Plain else dicts
    fit.validate(net, loader(), verbose=False)
    fit.fit(net, loader(), loader())
    fresh = trainer()
    fresh.validate(net, loader(), verbose=False)
    assert fresh.callback_metrics.keys() == {key for key in fit.callback_metrics if key.startswith("val/")}


def test_our_keys_can_be_monitored():
    stop = EarlyStopping("val/balanced_loss", patience=3)
    best = ModelCheckpoint(monitor="sigma/depth", mode="min", save_top_k=1)
    fit = trainer(max_epochs=2, callbacks=[UncertaintyMonitor(), stop, best], enable_checkpointing=True)
    fit.fit(Plain(), tuples(), tuples())
    assert stop.best_score == fit.callback_metrics["val/balanced_loss"]
    assert best.best_model_score is not None


def test_balanced_loss_orders_models_alike_whatever_the_units_are():
    values = []
    for scale in (1.0, 1000.0):
        torch.manual_seed(1)
        good, poor = torch.rand(50), 3 * torch.rand(50)
        net = net_of({"mass": "gaussian"})
        keys = [net.task_metrics["val/balanced_loss"].clone() for _ in range(2)]
        for metric, error in zip(keys, (good, poor), strict=True):
            metric.update(*(x[None] for x in masked_sum((scale * error).square())))
        values.append([metric.compute().item() for metric in keys])
    (a, b), (scaled_a, scaled_b) = values
    assert a < b
    assert scaled_b - scaled_a == pytest.approx(b - a, abs=1e-5)


# -- what the heads have made --------------------------------------------------------------------------------------


class Seeing(Owning):
    def __init__(self, weighting=None):
        super().__init__(weighting)
        self.seen = []

    def on_task_outputs(self, stage, outputs, batch):
        self.seen.append((stage, {name: output.detach().clone() for name, output in outputs.items()}, batch))


@pytest.mark.parametrize("weighting", ["UncertaintyWeighting", "GradientBalancing", "GradNorm", "FixedWeighting"])
def test_outputs_are_seen_in_every_step_of_every_stage_and_change_nothing(weighting):
    training, validation, found = dicts(missing=True), dicts(16), []
    for kind in (Seeing, Owning):
        torch.manual_seed(0)
        net, fit = kind(WEIGHTINGS[weighting]()), trainer(max_epochs=1, accumulate_grad_batches=2)
        fit.fit(net, training, validation)
        found.append((tensors(net), fit.callback_metrics))
        if kind is Seeing:
            assert [stage for stage, _, _ in net.seen] == 2 * ["val"] + 4 * ["train"] + 2 * ["val"]
            torch.testing.assert_close(net.seen[2][2], next(iter(training)), equal_nan=True)
            for _, outputs, batch in net.seen[-2:]:
                expected = net.task_outputs(net.trunk(batch["x"]).tanh())
                torch.testing.assert_close(outputs, {name: value.detach() for name, value in expected.items()})
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


def test_a_batch_that_is_refused_is_not_seen_and_one_that_is_skipped_is():
    net, batch = Seeing(), columns()
    with pytest.raises(ValueError, match="task 'kind'"):
        net.task_step(net.trunk(batch["x"]), {**batch, "kind": torch.full((32,), 3)}, "train")
    assert net.seen == []
    net._task_skips = True
    with pytest.warns(UserWarning, match="a training step is skipped"):
        net.task_step(net.trunk(batch["x"]) * torch.inf, batch, "train")
    assert [stage for stage, _, _ in net.seen] == ["train"]


def test_who_weighs_without_a_task_step_is_told_that_nobody_sees_outputs():
    class Weighing(Seeing):
        def training_step(self, batch, batch_idx):
            return self.weigh(self.task_losses(self.task_outputs(self.trunk(batch["x"]).tanh()), batch))

    with pytest.warns(UserWarning, match="on_task_outputs is called by task_step alone: found weigh called without it"):
        Weighing().training_step(columns(), 0)
    Seeing().training_step(columns(), 0)
    Owning().weigh({"depth": torch.tensor(1.0), "kind": torch.tensor(1.0)})


def test_a_head_beside_predictions_that_are_there_says_what_to_do():
    net, batch = Owning(), columns()
    outputs = {"depth": torch.zeros(len(batch["x"]), 1)}
    del net.task_heads["depth"]
    with pytest.raises(ValueError, match=r"found a mapping by task, .* 'kind' .*with_heads\(net, heads\) makes one"):
        net.task_step(outputs, batch, "train")


def test_heads_that_are_given_outputs_say_what_to_do_with_them():
    net, batch = Owning(), columns()
    outputs = net.task_outputs(net.trunk(batch["x"]))
    with pytest.raises(
        ValueError, match=r"should be given features: found a mapping by task, .* 'depth' .*call weigh\("
    ):
        net.task_step(outputs, batch, "train")
    total = net.weigh(net.task_losses(outputs, batch), "train")
    torch.testing.assert_close(total, net.task_step(net.trunk(batch["x"]), batch, "train"))


def test_features_may_be_by_task():
    heads = {name: nn.Sequential(Pick(name), nn.Linear(4, size)) for name, size in (("depth", 1), ("kind", 3))}
    net = net_of({"depth": Task("gaussian", heads["depth"]), "kind": Task("categorical", heads["kind"])})
    x = BATCH[0]
    outputs = net.task_outputs({"depth": x, "kind": 2 * x})
    torch.testing.assert_close(outputs["kind"], heads["kind"][1](2 * x))


# -- checkpoints -----------------------------------------------------------------------------------------------------


def test_resume_equals_uninterrupted(tmp_path):
    def run(epochs, net, **options):
        fit = trainer(max_epochs=epochs)
        fit.fit(net, loader, **options)
        return fit

    loader = tuples()
    state = Plain().state_dict()
    whole, half, rest = Plain(), Plain(), Plain()
    whole.load_state_dict(state)
    half.load_state_dict(state)
    run(4, whole)
    run(2, half).save_checkpoint(tmp_path / "half.ckpt")
    run(4, rest, ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(tensors(rest), tensors(whole), rtol=0, atol=0)
    assert rest.sigma() == whole.sigma()


class Other(Plain):
    """Depth's and kind's checkpoint read by a module with other tasks."""

    def __init__(self, tasks=("kind", "depth")):
        pytorch_lightning.LightningModule.__init__(self)
        self.depth, self.kind = nn.Linear(4, 1), nn.Linear(4, 3)
        self.register_tasks({name: "categorical" if name == "kind" else "gaussian" for name in tasks})


def test_reordered_tasks_load_by_name_and_cannot_resume_the_optimizer(tmp_path):
    net, fit = Plain(), trainer(max_epochs=1)
    fit.fit(net, tuples())
    fit.save_checkpoint(tmp_path / "net.ckpt")
    other = Other.load_from_checkpoint(tmp_path / "net.ckpt", weights_only=True)
    assert list(other.sigma()) == ["kind", "depth"]
    assert other.sigma() == net.sigma()
    trainer(max_epochs=1).fit(other, tuples())  # with a fresh optimizer
    with pytest.raises(RuntimeError, match="checkpoint of other tasks cannot be resumed"):
        trainer(max_epochs=3, callbacks=[UncertaintyMonitor()]).fit(Other(), tuples(), ckpt_path=tmp_path / "net.ckpt")


def test_added_and_removed_tasks_are_told_in_one_warning():
    net = Plain()
    net.training_step(BATCH, 0)
    other = Other(("normals", "depth"))
    with pytest.warns(UserWarning, match="knows the tasks depth, kind: normals start anew; kind are dropped") as caught:
        other.load_state_dict(net.state_dict())
    assert len(caught) == 1
    assert other.sigma()["depth"] == net.sigma()["depth"]
    assert math.isnan(other.sigma()["normals"])


class Renamed(Owning):
    """`Owning`, whose tasks had other names in its checkpoints."""

    def __init__(self, renamed=None):
        pytorch_lightning.LightningModule.__init__(self)
        self.trunk = nn.Linear(4, 8)
        tasks = {
            "range": Task("gaussian", head=nn.Linear(8, 1), target="depth"),
            "kind": Task("categorical", head=nn.Linear(8, 3)),
        }
        self.register_tasks(tasks, renamed=renamed)


def test_a_run_resumes_under_new_names(tmp_path):
    """σ, heads and the optimizer's state go on as if the task had always been called so."""
    loader, old = dicts(), Owning()
    state = {key.replace("task_heads.depth", "task_heads.range"): value for key, value in tensors(old).items()}
    fit = trainer(max_epochs=2)
    fit.fit(old, loader)
    fit.save_checkpoint(tmp_path / "old.ckpt")
    whole, rest = Renamed(), Renamed({"depth": "range"})
    state["task_weighting._extra_state"] = whole.state_dict()["task_weighting._extra_state"]
    whole.load_state_dict(state)
    trainer(max_epochs=4).fit(whole, loader)
    trainer(max_epochs=4, callbacks=[UncertaintyMonitor()]).fit(rest, loader, ckpt_path=tmp_path / "old.ckpt")
    torch.testing.assert_close(tensors(rest), tensors(whole), rtol=0, atol=0)
    assert rest.sigma() == whole.sigma()


@pytest.mark.parametrize(
    ("renamed", "found"),
    [
        ({"depth": "length"}, "'depth' to 'length'"),
        ({"kind": "range"}, "'kind' to 'range'"),
        ({"kind": "kind", "depth": "range"}, "'kind' to 'kind'"),
    ],
)
def test_renamed_leads_from_older_names_to_tasks(renamed, found):
    with pytest.raises(ValueError, match=rf"registered tasks \(range, kind\): found {found}; write"):
        Renamed(renamed)


# -- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_tiny_and_huge_losses_stay_finite(size):
    net = net_of({"depth": "gaussian", "edge": "laplace"})
    for _ in range(3):
        total = net.weigh({name: torch.tensor(size, requires_grad=True) for name in ("depth", "edge")})
        total.backward()
    assert total.isfinite()
    assert net.sigma()["depth"] == pytest.approx(math.sqrt(size), rel=1e-4)
    assert net.sigma()["edge"] == pytest.approx(math.sqrt(2) * size, rel=1e-4)


def test_a_module_built_on_the_meta_device_starts_as_any_other():
    with torch.device("meta"):
        net = Plain(UncertaintyWeighting(start={"depth": 1.5}))
    net.to_empty(device="cpu")
    for module in net.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    net.training_step(BATCH, 0).backward()
    assert net.sigma()["depth"] == pytest.approx(math.exp(0.75))
    assert all(p.grad.isfinite().all() for p in net.parameters())


def test_class_weights_and_ignore_index_reach_the_step():
    weights = (1.0, 2.0, 0.5)
    head = nn.Linear(4, 3)
    net = net_of(
        {"kind": Task(Categorical(ignore_index=9, class_weights=weights), head=head)}, weighting=FixedWeighting()
    )
    x, label = torch.randn(8, 4), torch.tensor([0, 1, 2, 9, 1, 2, 9, 0])
    expected = F.cross_entropy(head(x), label, torch.tensor(weights), ignore_index=9)
    torch.testing.assert_close(net.task_step(x, {"kind": label}, "train"), expected)


# -- normalised likelihoods --------------------------------------------------------------------------------------------


def with_a_head_of_its_own(**options):
    return net_of({"depth": HeteroscedasticGaussian(), "kind": "categorical"}, **options)


@pytest.mark.parametrize("on_nonfinite", ["raise", "skip_step"])
@pytest.mark.parametrize("weighting", [UncertaintyWeighting, FixedWeighting])
def test_a_normalised_loss_may_be_negative(weighting, on_nonfinite):
    net = with_a_head_of_its_own(weighting=weighting(), on_nonfinite=on_nonfinite)
    depth = torch.tensor(-2.0, requires_grad=True)
    net.weigh({"depth": depth, "kind": torch.tensor(0.5)}).backward()
    assert depth.grad == 1.0
    assert net.take_row()["loss"]["depth"] == -2.0
    assert net.skipped_steps == 0
    assert "depth" not in net.sigma()
    with pytest.raises(ValueError, match="task 'kind' should be finite and at least 0: found -1"):
        net.weigh({"depth": depth, "kind": torch.tensor(-1.0)})


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
def test_a_normalised_loss_should_be_finite(value):
    net, losses = with_a_head_of_its_own(), {"depth": torch.tensor(value), "kind": torch.tensor(0.5)}
    with pytest.raises(ValueError, match="the loss of task 'depth' should be finite: found"):
        net.weigh(losses)
    skipping = with_a_head_of_its_own(on_nonfinite="skip_step")
    with pytest.warns(UserWarning, match="a training step is skipped"):
        assert skipping.weigh(losses).item() == 0
    assert skipping.skipped_steps == 1


def test_evaluation_takes_normalised_losses_as_they_are():
    net = with_a_head_of_its_own()
    net.log = lambda *args, **kwargs: None
    net.weigh({"depth": (torch.tensor(-6.0), 3.0), "kind": (torch.tensor(4.0), 2.0)}, stage="val")
    assert net.task_metrics["val/depth/loss"].compute() == -2.0
    assert net.task_metrics["val/balanced_loss"].compute().item() == pytest.approx(-2.0 + 0.5 * math.log(2.0))


def test_normalised_weights_are_exported_as_constants():
    net = with_a_head_of_its_own(weighting=UncertaintyWeighting(start={"kind": 0.0}, base_weights={"depth": 0.5}))
    assert repr(net.fixed_weighting()) == "FixedWeighting(weights={'depth': 0.5, 'kind': 1.0})"


# -- predicting --------------------------------------------------------------------------------------------------------


class Dropping(Owning):
    """Has a forward by task, BatchNorm and dropout."""

    def __init__(self, weighting=None):
        super().__init__(weighting)
        self.trunk = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))

    def forward(self, x):
        return self.task_outputs(self.trunk(x))


def dropping(seed=0, weighting=None):
    torch.manual_seed(seed)
    net = Dropping(weighting)
    trainer(max_epochs=1).fit(net, dicts())
    return net.train()


def test_predictions_leave_modes_statistics_and_weighting_as_they_were():
    net, x = dropping(), columns()["x"]
    before = tensors(net)
    one, many = net.predict_tasks(x), net.predict_tasks(x, samples=8, seed=1)
    assert all(part.training for part in net.modules())
    assert all(torch.equal(value.nan_to_num(), tensors(net)[name].nan_to_num()) for name, value in before.items())
    assert (one["depth"].epistemic == 0).all()
    assert (many["depth"].epistemic > 0).any()
    for name in one:
        torch.testing.assert_close(many[name][0], net.predict_tasks(x, samples=8, seed=1)[name][0])


def test_an_ensemble_has_the_mean_variance_of_its_members_and_their_spread():
    nets, x = [dropping(seed) for seed in range(3)], columns()["x"]
    nets[1].task_calibration.correct({"depth": 2.0, "kind": 3.0})
    found = nets[0].predict_tasks(x, ensemble=DeepEnsemble(nets))
    apart = [net.predict_tasks(x) for net in nets]
    means = torch.stack([own["depth"].mean for own in apart])
    variances = torch.stack([own["depth"].aleatoric.square() for own in apart])
    torch.testing.assert_close(found["depth"].aleatoric.square(), variances.mean(0))
    torch.testing.assert_close(found["depth"].epistemic, means.std(0, correction=0))
    torch.testing.assert_close(found["kind"].mean, torch.stack([own["kind"].mean for own in apart]).mean(0))


def test_predictions_that_cannot_be_made_are_refused():
    net, x = dropping(), columns()["x"]
    ensemble = DeepEnsemble([net, dropping(1)])
    with pytest.raises(ValueError, match="samples should be at least 1: found 0"):
        net.predict_tasks(x, samples=0)
    with pytest.raises(ValueError, match="forward should return outputs by task: found Tensor"):
        net.predict_tasks(x, forward=net.trunk)
    with pytest.raises(ValueError, match="should have dropout with p > 0"):
        Owning().predict_tasks(x, samples=2, forward=dict)
    with pytest.raises(ValueError, match="an ensemble should predict by its members alone"):
        net.predict_tasks(x, samples=2, ensemble=ensemble)
    other = net_of({"depth": "laplace"})
    with pytest.raises(ValueError, match="members of an ensemble should be modules with the tasks depth: found"):
        other.predict_tasks(x, ensemble=ensemble)


def test_an_unknown_sigma_is_told_with_the_mend():
    with pytest.warns(UserWarning, match="uncertainty of depth is NaN, as no σ is known: train with a weighting"):
        found = Dropping().predict_tasks(columns()["x"])
    assert found["depth"].total.isnan().all()
    assert not found["kind"].total.isnan().any()


def test_it_predicts_under_a_strategy_of_processes():
    class Net(Dropping):
        def predict_step(self, batch, batch_idx):
            return self.predict_tasks(batch["x"], samples=4)

    net = dropping()
    other = Net()
    other.load_state_dict(net.state_dict())
    batches = trainer(strategy="ddp").predict(other, dicts())
    assert all((batch["depth"].epistemic > 0).all() for batch in batches)
    torch.distributed.destroy_process_group()
