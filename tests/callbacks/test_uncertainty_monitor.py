"""The monitor: what it logs is what happened, on every logger, under every Trainer setting."""

import json
import math
import warnings
from pathlib import Path

import matplotlib.pyplot
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    UncertaintyMonitor,
    UncertaintyWeighting,
)
from lightning_uncertainty.callbacks.uncertainty_monitor import KINDS
from tests import _wandb_reader
from tests._nets import Owning, Plain, dicts, trainer, tuples


class Recorder(Logger):
    """A logger that keeps its rows."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass

    @property
    def ours(self):
        """The rows that hold our keys, all of them."""
        return [(step, row) for step, row in self.rows if any(key.startswith(("sigma", "weight")) for key in row)]


class Witness(Plain):
    """Keeps what every training step really had, computed by itself from the losses."""

    def __init__(self, weighting=None):
        super().__init__(weighting)
        self.steps = []

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        leaves = {name: loss.detach().requires_grad_() for name, loss in losses.items()}
        probe = self.weigh_without_trace(leaves)
        total = self.weigh(losses)
        self.steps.append({**{name: (losses[name].item(), probe[name]) for name in losses}})
        return total

    def weigh_without_trace(self, leaves):
        """Effective weights by autograd, from the weighting in evaluation mode."""
        self.task_weighting.eval()
        total = self.task_weighting(torch.stack(list(leaves.values())), torch.ones(2, dtype=torch.bool)).total
        self.task_weighting.train()
        gradients = torch.autograd.grad(total, leaves.values())
        return {name: gradient.item() for name, gradient in zip(leaves, gradients, strict=True)}


@pytest.mark.parametrize("weighting", [UncertaintyWeighting, FixedWeighting])
@pytest.mark.parametrize("every", [1, 3])
def test_rows_are_the_means_and_the_latest_values_of_their_steps(weighting, every):
    net, recorder, monitor = Witness(weighting()), Recorder(), UncertaintyMonitor()
    trainer(max_epochs=3, logger=recorder, log_every_n_steps=every, callbacks=[monitor]).fit(net, tuples())
    rows = recorder.ours
    assert [step for step, _ in rows] == list(range(every - 1, 12, every))
    for step, row in rows:
        window = net.steps[step + 1 - every : step + 1]
        share = sum(weight for _, weight in window[-1].values())
        for task, likelihood in net.task_likelihoods().items():
            loss = sum(had[task][0] for had in window) / every
            weight = window[-1][task][1]
            assert row[f"loss/{task}"] == pytest.approx(loss, rel=1e-6)
            assert row[f"weight/{task}"] == pytest.approx(weight, rel=1e-6)
            assert row[f"weight_share/{task}"] == pytest.approx(weight / share, rel=1e-6)
            if weighting is UncertaintyWeighting:
                sigma = math.sqrt(likelihood.factor / weight)  # c e^-s is the weight
                assert row[f"sigma/{task}"] == pytest.approx(sigma, rel=1e-5)
                best = math.exp(likelihood.optimum(loss) / 2)
                assert row[f"sigma_gap/{task}"] == pytest.approx(sigma / best - 1, abs=1e-5)
    keys = {"loss", "weight", "weight_share"} | ({"sigma", "sigma_gap"} if weighting is UncertaintyWeighting else set())
    assert {key.split("/")[0] for key in rows[-1][1]} == keys


def test_every_logger_gets_the_row_and_callback_metrics_the_values():
    loggers = [Recorder(), Recorder()]
    monitor = UncertaintyMonitor(prefix="uncertainty/")
    fit = trainer(logger=loggers, callbacks=[monitor])
    fit.fit(Plain(), tuples())
    assert loggers[0].rows == loggers[1].rows
    step, row = loggers[0].rows[-1]
    assert all(key.startswith("uncertainty/") for key in row)
    assert {key: value.item() for key, value in fit.callback_metrics.items()} == pytest.approx(row)
    assert monitor.history.rows[-1] == {"step": step, **row}


def test_every_value_of_a_wandb_run_is_the_truth(tmp_path):
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    recorder, monitor = Recorder(), UncertaintyMonitor()
    fit = trainer(max_epochs=3, logger=[logger, recorder], log_every_n_steps=2, callbacks=[monitor])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wandb's own
        fit.fit(Plain(), tuples(), tuples())
        run = Path(logger.experiment.dir).parent
        logger.experiment.finish()
    written = _wandb_reader.history(run)
    ours = [row for row in written if "sigma/depth" in row]
    assert len(ours) == len(monitor.history.rows) == 6
    for row, (step, values) in zip(ours, recorder.ours, strict=True):
        assert row["trainer/global_step"] == step
        assert {key: row[key] for key in values} == values  # bit for bit
        assert {key for key in row if not key.startswith(("_", "trainer"))} == set(values)  # and nothing else
    validated = [row for row in written if "val/balanced_loss" in row]
    assert len(validated) == 3
    assert validated[-1]["val/balanced_loss"] == pytest.approx(fit.callback_metrics["val/balanced_loss"].item())
    assert set(validated[-1]) >= {"val/depth/loss", "val/kind/loss"}


def test_tensorboard_and_csv_hold_the_history(tmp_path):
    monitor = UncertaintyMonitor()
    board, table = TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table")
    trainer(logger=[board, table], log_every_n_steps=2, callbacks=[monitor]).fit(Plain(), tuples())
    events = EventAccumulator(board.log_dir)
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("sigma/depth")]
    assert scalars == [(row["step"], pytest.approx(row["sigma/depth"])) for row in monitor.history.rows]
    lines = (Path(table.log_dir) / "metrics.csv").read_text().splitlines()
    assert "weight_share/kind" in lines[0]
    assert len(lines) == 1 + len(monitor.history.rows)


def test_gradient_accumulation_gives_one_row_a_step():
    recorder = Recorder()
    trainer(logger=recorder, accumulate_grad_batches=2, callbacks=[UncertaintyMonitor()]).fit(Plain(), tuples())
    assert [step for step, _ in recorder.ours] == [0, 1, 2, 3]


def test_a_task_without_labels_since_the_last_row_is_left_out():
    batches = dicts()
    batches.dataset.table["depth"][8:] = torch.nan  # in the first of four batches only
    recorder = Recorder()
    trainer(logger=recorder, max_epochs=2, callbacks=[UncertaintyMonitor()]).fit(Owning(), batches)
    there = [[key for key in row if key.endswith("/depth")] != [] for _, row in recorder.ours]
    assert there == [True, False, False, False, True, False, False, False]
    assert all(row["weight_share/kind"] == 1.0 for (_, row), had in zip(recorder.ours, there, strict=True) if not had)


@pytest.mark.parametrize(
    "options",
    [
        {"barebones": True, "logger": None, "enable_checkpointing": None, "log_every_n_steps": None},
        {"fast_dev_run": True},
        {"log_every_n_steps": 0},
        {"limit_train_batches": 0},
        {"num_sanity_val_steps": 2},
        {"enable_progress_bar": True},
    ],
    ids=lambda options: next(iter(options)),
)  # fmt: skip
def test_every_trainer_setting_trains_to_the_end(options, capsys):
    if "barebones" in options:
        options = {**options, "enable_progress_bar": None, "enable_model_summary": None}
    net, monitor = Plain(), UncertaintyMonitor(progress_bar="enable_progress_bar" in options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*barebones|.*limit_train_batches")
        fit = trainer(callbacks=[monitor], **options)
        fit.fit(net, tuples(), tuples())
    shown = capsys.readouterr().out
    trained = "limit_train_batches" not in options
    assert ("Task uncertainty after" in shown) == (trained and "barebones" not in options)
    assert all(math.isfinite(value) == trained for value in net.sigma().values())
    if options.get("log_every_n_steps", 1) in (0, None):
        assert monitor.history.rows == []
    if options.get("enable_progress_bar"):
        assert "σ depth" in fit.progress_bar_metrics


def test_the_table_covers_the_last_steps_and_needs_no_rich(capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rich.table", None)
    net = Plain(UncertaintyWeighting())
    trainer(callbacks=[UncertaintyMonitor()], log_every_n_steps=50).fit(net, tuples())
    title, header, depth, kind = capsys.readouterr().out.strip().splitlines()
    assert title == "Task uncertainty after 8 steps"
    assert header.split() == ["task", "likelihood", "loss", "σ", "σ/σ*-1", "weight", "share", "σ", "is"]
    assert depth.split()[:2] == ["depth", "gaussian"]
    assert depth.split()[3] == f"{net.sigma()['depth']:.4g}"
    assert depth.endswith("RMSE [label]")
    assert kind.endswith("√(2·CE) [-]")


def test_the_table_keeps_a_task_that_had_no_labels_in_the_last_rows(capsys):
    batches = dicts()
    batches.dataset.table["depth"][8:] = torch.nan  # in the first of four batches only
    net = Owning()
    trainer(max_epochs=1, callbacks=[UncertaintyMonitor()]).fit(net, batches)
    shown = capsys.readouterr().out
    assert f"{net.sigma()['kind']:.4g}" in shown
    assert "depth" in shown


def test_a_fit_nobody_watched_is_in_no_row():
    net, monitor, loader = Plain(FixedWeighting()), UncertaintyMonitor(table=False), tuples()
    trainer(max_epochs=5).fit(net, loader)
    first = net.losses(next(iter(loader)))["depth"].item()
    trainer(max_epochs=1, callbacks=[monitor]).fit(net, loader)
    assert monitor.history.rows[0]["loss/depth"] == pytest.approx(first)


def test_no_table_on_request(capsys):
    trainer(callbacks=[UncertaintyMonitor(table=False)]).fit(Plain(), tuples())
    assert capsys.readouterr().out == ""


def test_history_survives_resume_and_stays_bounded(tmp_path):
    loader = tuples()
    first = UncertaintyMonitor()
    fit = trainer(callbacks=[first])
    fit.fit(Plain(), loader)
    fit.save_checkpoint(tmp_path / "net.ckpt")
    json.dumps(torch.load(tmp_path / "net.ckpt", weights_only=True)["callbacks"])  # builtins only
    second = UncertaintyMonitor()
    trainer(max_epochs=4, callbacks=[second]).fit(Plain(), loader, ckpt_path=tmp_path / "net.ckpt")
    assert second.history.rows[:8] == first.history.rows
    assert [row["step"] for row in second.history.rows] == list(range(16))
    few = UncertaintyMonitor(max_rows=4)
    trainer(max_epochs=8, callbacks=[few]).fit(Plain(), loader)
    assert len(few.history.rows) <= 4
    assert [row["step"] for row in few.history.rows] == [0, 8, 16, 24]
    with pytest.raises(ValueError, match="max_rows should be at least 2: found 1"):
        UncertaintyMonitor(max_rows=1)


def test_a_second_monitor_is_refused_as_it_would_find_nothing_left():
    class Second(UncertaintyMonitor):  # Lightning itself refuses two stateful callbacks of one class
        pass

    with pytest.raises(ValueError, match="a Trainer should have one UncertaintyMonitor"):
        trainer(callbacks=[UncertaintyMonitor(), Second()]).fit(Plain(), tuples())


def test_frames_and_plots_hold_the_history():
    monitor = UncertaintyMonitor()
    assert monitor.to_frame().empty
    with pytest.raises(ValueError, match="there is no sigma to plot: found 0 rows"):
        monitor.plot()
    trainer(callbacks=[monitor]).fit(Plain(), tuples())
    frame = monitor.to_frame()
    assert list(frame.index) == list(range(8))
    assert frame.index.name == "step"
    for kind in KINDS:
        figure, ax = monitor.plot(kind)
        assert [line.get_label() for line in ax.lines] == ["depth", "kind"]
        for line in ax.lines:
            x, y = line.get_data()
            assert list(x) == list(frame.index)
            assert list(y) == frame[f"{kind}/{line.get_label()}"].tolist()
        assert ax.get_yscale() == ("log" if kind in ("sigma", "weight", "loss") else "linear")
        matplotlib.pyplot.close(figure)
    own, (left, right) = matplotlib.pyplot.subplots(1, 2)
    assert monitor.plot("loss", ax=right) == (own, right)
    assert not left.lines
    matplotlib.pyplot.close(own)
    with pytest.raises(ValueError, match=r"kind should be one of sigma, .*: found 'sigmas'"):
        monitor.plot("sigmas")


@pytest.mark.parametrize(("method", "package"), [("to_frame", "pandas"), ("plot", "matplotlib")])
def test_missing_packages_name_the_extra(method, package, monkeypatch):
    monitor = UncertaintyMonitor()
    monitor.history.append(0, {"sigma/depth": 1.0})
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{method} needs {package}: pip install .*\[plot\]"):
        getattr(monitor, method)()


def test_a_module_without_the_mixin_is_refused():
    class Bare(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(4, 1)

        def training_step(self, batch, batch_idx):
            return self.layer(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(TypeError, match=r"watches a MultiTaskMixin: found Bare; write `class Bare\(MultiTaskMixin"):
        trainer(callbacks=[UncertaintyMonitor()]).fit(Bare(), tuples())


class Shrinking(Plain):
    """Depth's loss halves with every step, kind's stays."""

    def training_step(self, batch, batch_idx):
        anchor = self.depth.weight.sum() * 0
        return self.weigh({"depth": anchor + 0.7**self.global_step, "kind": anchor + 1.0})


def test_a_task_that_takes_all_weight_while_its_sigma_falls_warns_once():
    net = Shrinking(AnalyticUncertaintyWeighting(0.0))
    message = "takes 9.% of the weight, and its σ has fallen from 1 to"
    with pytest.warns(UserWarning, match=message) as told:
        trainer(max_epochs=6, callbacks=[UncertaintyMonitor()]).fit(net, tuples())
    assert sum("of the weight" in str(warning.message) for warning in told) == 1


def test_a_large_share_for_the_sake_of_units_alone_does_not_warn():
    class Units(Plain):
        def training_step(self, batch, batch_idx):
            anchor = self.depth.weight.sum() * 0
            return self.weigh({"depth": anchor + 1e-4, "kind": anchor + 1.0})

    monitor = UncertaintyMonitor()
    trainer(max_epochs=6, callbacks=[monitor]).fit(Units(AnalyticUncertaintyWeighting()), tuples())  # -W error
    assert monitor.history.rows[-1]["weight_share/depth"] > 0.99
