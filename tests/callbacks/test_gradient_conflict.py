"""The monitor of conflicts says what separate backward passes would, and costs nothing where it does not look."""

import json
import warnings
from pathlib import Path
from unittest.mock import patch

import matplotlib.pyplot
import pytest
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.demos.boring_classes import BoringModel
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.data import DataLoader

from lightning_uncertainty import (
    FixedWeighting,
    GradientConflictMonitor,
    Task,
    UncertaintyMonitor,
    UncertaintyWeighting,
    dashboards,
)
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.balancing._fork import Fork
from lightning_uncertainty.callbacks._similarity import SIMILARITIES, shares_of_descent
from lightning_uncertainty.callbacks.gradient_conflict import _set_stance
from tests import _wandb_reader
from tests._nets import Plain, tensors, trainer, tuples
from tests._versions import exact_resume
from tests.callbacks._watched import CASES, NAMES, START, Watched, batch_of, fit

VECTORS = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))
PAIRS = [("depth", "width"), ("depth", "kind"), ("width", "kind")]
KEYS = [f"{kind}/{a}/{b}" for kind in SIMILARITIES for a, b in PAIRS]


def train(net, monitor, *callbacks, **options):
    """Fit one epoch; return the Trainer."""
    fitted = trainer(**{"callbacks": [monitor, *callbacks], "max_epochs": 1, **options})
    fitted.fit(net)
    return fitted


def expected(jacobian, alpha=None):
    """A row, from the gradients themselves."""
    alpha = torch.ones(len(jacobian), dtype=jacobian.dtype) if alpha is None else alpha.to(jacobian)
    by_name = dict(zip(NAMES, jacobian, strict=True))
    row = {}
    for a, b in PAIRS:
        one, two = by_name[a], by_name[b]
        row[f"cosine/{a}/{b}"] = torch.cosine_similarity(one, two, dim=0).item()
        row[f"magnitude_similarity/{a}/{b}"] = (2 * one.norm() * two.norm() / (one @ one + two @ two)).item()
    cosines = [row[f"cosine/{a}/{b}"] for a, b in PAIRS]
    along = alpha @ jacobian
    shares = jacobian @ along / (along @ along)
    return {
        **row,
        "cosine/min": min(cosines),
        "cosine/mean": sum(cosines) / 3,
        "first_order_change": shares.min().item(),
        "worst_task": NAMES[shares.argmin()],
    }


def assert_row(row, other, tolerance=1e-9):
    assert row.pop("worst_task") == other.pop("worst_task")
    assert row == pytest.approx(other, rel=tolerance, abs=tolerance)


WEIGHTINGS = {
    "uncertainty": lambda: UncertaintyWeighting(START),
    "fixed": lambda: FixedWeighting({"depth": 0.3}),
    "mgda": lambda: GradientBalancing("mgda", UncertaintyWeighting(START)),
    "weighted heads": lambda: GradientBalancing("imtl_g", heads="weighted"),
}


@pytest.mark.parametrize("accumulated", [1, 3])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_rows_are_those_of_a_backward_pass_for_each_task(weighting, accumulated):
    """Ten batches, of which each step takes one or three; every second step is watched, by its last batch alone."""
    net, monitor = Watched(WEIGHTINGS[weighting]()), GradientConflictMonitor(2)
    train(net, monitor, accumulate_grad_batches=accumulated)
    watched = {1: [1, 3, 5, 7, 9], 3: [5, 9]}[accumulated]
    assert [row["step"] for row in monitor.history.rows] == [1, 3, 5, 7, 9][: len(watched)]
    for row, batch in zip(monitor.history.rows, watched, strict=True):
        jacobian, balancing = net.jacobians[batch], isinstance(net.task_weighting, GradientBalancing)
        gramian = jacobian @ jacobian.T
        alpha = net.task_weighting.solver(gramian, torch.ones(3), torch.tensor(1)) if balancing else None
        other = expected(jacobian, alpha)
        own = {key: value for key, value in row.items() if key != "step"}
        if balancing:  # all that MGDA takes fare alike
            other["worst_task"] = own["worst_task"]
        assert_row(own, other, 1e-6)


@pytest.mark.parametrize("name", ["A_conflict2", "B_agree2", "C_three"])
def test_similarities_are_those_of_the_definitions(name):
    vector = VECTORS[f"gram.{name}.diagnostics"]
    jacobian = torch.tensor(vector["inputs"]["J"], dtype=torch.float64)
    for kind, similarity in SIMILARITIES.items():
        found = similarity(jacobian @ jacobian.T)
        other = torch.tensor(vector["expected"][kind], dtype=torch.float64)
        torch.testing.assert_close(found, other, rtol=vector["rtol"], atol=vector["atol"])


def test_a_step_along_the_shares_changes_every_loss_by_as_much():
    """Losses are linear here, so first order is all there is."""
    rng = torch.Generator().manual_seed(0)
    jacobian = torch.randn(4, 6, generator=rng, dtype=torch.float64)
    alpha = torch.rand(4, generator=rng, dtype=torch.float64)
    along = alpha @ jacobian
    losses = jacobian @ -(0.1 * along)
    torch.testing.assert_close(shares_of_descent(jacobian @ jacobian.T, alpha), -losses / (0.1 * along @ along))
    cancelling = torch.stack([along, -(1 + 1e-5) * along])
    assert shares_of_descent(cancelling @ cancelling.T, torch.ones(2, dtype=torch.float64)).isnan().all()


# -- cost --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulated", "watched"), [(1, [2, 5, 8]), (2, [5]), (4, [9])])
def test_steps_that_are_not_due_are_not_split(accumulated, watched):
    """Of ten batches these are forked; the last step has two of four."""
    split = []

    class Net(Watched):
        def training_step(self, batch, batch_idx):
            with patch.object(Fork, "branch", autospec=True, side_effect=Fork.branch) as branch:
                total = super().training_step(batch, batch_idx)
            split.extend([batch_idx] * branch.call_count)
            return total

    monitor = GradientConflictMonitor(3)
    net = Net()
    train(net, monitor, accumulate_grad_batches=accumulated)
    assert split == watched
    assert [row["step"] for row in monitor.history.rows] == [(b if accumulated == 1 else 2) for b in watched]
    assert not net.task_splitter.watching
    assert net.task_splitter.watched is None


def test_training_is_the_same_to_rounding():
    watched, plain = Watched(), Watched()
    train(watched, GradientConflictMonitor(1))
    train(plain, UncertaintyMonitor(table=False))
    torch.testing.assert_close(tensors(watched), tensors(plain), rtol=1e-12, atol=1e-14)


def test_it_looks_on_logging_steps_unless_told_and_else_at_the_last():
    for given, every, steps in ((None, 4, [3, 7]), (5, 4, [4, 9]), (None, 0, []), (None, 50, [9]), (99, 4, [9])):
        monitor = GradientConflictMonitor(given)
        train(Watched(), monitor, log_every_n_steps=every)
        assert [row["step"] for row in monitor.history.rows] == steps


# -- what is left out --------------------------------------------------------------------------------------------------


def test_tasks_without_labels_are_left_out():
    missing = [(), ("width",), ("width", "kind"), NAMES, ("depth",)]
    net, monitor = Watched(batches=[batch_of(i, names) for i, names in enumerate(missing)]), GradientConflictMonitor(1)
    train(net, monitor)
    assert [row["step"] for row in monitor.history.rows] == [0, 1, 4]
    pairs = [{key for key in row if key.startswith("cosine/") and key.count("/") == 2} for row in monitor.history.rows]
    assert pairs == [{f"cosine/{a}/{b}" for a, b in PAIRS}, {"cosine/depth/kind"}, {"cosine/width/kind"}]
    row, jacobian = monitor.history.rows[1], net.jacobians[1][[0, 2]]
    assert row["cosine/min"] == row["cosine/mean"] == row["cosine/depth/kind"]
    shares = jacobian @ jacobian.sum(0) / jacobian.sum(0).square().sum()
    assert row["first_order_change"] == pytest.approx(shares.min().item())
    assert row["worst_task"] == ("depth", "kind")[shares.argmin()]


def test_steps_whose_gradients_are_not_finite_are_left_out():
    class Net(Watched):
        def task_outputs(self, features):
            outputs = super().task_outputs(features)
            if len(self.jacobians) % 2 == 0:
                outputs["depth"].register_hook(lambda gradient: gradient * torch.inf)
            return outputs

        def on_before_optimizer_step(self, optimizer):
            for parameter in self.parameters():
                parameter.grad.nan_to_num_(0, 0, 0)

    monitor = GradientConflictMonitor(1)
    train(Net(), monitor)
    assert [row["step"] for row in monitor.history.rows] == [0, 2, 4, 6, 8]


def many(count):
    net = Watched()
    del net.task_weighting, net.task_heads, net.task_metrics
    net._task_specs = {}
    net.register_tasks({f"t{i}": Task("gaussian", head=nn.Linear(8, 1), target="depth") for i in range(count)})
    net.double()
    net.jacobian = lambda *_: None
    return net


@pytest.mark.parametrize(
    ("count", "pairs", "logged"), [(6, None, 15), (7, None, 0), (7, True, 21), (6, False, 0), (1, None, None)]
)
def test_pairs_are_logged_where_they_are_few_or_wanted(count, pairs, logged):
    monitor = GradientConflictMonitor(2, prefix="conflict/", pairs=pairs)
    net = many(count)
    fitted = train(net, monitor)
    if logged is None:  # alone, nobody is in its way
        assert monitor.history.rows == []
        return
    for kind in SIMILARITIES:
        assert sum(key.startswith(f"conflict/{kind}/t") for key in monitor.history.rows[0]) == logged
    always = {f"conflict/{key}" for key in ("cosine/min", "cosine/mean", "first_order_change")}
    assert always <= set(fitted.callback_metrics) <= set(monitor.history.rows[0])
    assert monitor._means.mean("cosine").shape == (count, count)


# -- other ways to train -----------------------------------------------------------------------------------------------


class Around(Watched):
    """Its heads take the features themselves."""

    def task_outputs(self, features):
        return {name: head(features) for name, head in self.task_heads.items()}


class Frozen(Watched):
    def __init__(self):
        super().__init__()
        self.trunk.requires_grad_(False)


@pytest.mark.parametrize("make", [Around, Frozen, Plain])
def test_features_that_were_not_split_are_told_once(make):
    monitor = GradientConflictMonitor(2)
    with pytest.warns(UserWarning, match="should see the shared features: found none that were split") as told:
        train(make(), monitor) if make is not Plain else trainer(callbacks=[monitor]).fit(Plain(), tuples())
    assert sum("GradientConflictMonitor" in str(warning.message) for warning in told) == 1
    assert monitor.history.rows == []
    with pytest.raises(ValueError, match="there is no cosine to plot: found no step that was watched"):
        monitor.plot()


class Partly(Watched):
    """One task's head goes around the split."""

    def task_outputs(self, features):
        return super().task_outputs(features) | {"width": self.task_heads["width"](features)}


class Twice(Watched):
    """It runs its heads on other features before, too."""

    def training_step(self, batch, batch_idx):
        others = self.task_outputs(self.trunk(self.batches[batch_idx]["x"] + 1).tanh())
        return super().training_step(batch, batch_idx) + others["depth"].square().mean()


class Again(Watched):
    """It runs two backward passes through one graph."""

    def backward(self, loss):
        loss.backward(retain_graph=True)
        super().backward(loss)


@pytest.mark.parametrize("make", [Partly, Twice, Again])
def test_what_trains_without_it_trains_with_it(make):
    """GradientBalancing would refuse these."""
    net, plain, monitor = make(), make(), GradientConflictMonitor(1)
    train(net, monitor)
    train(plain, UncertaintyMonitor(table=False))
    torch.testing.assert_close(tensors(net), tensors(plain), rtol=1e-12, atol=1e-14)
    keys = ["cosine/depth/kind"] if make is Partly else [key for key in KEYS if key.startswith("cosine")]
    assert len(monitor.history.rows) == 10
    for row, jacobian in zip(monitor.history.rows, net.jacobians, strict=True):
        other = expected(jacobian)
        for key in keys:
            assert row[key] == pytest.approx(other[key])
        assert (make is Partly) == ("cosine/depth/width" not in row)


def test_gradients_of_parameters_are_those_of_the_latest_solved_step():
    class Net(Watched):
        def jacobian(self, features, batch):
            pairs = self.task_losses({name: head(features) for name, head in self.task_heads.items()}, batch)
            shared = list(self.trunk.parameters())
            rows = [torch.autograd.grad(s / n, shared, retain_graph=True) for s, n in pairs.values()]
            return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])

    monitor = GradientConflictMonitor(5)
    net = Net(GradientBalancing("pcgrad", on="parameters", every_n_steps=3))
    train(net, monitor)
    assert [row["step"] for row in monitor.history.rows] == [4, 9]
    for row, solved in zip(monitor.history.rows, (3, 9), strict=True):
        other = expected(net.jacobians[solved])
        for key in KEYS:
            assert row[key] == pytest.approx(other[key], rel=1e-6)


@pytest.mark.filterwarnings("ignore:.*`training_step` returned `None`")
def test_manual_optimization_and_steps_without_a_loss():
    class Manual(Watched):
        automatic_optimization = False

        def training_step(self, batch, batch_idx):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            optimizer.step()

    class Skipping(Watched):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) if batch_idx % 4 == 3 else None

    for make, steps in ((Manual, [1, 3, 5, 7, 9]), (Skipping, [3, 7])):
        net, monitor = make(), GradientConflictMonitor(2)
        train(net, monitor)
        assert [row["step"] for row in monitor.history.rows] == steps
        for row, jacobian in zip(
            monitor.history.rows, net.jacobians[1::2] if make is Manual else net.jacobians, strict=True
        ):
            assert_row({k: v for k, v in row.items() if k != "step"}, expected(jacobian))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # at a break
@pytest.mark.skipif(_set_stance is None, reason="torch 2.4 and 2.5 break the graph")
@pytest.mark.parametrize(("weighting", "settles"), [("fixed", 0), ("uncertainty", 1), ("mgda", 0)])
def test_a_compiled_fit_finds_the_same_and_compiles_nothing_for_it(weighting, settles):
    """But that a weighting which learns looks once whether all tasks have started, as `take_row` has it."""

    class Compiled(Watched):
        def train_dataloader(self):
            return DataLoader(self.batches, batch_size=None)

        def training_step(self, batch, batch_idx):
            return self.task_step(self.trunk(batch["x"]).tanh(), batch, "train")

    class Counted(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            graphs.append(backend.frame_count)

    torch._dynamo.reset()
    graphs, backend = [], CompileCounter()
    (net, monitor), (other, other_monitor) = (
        (Compiled(WEIGHTINGS[weighting]()), GradientConflictMonitor(4)) for _ in range(2)
    )
    whole = weighting != "mgda"  # which breaks where it splits
    train(torch.compile(net, backend=backend, fullgraph=whole), monitor, Counted())
    train(other, other_monitor)
    torch._dynamo.reset()
    torch.testing.assert_close(tensors(net), tensors(other), rtol=1e-9, atol=1e-12)
    assert len(monitor.history.rows) == 2
    for row, other_row in zip(monitor.history.rows, other_monitor.history.rows, strict=True):
        other_row["worst_task"] = row["worst_task"] if weighting == "mgda" else other_row["worst_task"]
        assert_row(row, other_row, 1e-6)
    assert graphs == [graphs[0]] * 4 + [graphs[0] + settles] * 6


@pytest.mark.cells("tests.callbacks._watched", "{case}")
@pytest.mark.parametrize("case", CASES)
def test_two_processes_find_what_one_does(case, found):
    first, one = found(case), fit(case)
    assert first == found(case, rank=1)
    rows, expected = first["history"]["rows"], one["history"]["rows"]
    assert len(rows) == len(expected) > 1
    for row, expected_row in zip(rows, expected, strict=True):
        if case != "plain":
            row["worst_task"] = expected_row["worst_task"]  # MGDA has all fare alike
        assert_row(row, expected_row, 1e-6)
    assert first["means"]["counts"] == one["means"]["counts"]


# -- its end -----------------------------------------------------------------------------------------------------------


class Interrupter(Callback):
    def __init__(self, error):
        self.error = error

    def on_after_backward(self, trainer, pl_module):
        assert pl_module.task_splitter.watching
        if trainer.global_step == 2 and self.error:
            raise self.error


@pytest.mark.parametrize("error", [None, RuntimeError("failed"), KeyboardInterrupt()], ids=repr)
def test_no_fit_leaves_the_weighting_watching(error):
    net = Watched()
    try:
        train(net, GradientConflictMonitor(1), Interrupter(error))
    except (RuntimeError, SystemExit) as raised:
        assert error is not None and raised is not None  # noqa: PT017, PT018
    assert not net.task_splitter.watching
    assert net.task_splitter.watched is None
    backend = CompileCounter()
    assert torch.compile(torch.sin, backend=backend)(torch.zeros(2)).sum() == 0
    assert backend.frame_count == 1  # what is compiled afterwards is


@exact_resume
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
def test_a_resumed_fit_goes_on_with_rows_and_means(tmp_path):
    whole, stopped, resumed = (GradientConflictMonitor(2) for _ in range(3))
    train(Watched(), whole, max_epochs=2)
    saver = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=5)
    train(Watched(), stopped, saver, enable_checkpointing=True)
    saved = torch.load(tmp_path / "step=5.ckpt", weights_only=True)["callbacks"]["GradientConflictMonitor"]
    assert [row["step"] for row in saved["history"]["rows"]] == [1, 3]
    fitted = trainer(callbacks=[resumed], max_epochs=2)
    fitted.fit(Watched(), ckpt_path=tmp_path / "step=5.ckpt")
    assert resumed.history.rows == whole.history.rows
    assert resumed.state_dict() == whole.state_dict()
    other = many(3)
    train(other, resumed)  # other tasks: their means are their own
    assert resumed._means.tasks == ("t0", "t1", "t2")


@pytest.mark.parametrize("options", [{"max_steps": 7}, {"max_epochs": 2}, {"accumulate_grad_batches": 3}])
def test_the_last_step_of_a_short_fit_is_watched_whatever_ends_it(options):
    net, monitor = Watched(), GradientConflictMonitor()
    fitted = train(net, monitor, log_every_n_steps=50, **options)
    (row,) = monitor.history.rows
    assert row.pop("step") == fitted.global_step - 1
    assert_row(row, expected(net.jacobians[-1]), 1e-6)


def test_a_new_fit_starts_anew():
    monitor = GradientConflictMonitor(1)
    train(Watched(), monitor)
    train(Watched(), monitor, max_steps=3)
    assert [row["step"] for row in monitor.history.rows] == [0, 1, 2]
    assert monitor._means._counts.max() == 3


# -- reading -----------------------------------------------------------------------------------------------------------


def test_plots_show_the_means_over_the_fit():
    monitor = GradientConflictMonitor(1)
    train(Watched(batches=[batch_of(0), batch_of(1, ("width",)), batch_of(2, ("width", "kind"))]), monitor)
    frame = monitor.to_frame()
    assert list(frame.index) == [0, 1]
    for kind, lowest in (("cosine", -1), ("magnitude_similarity", 0)):
        figure, ax = monitor.plot(kind)
        [image] = ax.images
        drawn = image.get_array().filled(float("nan"))
        assert drawn[0, 2] == pytest.approx(drawn[2, 0])
        assert drawn[0, 2] == pytest.approx(frame[f"{kind}/depth/kind"].mean())
        assert drawn[0, 1] == pytest.approx(frame[f"{kind}/depth/width"].iloc[0])
        assert drawn.diagonal() == pytest.approx([1, 1, 1])
        assert image.get_clim() == (lowest, 1)
        assert [label.get_text() for label in ax.get_yticklabels()] == list(NAMES)
        assert f"{drawn[0, 1]:.2f}" in {text.get_text() for text in ax.texts}
        assert figure is ax.figure
    _, axes = matplotlib.pyplot.subplots()
    assert monitor.plot(ax=axes)[1] is axes
    matplotlib.pyplot.close("all")
    with pytest.raises(ValueError, match="kind should be one of cosine, magnitude_similarity: found 'sigma'"):
        monitor.plot("sigma")


def test_every_value_of_a_wandb_run_is_the_truth(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wandb's own
        logger = WandbLogger(project="conflict", save_dir=tmp_path, offline=True)
        monitor = GradientConflictMonitor(2)
        train(Watched(), monitor, UncertaintyMonitor(table=False), logger=logger)
        folder = Path(logger.experiment.dir).parent
        logger.experiment.finish()
    written = _wandb_reader.history(folder)
    rows = [row for row in written if "cosine/min" in row]
    for row, kept in zip(rows, monitor.history.rows, strict=True):
        assert row["trainer/global_step"] == kept["step"]
        for key, value in kept.items():
            if key not in ("step", "worst_task"):
                assert row[key] == pytest.approx(value)
    for kind in SIMILARITIES:
        assert len(list((folder / "files/media/images" / kind).glob("heat_map*.png"))) == 1
    assert dashboards.read_run(folder).tasks == NAMES


def test_tensorboard_gets_the_pictures_and_others_none(tmp_path):
    open_before = matplotlib.pyplot.get_fignums()
    board, table = TensorBoardLogger(tmp_path, prefix="mine"), CSVLogger(tmp_path)
    monitor = GradientConflictMonitor(2, prefix="x/")
    train(Watched(), monitor, logger=[board, table])
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert set(events.Tags()["images"]) == {f"mine-x/{kind}/heat_map" for kind in SIMILARITIES}
    assert {event.step for event in events.Images("mine-x/cosine/heat_map")} == {9}
    assert [event.step for event in events.Scalars("mine-x/first_order_change")] == [1, 3, 5, 7, 9]
    assert matplotlib.pyplot.get_fignums() == open_before


class Second(GradientConflictMonitor):  # Lightning itself refuses two stateful callbacks of one class
    pass


def test_set_ups_that_make_no_sense():
    with pytest.raises(ValueError, match="every_n_steps should be at least 1: found 0"):
        GradientConflictMonitor(0)
    with pytest.raises(ValueError, match="max_rows should be at least 2: found 1"):
        GradientConflictMonitor(max_rows=1)
    with pytest.raises(ValueError, match="should have one GradientConflictMonitor: found several"):
        train(Watched(), GradientConflictMonitor(), Second())
    with pytest.raises(TypeError, match="GradientConflictMonitor needs a MultiTaskMixin: found BoringModel"):
        trainer(callbacks=[GradientConflictMonitor()]).fit(BoringModel())
