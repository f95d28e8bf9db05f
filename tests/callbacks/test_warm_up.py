"""The warm-up: σ stands still, or weights blend, for as long as was said, under every mode of the Trainer."""

import copy
import math
import pickle

import lightning.pytorch as lightning_pytorch
import pytest
import pytorch_lightning
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.plugins import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    MultiTaskMixin,
    UncertaintyMonitor,
    UncertaintyWarmUp,
    UncertaintyWeighting,
)
from tests._nets import Owning, Plain, dicts, tensors, trainer, tuples
from tests._versions import exact_resume
from tests.callbacks._drawn import BATCHES, BLEND, CASES, HOLD, Drawn, batch_of, fit

pytestmark = pytest.mark.filterwarnings("ignore:a warm-up should be shorter than the fit")

START = {"depth": 1.0, "kind": -0.5}
WEIGHTS = {"depth": 0.5 * math.exp(-1.0), "kind": math.exp(0.5)}  # those of START


def train(net, *callbacks, ckpt_path=None, **options):
    """Fit without validation; return the Trainer."""
    fitted = trainer(**{"callbacks": list(callbacks), "limit_val_batches": 0, "max_epochs": 3, **options})
    fitted.fit(net, ckpt_path=ckpt_path)
    return fitted


def twins(make, *weightings):
    """Modules that differ in their weighting alone."""
    nets = []
    for weighting in weightings:
        torch.manual_seed(0)
        nets.append(make(weighting))
    return nets


def network(net):
    return {name: value for name, value in tensors(net).items() if "weighting" not in name}


def weights(net):
    """Effective weights of every batch, by task."""
    return [row["weight"] for row in net.rows]


# -- hold --------------------------------------------------------------------------------------------------------------


class Manual(Drawn):
    """It steps the network and the log-variances with an optimizer each, or with one if `together`, and clips."""

    together = False

    def __init__(self, weighting=None):
        super().__init__(weighting)
        self.automatic_optimization = False

    def configure_optimizers(self):
        groups = self.parameter_groups(lr=1e-2)
        return [torch.optim.Adam(each, lr=1e-2) for each in ([groups] if self.together else [[g] for g in groups])]

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in optimizers:
            optimizer.step()

    def on_before_optimizer_step(self, optimizer):
        torch.nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], 0.1)


class Together(Manual):
    together = True


def scaled():
    return {"plugins": MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))}


MODES = {
    "plain": (Drawn, dict),
    "accumulated": (Drawn, lambda: {"accumulate_grad_batches": 2}),
    "clipped by norm": (Drawn, lambda: {"gradient_clip_val": 0.05}),
    "half precision": (Drawn, lambda: {"precision": "bf16-mixed"}),
    "scaled gradients": (Drawn, scaled),
    "manual": (Manual, dict),
    "manual, one optimizer": (Together, dict),
    "manual, scaled gradients": (Manual, scaled),
}


@pytest.mark.parametrize("mode", MODES)
def test_the_network_trains_as_under_the_fixed_weights_that_are_held(mode):
    make, options = MODES[mode]
    held, fixed = twins(make, UncertaintyWeighting(START), FixedWeighting(WEIGHTS))
    fitted = train(held, UncertaintyWarmUp(epochs=3), **options())
    train(fixed, **options())
    torch.testing.assert_close(network(held), network(fixed), rtol=1e-4, atol=1e-5)
    assert (held.task_weighting.offset == 0).all()
    assert held.task_weighting.log_variance.tolist() == list(START.values())
    assert all(held.task_weighting.offset not in optimizer.state for optimizer in fitted.optimizers)


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("length", [{"epochs": 1}, {"steps": 4}])
def test_the_hold_ends_after_its_epochs_or_optimizer_steps(length, accumulated):
    net = Drawn(UncertaintyWeighting(START))
    fitted = train(net, UncertaintyWarmUp(**length), accumulate_grad_batches=accumulated)
    steps = 3 * math.ceil(BATCHES / accumulated)
    held = length.get("steps", math.ceil(BATCHES / accumulated))
    state = fitted.optimizers[0].state[net.task_weighting.offset]
    assert state["step"] == steps - held  # Adam's moments begin after the hold
    sigmas = [row["sigma"]["depth"] for row in net.rows]
    batches = held if accumulated == 1 else {3: 5, 4: 7}[held]  # an epoch of five is 2 + 2 + 1
    assert len(set(sigmas[: batches + 1])) == 1  # that of the start
    assert len(set(sigmas[batches:])) == steps - held


@pytest.mark.filterwarnings("ignore:the log-variances are under weight decay")
def test_neither_decay_nor_momentum_reaches_what_is_held():
    net = Drawn(make=lambda groups: torch.optim.SGD([p for g in groups for p in g["params"]], 0.1, 0.9, weight_decay=1))
    with torch.no_grad():
        net.task_weighting.offset.fill_(0.5)
    fitted = train(net, UncertaintyWarmUp(steps=15))
    assert (net.task_weighting.offset == 0.5).all()
    assert net.task_weighting.offset not in fitted.optimizers[0].state


def test_a_task_whose_labels_come_after_the_hold_starts_then():
    class Late(Drawn):
        def task_losses(self, outputs, batch):
            if self.current_epoch < 2:
                batch["kind"] = torch.full_like(batch["kind"], -100)
            return super().task_losses(outputs, batch)

    net = Late()
    train(net, UncertaintyWarmUp(epochs=1))
    assert {tuple(row["sigma"]) for row in net.rows[: 2 * BATCHES]} == {("depth",)}
    first = net.rows[2 * BATCHES]
    assert first["sigma_gap"]["kind"] == pytest.approx(0, abs=1e-6)
    assert first["sigma"]["kind"] != net.rows[-1]["sigma"]["kind"]


# -- blend -------------------------------------------------------------------------------------------------------------


class Endless(IterableDataset):
    def __iter__(self):
        return iter(range(BATCHES))


SHARES = {  # λ of every batch
    "steps": ({"steps": 4}, {}, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1]),
    "accumulated steps": ({"steps": 4}, {"accumulate_grad_batches": 2}, [0, 0, 0.25, 0.25, 0.5, 0.75, 0.75, 1, 1, 1]),
    "an epoch": ({"epochs": 1}, {}, [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1, 1, 1]),
    "epochs": ({"epochs": 4}, {}, [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45]),
    "accumulated epochs": (
        {"epochs": 2},
        {"accumulate_grad_batches": 2},
        [0, 0, 0.2, 0.2, 0.4, 0.5, 0.5, 0.7, 0.7, 0.9],
    ),
    "epochs of unknown length": ({"epochs": 2}, {"unknown": True}, [0] * BATCHES + [0.5] * BATCHES),
}


@pytest.mark.parametrize("case", SHARES)
def test_weights_move_linearly_from_the_fixed_ones_to_the_own(case):
    length, options, shares = SHARES[case]

    blended = []

    class Net(Drawn):
        def train_dataloader(self):
            return DataLoader(Endless(), batch_size=None) if "unknown" in options else super().train_dataloader()

        def training_step(self, batch, batch_idx):
            blended.append(self.task_weighting.blend is not None)
            return super().training_step(batch, batch_idx)

    net = Net(FixedWeighting({"depth": 4.0}))
    warm_up = UncertaintyWarmUp(**length, blend_from={"depth": 0.1, "kind": 3.0})
    train(net, warm_up, max_epochs=2, **{key: value for key, value in options.items() if key != "unknown"})
    assert [row["depth"] for row in weights(net)] == pytest.approx([(1 - x) * 0.1 + x * 4.0 for x in shares], rel=1e-6)
    assert [row["kind"] for row in weights(net)] == pytest.approx([(1 - x) * 3.0 + x for x in shares], rel=1e-6)
    assert blended == [share < 1 for share in shares]  # later steps cost what they cost without it


def test_the_first_step_is_that_of_the_fixed_weights_and_sigma_is_learnt_meanwhile():
    blended, fixed = twins(Drawn, UncertaintyWeighting(START), FixedWeighting({"kind": 2.0}))
    train(blended, UncertaintyWarmUp(steps=100, blend_from={"kind": 2.0}), max_steps=1, max_epochs=1)
    train(fixed, max_steps=1, max_epochs=1)
    torch.testing.assert_close(network(blended), network(fixed), rtol=0, atol=0)
    train(blended, UncertaintyWarmUp(steps=100, blend_from={"kind": 2.0}))
    assert (blended.task_weighting.offset.abs() > 0.1).all()


def test_evaluation_has_the_weightings_own_weights():
    totals = []

    class Net(Drawn):
        def validation_step(self, batch, batch_idx):
            totals.append(super().validation_step(batch, batch_idx).item())
            losses = self.task_losses(self.task_outputs(self.trunk(batch["x"]).tanh()), batch)
            totals.append(self.fixed(losses))

        def fixed(self, losses):
            return sum(WEIGHTS[name] * (total / count).item() for name, (total, count) in losses.items())

    net = Net(FixedWeighting(WEIGHTS))
    loader = DataLoader([batch_of(9, 0)], batch_size=None)
    warm_up = UncertaintyWarmUp(epochs=9, blend_from={"depth": 30.0})
    trainer(max_epochs=2, callbacks=[warm_up]).fit(net, val_dataloaders=loader)
    assert totals[::2] == pytest.approx(totals[1::2], rel=1e-5)


def test_manual_optimization_blends():
    net = Manual()
    train(net, UncertaintyWarmUp(steps=20, blend_from={}))
    shares = [(2 * batch) / 20 for batch in range(11)]  # two optimizers, two steps
    own = [0.5 / row["sigma"]["depth"] ** 2 for row in net.rows]
    expected = [(1 - share) + share * weight for share, weight in zip(shares, own, strict=False)] + own[11:]
    assert [row["depth"] for row in weights(net)] == pytest.approx(expected, rel=1e-5)


# -- resume ------------------------------------------------------------------------------------------------------------


class Killed(Callback):
    """It fails in the third batch of the second epoch, within each warm-up, and saves what there is then."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == (1, 2):
            raise RuntimeError("killed")

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint("failed.ckpt")


@exact_resume
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize(
    "arguments", [HOLD, {"epochs": 2}, BLEND, {"steps": 8, "blend_from": {}}], ids=lambda arguments: str(arguments)
)
def test_resumed_equals_uninterrupted_wherever_it_stopped(arguments, accumulated, tmp_path):
    """To the last bit, from a checkpoint after a step, after an epoch, and of a fit that failed between two steps."""
    options = {"accumulate_grad_batches": accumulated}
    nets = twins(Drawn, *[UncertaintyWeighting() for _ in range(6)])
    whole, stopped, failed, *rest = nets
    train(whole, UncertaintyWarmUp(**arguments), **options)
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    train(stopped, UncertaintyWarmUp(**arguments), saver, **options, max_epochs=2, enable_checkpointing=True)
    with pytest.raises(RuntimeError, match="killed"):
        train(failed, UncertaintyWarmUp(**arguments), Killed(), **options)
    epoch = math.ceil(BATCHES / accumulated)
    for net, name in zip(rest, ["step=2", f"step={epoch}", "failed"], strict=True):
        train(net, UncertaintyWarmUp(**arguments), **options, ckpt_path=tmp_path / f"{name}.ckpt")
        torch.testing.assert_close(tensors(net), tensors(whole), rtol=0, atol=0)
        torch.testing.assert_close(net.rows, whole.rows[-len(net.rows) :], rtol=0, atol=0)
    assert len({len(net.rows) for net in rest}) == 3
    assert "UncertaintyWarmUp" not in torch.load(tmp_path / "step=2.ckpt")["callbacks"]


# -- its end -----------------------------------------------------------------------------------------------------------


class Interrupter(Callback):
    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        assert pl_module.task_weighting.blend is not None
        if batch_idx == 2 and self.error:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError("failed"), KeyboardInterrupt()], ids=repr)
def test_no_blend_is_left_behind(error):
    net, other = twins(Drawn, UncertaintyWeighting(START), UncertaintyWeighting(START))
    try:
        train(net, UncertaintyWarmUp(epochs=9, blend_from={}), Interrupter(error))
    except (RuntimeError, SystemExit) as raised:
        assert error is not None and raised is not None  # noqa: PT017, PT018
    assert net.task_weighting.blend is None
    other.load_state_dict(net.state_dict())
    net.rows.clear()
    for each in (net, other):  # a second fit, without the callback
        train(each)
    torch.testing.assert_close(tensors(net), tensors(other), rtol=0, atol=0)
    torch.testing.assert_close(net.rows, other.rows, rtol=0, atol=0)


def test_the_same_trainer_goes_on_counting():
    warm_up = UncertaintyWarmUp(epochs=2)
    net = Drawn(UncertaintyWeighting(START))
    fitted = trainer(max_epochs=1, callbacks=[warm_up], limit_val_batches=0)
    for _ in range(3):
        fitted.fit(net)
        fitted.fit_loop.max_epochs += 1
    assert len({row["sigma"]["depth"] for row in net.rows[: 2 * BATCHES + 1]}) == 1
    assert net.rows[2 * BATCHES]["sigma"] != net.rows[-1]["sigma"]


# -- company -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [True, False])
def test_the_monitor_logs_the_weights_that_trained(first):
    monitor, warm_up = UncertaintyMonitor(table=False), UncertaintyWarmUp(steps=4, blend_from={"depth": 0.5})
    callbacks = [warm_up, monitor] if first else [monitor, warm_up]
    trainer(max_epochs=1, callbacks=callbacks).fit(Plain(FixedWeighting()), tuples())
    assert [row["weight/depth"] for row in monitor.history.rows] == pytest.approx([0.5, 0.625, 0.75, 0.875])


@pytest.mark.parametrize("lightning", [pytorch_lightning, lightning_pytorch])
def test_trainers_of_both_packages_take_it(lightning):
    class Net(MultiTaskMixin, lightning.LightningModule):
        losses, training_step, configure_optimizers = Plain.losses, Plain.training_step, Plain.configure_optimizers

        def __init__(self):
            lightning.LightningModule.__init__(self)
            self.depth, self.kind = torch.nn.Linear(4, 1), torch.nn.Linear(4, 3)
            self.register_tasks({"depth": "gaussian", "kind": "categorical"})

    net = Net()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "accelerator": "cpu", "max_epochs": 2}
    lightning.Trainer(callbacks=[UncertaintyWarmUp(epochs=2)], **quiet).fit(net, tuples())
    assert (net.task_weighting.offset == 0).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:jsonargparse")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:pytorch_lightning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning")
@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_command_lines_of_both_packages_take_it(package, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    monkeypatch.setattr("sys.argv", ["fit"])
    module = pytest.importorskip(f"{package}.cli")
    init = {"steps": 3, "blend_from": {"depth": 0.1}}
    config = {
        "callbacks": [{"class_path": "lightning_uncertainty.UncertaintyWarmUp", "init_args": init}],
        "accelerator": "cpu",
        "logger": False,
    }
    line = module.LightningCLI(
        LightningModule if package == "pytorch_lightning" else lightning_pytorch.LightningModule,
        run=False,
        subclass_mode_model=True,
        save_config_callback=None,
        seed_everything_default=False,
        args={"trainer": config, "model": {"class_path": f"{package}.demos.boring_classes.BoringModel"}},
    )
    [warm_up] = [callback for callback in line.trainer.callbacks if isinstance(callback, UncertaintyWarmUp)]
    assert (warm_up.epochs, warm_up.steps, warm_up.blend_from) == (None, 3, {"depth": 0.1})


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
def test_copies(copied):
    assert vars(copied(UncertaintyWarmUp(**BLEND))) == vars(UncertaintyWarmUp(**BLEND))


@pytest.mark.cells("tests.callbacks._drawn", "{case}")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, found):
    tolerance = 1e-5 if "shards" in case else 1e-11
    torch.testing.assert_close(found(case), fit(case), rtol=tolerance, atol=tolerance)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [{}, {"epochs": 1, "steps": 1}, {"epochs": 0}, {"steps": -3}], ids=str)
def test_its_length_is_one_number(length):
    with pytest.raises(ValueError, match=r"a length, at least 1, in epochs or in steps: found epochs=.*, steps="):
        UncertaintyWarmUp(**length)


@pytest.mark.parametrize("kind", [AnalyticUncertaintyWeighting, FixedWeighting])
def test_there_must_be_something_to_hold(kind):
    with pytest.raises(ValueError, match=rf"learn log-variances: found {kind.__name__}.*, which learns nothing; give"):
        train(Drawn(kind()), UncertaintyWarmUp(epochs=1))
    train(Drawn(kind()), UncertaintyWarmUp(epochs=1, blend_from={}), max_epochs=1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dept": 1.0}, r"blend_from should name registered tasks \(depth, kind\): found dept"),
        ({"depth": -1.0}, "blend_from should be finite numbers, at least 0: found -1.0 for task 'depth'"),
    ],
)
def test_fixed_weights_are_checked_before_the_first_step(given, message):
    net = Drawn()
    before = tensors(net)
    with pytest.raises(ValueError, match=message):
        train(net, UncertaintyWarmUp(epochs=1, blend_from=given))
    torch.testing.assert_close(tensors(net), before, rtol=0, atol=0, equal_nan=True)
    assert net.task_weighting.blend is None


def test_two_warm_ups_are_refused():
    with pytest.raises(ValueError, match="a Trainer should have one UncertaintyWarmUp: found several"):
        train(Drawn(), UncertaintyWarmUp(epochs=1), UncertaintyWarmUp(epochs=1, blend_from={}))


def test_a_module_without_tasks_is_told_what_is_missing():
    class Foreign(LightningModule):
        training_step = Plain.training_step

        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.ones(1))])

    class Empty(MultiTaskMixin, Foreign):
        pass

    with pytest.raises(TypeError, match=r"needs a MultiTaskMixin: found Foreign; write `class Foreign\(MultiTaskMixin"):
        trainer(callbacks=[UncertaintyWarmUp(epochs=1)]).fit(Foreign(), tuples())
    with pytest.raises(RuntimeError, match="check_setup needs tasks"):
        trainer(callbacks=[UncertaintyWarmUp(epochs=1)]).fit(Empty(), tuples())


def test_evaluation_alone_needs_no_warm_up():
    net = Owning()
    trainer(callbacks=[UncertaintyWarmUp(**BLEND)]).validate(net, dicts(), verbose=False)
    assert net.task_weighting.blend is None


@pytest.mark.parametrize(
    ("options", "lengths", "found"),
    [
        ({"epochs": 3}, {"max_epochs": 2}, "epochs=3 in a fit of 2 epochs, in which σ never moves"),
        ({"epochs": 3, "blend_from": {}}, {"max_epochs": 2}, "in which the weighting is never on its own"),
        ({"epochs": 3}, {"max_epochs": 3}, "epochs=3 in a fit of 3 epochs, in which σ never moves"),
        ({"epochs": 3}, {"max_epochs": 4}, None),
        ({"epochs": 3, "blend_from": {}}, {"max_epochs": 3}, None),  # all of the fit, on purpose
        ({"epochs": 3}, {"max_epochs": -1, "max_steps": 4}, "epochs=3 in a fit of 2 epochs"),
        ({"steps": 9}, {"max_epochs": 4}, "steps=9 in a fit of 8 steps"),
        ({"steps": 8}, {"max_epochs": 4}, "steps=8 in a fit of 8 steps"),
        ({"steps": 7}, {"max_epochs": 4}, None),
        ({"steps": 9}, {"max_epochs": 8, "accumulate_grad_batches": 2}, "steps=9 in a fit of 8 steps"),
        ({"steps": 9}, {"fast_dev_run": True}, None),
    ],
)
@pytest.mark.filterwarnings("always:a warm-up should be shorter than the fit")
def test_a_warm_up_that_is_longer_than_the_fit_is_told(options, lengths, found, recwarn):
    net = Owning(UncertaintyWeighting())
    trainer(callbacks=[UncertaintyWarmUp(**options)], **lengths).fit(net, dicts(16))
    told = [str(one.message) for one in recwarn if "a warm-up should" in str(one.message)]
    assert len(told) == (found is not None)
    assert all(found in text for text in told)


@pytest.mark.filterwarnings("error:a warm-up should be shorter than the fit")
def test_a_fit_of_unknown_length_is_told_nothing():
    class Endless(IterableDataset):
        def __iter__(self):
            return iter(batch_of(0, index) for index in range(4))

    fitted = trainer(callbacks=[UncertaintyWarmUp(steps=2)], max_epochs=3, limit_val_batches=0)
    fitted.fit(Drawn(UncertaintyWeighting()), DataLoader(Endless(), batch_size=None))
