"""The ready module: what a hand-written one does, and its optimizer for any optimizer and scheduler."""

import warnings
from functools import partial

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.optim import SGD, Adafactor, Adagrad, Adam, AdamW, NAdam, RMSprop, lr_scheduler
from torch.utils.data import DataLoader
from torchmetrics import Accuracy, MeanAbsoluteError

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    GradientConflictMonitor,
    MultiTaskMixin,
    Task,
    UncertaintyMonitor,
    UncertaintyWeighting,
    deep_supervision,
)
from lightning_uncertainty.architectures import Architecture
from lightning_uncertainty.balancing import GradientBalancing, GradNorm
from lightning_uncertainty.module import MultiTaskModule, MultiTaskSteps
from tests._nets import Owning, columns, dicts, tensors, trainer, tuples
from tests.architectures._architectures import BRANCHING, KINDS, THREE, Scenes, batch_of, make


class Other(MultiTaskSteps, lightning.pytorch.LightningModule):
    pass


def arguments():
    """Build what the module takes, in the order in which `Owning` builds it: one seed, one network."""
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
    tasks = {
        "depth": Task("gaussian", head=nn.Linear(8, 1), metrics=MeanAbsoluteError()),
        "kind": Task("categorical", head=nn.Linear(8, 3), metrics=Accuracy("multiclass", num_classes=3)),
    }
    return {"backbone": backbone, "tasks": tasks, "inputs": "x"}


def module(cls=MultiTaskModule, **changes):
    torch.manual_seed(0)
    return cls(**{**arguments(), "optimizer": partial(Adam, lr=1e-2), **changes})


class Totals(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(outputs["loss"].item())


@pytest.mark.parametrize("weighting", [UncertaintyWeighting, AnalyticUncertaintyWeighting, FixedWeighting])
def test_it_trains_step_for_step_as_the_hand_written_module(weighting):
    torch.manual_seed(0)
    nets = [Owning(weighting()), module(weighting=weighting())]
    totals, metrics = [], []
    for net in nets:
        torch.manual_seed(1)
        loader, watch = dicts(missing=True), Totals()
        fitting = trainer(callbacks=[watch])
        fitting.fit(net, loader, loader)
        totals.append(watch.seen)
        metrics.append({key: value.item() for key, value in fitting.callback_metrics.items()})
    assert len(totals[0]) == 8
    assert totals[0] == totals[1]
    assert metrics[0] == metrics[1]
    assert {"val/balanced_loss", "val/depth/loss", "val/kind/MulticlassAccuracy"} <= set(metrics[0])
    for own, other in zip(*(tensors(net).values() for net in nets), strict=True):
        assert torch.equal(own.nan_to_num(), other.nan_to_num())


# -- optimizer and scheduler -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "lr", "decay"),
    [
        (AdamW, 1e-3, 0.01),  # torch's own defaults
        (partial(AdamW, lr=3e-3, weight_decay=0.1, foreach=True), 3e-3, 0.1),
        (partial(SGD, lr=0.1, momentum=0.9, weight_decay=1e-4), 0.1, 1e-4),
        (partial(Adagrad, lr=0.2), 0.2, 0.0),
        (partial(RMSprop, lr=0.3, weight_decay=0.2), 0.3, 0.2),
        (partial(NAdam, lr=0.4), 0.4, 0.0),
        (partial(Adafactor, lr=0.5, weight_decay=0.3), 0.5, 0.3),
    ],
)
def test_log_variances_have_ten_times_the_rate_of_any_optimizer_and_no_decay(optimizer, lr, decay):
    net = module(optimizer=optimizer)
    built = net.configure_optimizers()
    network, own = built.param_groups
    assert (network["lr"], network["weight_decay"]) == (lr, decay)
    assert (own["lr"], own["weight_decay"]) == (10 * lr, 0.0)
    assert own["params"] == list(net.task_weighting.parameters())
    assert len(network["params"]) + len(own["params"]) == len(list(net.parameters()))
    assert built.defaults["lr"] == lr


def test_a_learning_rate_that_is_a_tensor_is_not_shared():
    lr = torch.tensor(0.01)
    network, own = module(optimizer=partial(Adam, lr=lr)).configure_optimizers().param_groups
    torch.testing.assert_close(torch.stack([network["lr"], own["lr"], lr]), torch.tensor([0.01, 0.1, 0.01]))


def test_a_weighting_without_parameters_leaves_the_optimizer_as_it_is():
    (group,) = module(weighting=FixedWeighting(), optimizer=AdamW).configure_optimizers().param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-3, 0.01)


@pytest.mark.parametrize(
    "scheduler",
    [
        partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
        partial(lr_scheduler.MultiplicativeLR, lr_lambda=lambda epoch: 0.9),
        partial(lr_scheduler.StepLR, step_size=2),
        partial(lr_scheduler.LinearLR, start_factor=0.1, total_iters=3),
        partial(lr_scheduler.ConstantLR, factor=0.5, total_iters=2),
        partial(lr_scheduler.PolynomialLR, total_iters=6),
        partial(lr_scheduler.CosineAnnealingLR, T_max=5),
        partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.9)], milestones=[2]
        ),
    ],
)
def test_a_scheduler_moves_both_rates_alike(scheduler):
    alone = SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    truth = scheduler(alone)
    config = module(optimizer=partial(SGD, lr=0.1), lr_scheduler=scheduler).configure_optimizers()
    optimizer, ours = config["optimizer"], config["lr_scheduler"]["scheduler"]
    for _ in range(5):
        network, own = optimizer.param_groups
        assert network["lr"] == pytest.approx(alone.param_groups[0]["lr"])
        assert own["lr"] == pytest.approx(10 * network["lr"])
        for each in (alone, truth, optimizer, ours):
            with warnings.catch_warnings():  # torch's own, of SequentialLR
                warnings.simplefilter("ignore")
                each.step()


def test_reduce_on_plateau_follows_the_balanced_loss():
    net = module(
        optimizer=partial(SGD, lr=1e-12),  # nothing improves
        lr_scheduler=partial(lr_scheduler.ReduceLROnPlateau, patience=0, eps=0.0, threshold=1e-3),
    )
    assert net.configure_optimizers()["lr_scheduler"]["monitor"] == "val/balanced_loss"
    fitting = trainer(max_epochs=4)
    fitting.fit(net, dicts(), dicts())
    network, own = fitting.optimizers[0].param_groups
    assert network["lr"] == pytest.approx(1e-15)
    assert own["lr"] == pytest.approx(1e-14)


def test_lightnings_reduce_on_plateau_follows_what_it_names():
    from pytorch_lightning.cli import ReduceLROnPlateau

    config = module(lr_scheduler=partial(ReduceLROnPlateau, monitor="val/depth/loss")).configure_optimizers()
    assert config["lr_scheduler"]["monitor"] == "val/depth/loss"


def test_the_monitor_finds_nothing_wrong_with_any_decay():
    monitor = UncertaintyMonitor(table=False)
    fitting = trainer(callbacks=[monitor])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitting.fit(module(optimizer=partial(AdamW, weight_decay=0.3)), dicts())
    assert [str(warning.message) for warning in caught if "decay" in str(warning.message)] == []
    assert [group["weight_decay"] for group in fitting.optimizers[0].param_groups] == [0.3, 0.0]
    assert len(monitor.history.rows) == 8


# -- batches -----------------------------------------------------------------------------------------------------------


def test_predictions_need_no_labels_and_are_those_of_predict_tasks():
    net = module(weighting=UncertaintyWeighting(start=0.0))
    trainer(max_epochs=1).fit(net, dicts())
    net.eval()
    x = columns()["x"]
    batches = trainer().predict(net, torch.utils.data.DataLoader([{"x": row} for row in x], batch_size=8))
    assert len(batches) == 4
    whole = net.predict_tasks(x)
    for name, prediction in whole.items():
        for index, part in enumerate(prediction):
            torch.testing.assert_close(torch.cat([batch[name][index] for batch in batches]), part)
    torch.testing.assert_close(whole["depth"].mean, net(x)["depth"])
    torch.testing.assert_close(whole["kind"].mean, net(x)["kind"].softmax(1))
    torch.testing.assert_close(whole["depth"].aleatoric, torch.full((len(x), 1), net.sigma()["depth"]))


def test_samples_of_predict_step_are_passes_with_dropout():
    backbone = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5))
    net = module(backbone=backbone, weighting=UncertaintyWeighting(start=0.0), samples=8)
    trainer(max_epochs=1).fit(net, dicts())
    (depth,) = (batch["depth"] for batch in trainer().predict(net, dicts(n=8)))
    assert (depth.epistemic > 0).all()
    torch.testing.assert_close(depth.total.square(), depth.aleatoric.square() + depth.epistemic.square())
    with pytest.raises(ValueError, match="samples should be at least 1: found 0"):
        module(samples=0)


def test_functions_of_the_batch_take_tuples():
    fitted = []
    for named in (True, False):
        torch.manual_seed(0)
        given = arguments()
        if not named:
            given["inputs"] = lambda batch: batch[0]
            heads = {name: task.head for name, task in given["tasks"].items()}
            given["tasks"] = {
                "depth": Task("gaussian", head=heads["depth"], target=lambda batch: batch[1]),
                "kind": Task("categorical", head=heads["kind"], target=lambda batch: batch[2]),
            }
        net = MultiTaskModule(**given)
        torch.manual_seed(1)
        trainer().fit(net, dicts() if named else tuples())
        fitted.append(tensors(net))
    assert all(torch.equal(fitted[0][key], fitted[1][key]) for key in fitted[1])


def test_inputs_that_are_not_there_are_named():
    with pytest.raises(
        ValueError, match="inputs should be under 'image' in the batch: found keys x, depth, kind; name"
    ):
        module(inputs="image").training_step(columns(), 0)
    with pytest.raises(
        ValueError, match=r"inputs should be under 'x' in the batch: found a list; .* a function of the"
    ):
        module().training_step(list(columns().values()), 0)


def test_several_validation_loaders_count_together():
    net, whole, parts = module(), trainer(), trainer()
    table = dicts(n=32)
    halves = [torch.utils.data.Subset(table.dataset, range(start, start + 16)) for start in (0, 16)]
    whole.validate(net, table, verbose=False)
    parts.validate(net, [torch.utils.data.DataLoader(half, batch_size=8) for half in halves], verbose=False)
    for key in ("val/balanced_loss", "val/depth/MeanAbsoluteError"):
        assert parts.callback_metrics[key] == pytest.approx(whole.callback_metrics[key].item())


def test_tests_log_under_test():
    results = trainer().test(module(), dicts(), verbose=False)[0]
    assert {"test/balanced_loss", "test/depth/loss", "test/kind/MulticlassAccuracy"} <= set(results)


@pytest.mark.parametrize("tasks", [{"depth": "gaussian"}, {"depth": Task("gaussian")}])
def test_a_task_without_head_is_refused_when_the_module_is_built(tasks):
    given = arguments()
    given["tasks"] |= tasks
    with pytest.raises(ValueError, match=r"every task should have a head: found none for depth; give Task\(..., head"):
        MultiTaskModule(**given)


class Double(Architecture):
    """Two predictions for the depth, one for the kind, from what stands in no head."""

    def __init__(self):
        super().__init__({"depth_1": "depth", "depth": "depth", "kind": "kind"})
        self.trunk, self.one = nn.Linear(4, 8), nn.Linear(8, 1)
        self.heads = nn.ModuleDict({"depth": nn.Linear(8, 1), "kind": nn.Linear(8, 3)})

    def predict(self, inputs):
        z = self.trunk(inputs).tanh()
        return {"depth_1": self.one(z)[:, 0], "depth": self.heads["depth"](z)[:, 0], "kind": self.heads["kind"](z)}

    def shared_parameters(self):
        return list(self.trunk.parameters())


def test_an_architecture_is_a_backbone_whose_tasks_need_no_heads():
    net, tasks = Double(), {"depth": Task("gaussian", metrics=MeanAbsoluteError()), "kind": "categorical"}
    fitted = MultiTaskModule(net, deep_supervision(tasks, net.predictions), inputs="x")
    fitting = trainer(max_epochs=3)
    fitting.fit(fitted, dicts(), dicts())
    assert list(fitted.sigma()) == ["depth_1", "depth", "kind"]
    assert {"val/depth_1/loss", "val/depth/MeanAbsoluteError"} <= fitting.callback_metrics.keys()
    assert "val/depth_1/MeanAbsoluteError" not in fitting.callback_metrics
    assert list(fitted(torch.ones(2, 4))) == ["depth_1", "depth", "kind"]


def test_an_architecture_says_what_its_tasks_share():
    net = Double()
    fitted = MultiTaskModule(net, deep_supervision({"depth": "gaussian", "kind": "categorical"}, net.predictions))
    assert fitted.shared_parameters() == list(net.trunk.parameters())


class Parted(Scenes):
    """Parts the features by hand."""

    def training_step(self, batch, batch_idx):
        images = batch["image"]
        branches = self.split_features(self.net.features(images))
        return self.task_step(self.net.decode(branches, images.shape[-2:]), batch, "train")


@pytest.mark.parametrize("name", BRANCHING)
@pytest.mark.parametrize(
    "weighting",
    [lambda: GradientBalancing("mgda", UncertaintyWeighting()), GradNorm, UncertaintyWeighting],
    ids=["GradientBalancing", "GradNorm", "UncertaintyWeighting"],
)
def test_the_tasks_of_an_architecture_part_where_it_says(name, weighting):
    batches, found = [batch_of(seed) for seed in range(3)], []
    for ready in (False, True):
        net = make(name, THREE)
        if ready:
            tasks = {task: Task(KINDS[task]) for task in THREE}
            module = MultiTaskModule(net, tasks, weighting(), inputs="image", optimizer=partial(Adam, lr=1e-2))
        else:
            module = Parted(net, THREE, weighting())
        conflicts = GradientConflictMonitor(every_n_steps=1)
        trainer(max_epochs=1, callbacks=[conflicts]).fit(module, DataLoader(batches, batch_size=None))
        found.append((net.state_dict(), module.task_weighting.state_dict(), conflicts.history.rows))
    torch.testing.assert_close(*[state[:2] for state in found], rtol=0, atol=0)
    assert found[1][2]
    assert found[0][2] == found[1][2]


@pytest.mark.parametrize(
    "tasks",
    [
        {"depth": Task("gaussian"), "kind": Task("categorical")},
        {"depth_1": Task("gaussian"), "depth": Task("gaussian"), "kind": Task("categorical", head=nn.Linear(8, 3))},
        dict.fromkeys(("depth_1", "depth", "kind", "age"), Task("gaussian")),
        {task: Task("gaussian", head=nn.Linear(8, 1)) for task in ("depth_1", "depth", "kind")},
    ],
    ids=["a prediction without a task", "a head", "no prediction", "heads alone"],
)
def test_tasks_of_an_architecture_should_be_its_predictions(tasks):
    with pytest.raises(ValueError, match=r"tasks of Double should be its predictions, without heads.*deep_supervision"):
        MultiTaskModule(Double(), tasks)


# -- both packages, checkpoints ----------------------------------------------------------------------------------------


def test_two_lines_make_the_same_module_for_the_other_package():
    fitted = []
    for cls, package in ((MultiTaskModule, pytorch_lightning), (Other, lightning.pytorch)):
        net = module(cls)
        torch.manual_seed(1)
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        fitting = package.Trainer(
            max_epochs=2, accelerator="cpu", devices=1, enable_model_summary=False, log_every_n_steps=1, **quiet
        )
        fitting.fit(net, dicts(), dicts())
        assert isinstance(net, MultiTaskMixin)
        assert isinstance(net, package.LightningModule)
        fitted.append((tensors(net), fitting.callback_metrics["val/balanced_loss"]))
    assert fitted[0][1] == fitted[1][1]
    assert all(torch.equal(value, fitted[1][0][key]) for key, value in fitted[0][0].items())


@pytest.mark.parametrize(("cls", "package"), [(MultiTaskModule, pytorch_lightning), (Other, lightning.pytorch)])
def test_a_checkpoint_loads_with_backbone_and_tasks_given_again(cls, package, tmp_path):
    net = module(cls)
    fitting = package.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    fitting.fit(net, dicts())
    fitting.save_checkpoint(tmp_path / "net.ckpt")
    torch.manual_seed(5)  # another network, until it is loaded
    loaded = cls.load_from_checkpoint(tmp_path / "net.ckpt", **arguments())
    assert not loaded.hparams
    assert loaded.sigma() == net.sigma()
    x = columns()["x"]
    assert all(torch.equal(loaded(x)[name], output) for name, output in net(x).items())


def test_a_resumed_fit_equals_an_uninterrupted_one(tmp_path):
    halving = partial(lr_scheduler.StepLR, step_size=1, gamma=0.5)
    whole, first, resumed = (module(optimizer=partial(AdamW, lr=1e-2), lr_scheduler=halving) for _ in range(3))
    loader = dicts(missing=True)
    torch.manual_seed(1)
    trainer(max_epochs=4).fit(whole, loader)
    half = trainer(max_epochs=2)
    half.fit(first, loader)
    half.save_checkpoint(tmp_path / "half.ckpt")
    trainer(max_epochs=4).fit(resumed, loader, ckpt_path=tmp_path / "half.ckpt")
    for own, other in zip(tensors(whole).values(), tensors(resumed).values(), strict=True):
        assert torch.equal(own, other)


@pytest.mark.filterwarnings("ignore:the aleatoric uncertainty")
@pytest.mark.parametrize("cls", [MultiTaskModule, Other])
def test_what_is_not_given_beside_a_checkpoint_is_read_from_it(cls, tmp_path):
    fitting = trainer() if cls is MultiTaskModule else lightning.pytorch.Trainer(max_epochs=1, logger=False)
    made = module(cls, samples=3)
    fitting.strategy.connect(made)
    fitting.save_checkpoint(tmp_path / "net.ckpt")
    load = partial(cls.load_from_checkpoint, tmp_path / "net.ckpt", **{**arguments(), "inputs": None})
    batch = next(iter(dicts()))
    assert load().inputs_of(batch) is batch["x"]
    with pytest.raises(ValueError, match="should have dropout"):  # three samples of a network that has none
        load().predict_step(batch, 0)
    assert load(inputs=lambda batch: batch["x"] + 1).inputs_of(batch).equal(batch["x"] + 1)
    one = load(samples=1).predict_step(batch, 0)
    assert one["depth"].epistemic.eq(0).all()


def test_a_checkpoint_whose_inputs_were_a_function_asks_for_it(tmp_path):
    fitting = trainer()
    fitting.strategy.connect(module(inputs=lambda batch: batch["x"]))
    fitting.save_checkpoint(tmp_path / "net.ckpt")
    with pytest.raises(ValueError, match="inputs should be given beside a checkpoint whose inputs were a function"):
        MultiTaskModule.load_from_checkpoint(tmp_path / "net.ckpt", **{**arguments(), "inputs": None})
    assert MultiTaskModule.load_from_checkpoint(tmp_path / "net.ckpt", **arguments())._task_inputs == "x"


def test_a_checkpoint_from_before_says_nothing_of_the_inputs(tmp_path):
    fitting = trainer()
    fitting.strategy.connect(module())
    fitting.save_checkpoint(tmp_path / "net.ckpt")
    before = torch.load(tmp_path / "net.ckpt", weights_only=True)
    assert before.pop("multi_task_module") == {"inputs": "x", "samples": None}
    torch.save(before, tmp_path / "net.ckpt")
    loaded = MultiTaskModule.load_from_checkpoint(tmp_path / "net.ckpt", **{**arguments(), "inputs": None})
    with pytest.raises(ValueError, match="inputs should be under 'inputs'"):
        loaded.inputs_of(next(iter(dicts())))
