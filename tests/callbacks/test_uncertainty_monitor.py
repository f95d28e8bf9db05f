"""The monitor: what it logs is what happened, on every logger, under every Trainer setting."""

import json
import math
import re
import warnings
from pathlib import Path

import lightning.pytorch as lightning_pytorch
import matplotlib.pyplot
import pytest
import torch
import yaml
from pytorch_lightning import LightningModule
from pytorch_lightning.callbacks import TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.loggers.logger import Logger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import plugin_data_pb2
from torch import nn
from torch.utils.data import DataLoader
from torchmetrics import MeanSquaredError

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    MultiTaskMixin,
    MultiTaskModule,
    Task,
    UncertaintyMonitor,
    UncertaintyWeighting,
    dashboards,
)
from lightning_uncertainty.dashboards.charts import KINDS
from lightning_uncertainty.likelihoods import HeteroscedasticGaussian
from tests import _wandb_reader
from tests._nets import Owning, Plain, dicts, trainer, tuples


class Recorder(Logger):
    """A logger that keeps its rows."""

    name, version = "recorder", 0

    def __init__(self):
        super().__init__()
        self.rows, self.parameters = [], {}

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, dict(metrics)))

    def log_hyperparams(self, params):
        self.parameters |= params

    @property
    def ours(self):
        """The rows that hold our keys, all of them."""
        return [(step, row) for step, row in self.rows if any(key.startswith(("sigma", "weight")) for key in row)]


def about(weighting="UncertaintyWeighting()", prefix=""):
    """The entry of every logger's config for a fit of Plain."""
    meanings = {"depth": "RMSE [label]", "kind": "√(2·CE) [-]"}
    return {
        "weighting": weighting,
        "prefix": prefix,
        "likelihood": {"depth": "gaussian", "kind": "categorical"},
        "sigma_is": meanings if weighting.startswith("Uncertainty") else {},
    }


class Configured(Plain):
    """Plain with hyper-parameters of its own."""

    def __init__(self, width=3):
        super().__init__()
        self.save_hyperparameters()


def events_of(logger):
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    return events


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
        weighted = {task: row[f"loss/{task}"] * window[-1][task][1] for task in net.task_likelihoods()}
        for task, likelihood in net.task_likelihoods().items():
            loss = sum(had[task][0] for had in window) / every
            weight = window[-1][task][1]
            assert row[f"loss/{task}"] == pytest.approx(loss, rel=1e-6)
            assert row[f"weight/{task}"] == pytest.approx(weight, rel=1e-6)
            assert row[f"loss_share/{task}"] == pytest.approx(weighted[task] / sum(weighted.values()), rel=1e-6)
            if weighting is UncertaintyWeighting:
                sigma = math.sqrt(likelihood.factor / weight)  # c e^-s is the weight
                assert row[f"sigma/{task}"] == pytest.approx(sigma, rel=1e-5)
                best = math.exp(likelihood.optimum(loss) / 2)
                assert row[f"sigma_gap/{task}"] == pytest.approx(sigma / best - 1, abs=1e-5)
    keys = {"loss", "weight", "loss_share"} | ({"sigma", "sigma_gap"} if weighting is UncertaintyWeighting else set())
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


def test_every_value_of_a_wandb_run_is_the_truth(tmp_path, capsys):
    logger = WandbLogger(project="test", save_dir=tmp_path, offline=True)
    recorder, monitor = Recorder(), UncertaintyMonitor(table=False)
    fit = trainer(max_epochs=3, logger=[logger, recorder], log_every_n_steps=2, callbacks=[monitor])
    logger.log_hyperparams({"mine": {"a": 1}})
    net = Configured()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # wandb's own
        fit.fit(net, tuples(), tuples())
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
    assert [row["trainer/global_step"] for row in validated] == [row["step"] for row in monitor.evaluations.rows]
    for row, kept in zip(validated, monitor.evaluations.rows, strict=True):
        assert {key: row[key] for key in kept if key != "step"} == {k: v for k, v in kept.items() if k != "step"}
    config = {}
    for record in _wandb_reader.records(run):
        config |= record["config"]["update"] if record["type"] == "config" else {}
    assert config == {"mine": {"a": 1}, "width": 3, "uncertainty": about()}
    (path,) = run.rglob("*.table.json")
    table = json.loads(path.read_text())
    last = recorder.ours[-1][1]
    kinds = ("loss", "sigma", "sigma_gap", "weight", "loss_share")
    assert table["columns"] == ["task", "likelihood", *kinds, "sigma_is"]
    assert table["data"] == [
        [task, name, *(last[f"{kind}/{task}"] for kind in kinds), about()["sigma_is"][task]]
        for task, name in about()["likelihood"].items()
    ]
    assert "Task uncertainty" not in capsys.readouterr().out  # wandb's table does not wait for the printed one


def test_tensorboard_and_csv_hold_the_history(tmp_path):
    monitor = UncertaintyMonitor()
    board, table = TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table")
    trainer(logger=[board, table], log_every_n_steps=2, callbacks=[monitor]).fit(Plain(), tuples())
    events = EventAccumulator(board.log_dir)
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("sigma/depth")]
    assert scalars == [(row["step"], pytest.approx(row["sigma/depth"])) for row in monitor.history.rows]
    lines = (Path(table.log_dir) / "metrics.csv").read_text().splitlines()
    assert "loss_share/kind" in lines[0]
    assert len(lines) == 1 + len(monitor.history.rows)


@pytest.mark.parametrize("package", ["pytorch_lightning", "lightning.pytorch"])
def test_tensorboard_gets_a_layout_whose_every_tag_has_values(tmp_path, package):
    if package == "pytorch_lightning":
        net, board, fit = Plain(), TensorBoardLogger(tmp_path), trainer
    else:
        hooks = ("losses", "training_step", "validation_step", "configure_optimizers")
        body = {name: vars(Plain)[name] for name in hooks}

        class Net(MultiTaskMixin, lightning_pytorch.LightningModule):
            def __init__(self):
                super().__init__()
                self.depth, self.kind = torch.nn.Linear(4, 1), torch.nn.Linear(4, 3)
                self.register_tasks({"depth": "gaussian", "kind": "categorical"})

        net, board = type("Own", (Net,), body)(), lightning_pytorch.loggers.TensorBoardLogger(tmp_path)

        def fit(**options):
            quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
            return lightning_pytorch.Trainer(accelerator="cpu", log_every_n_steps=1, max_epochs=2, **quiet, **options)

    monitor = UncertaintyMonitor(prefix="u/")
    fit(logger=board, callbacks=[monitor]).fit(net, tuples(), tuples())
    events = events_of(board)
    scalars = events.Tags()["scalars"]
    (written,) = events.Tensors("custom_scalars__config__")
    lines, bands = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0]).category
    for chart in lines.chart:
        matched = [[tag for tag in scalars if re.match(pattern, tag)] for pattern in chart.multiline.tag]
        assert [len(tags) for tags in matched] == [1, 1], chart.title
    assert len(lines.chart) == 6
    for chart, task in zip(bands.chart, ("depth", "kind"), strict=True):
        (series,) = chart.margin.series
        assert (series.value, series.lower, series.upper) == (*[f"u/sigma/{task}"] * 2, f"u/sigma_optimum/{task}")
        optima = {event.step: event.value for event in events.Scalars(series.upper)}
        for row in monitor.history.rows:
            optimum = net.task_likelihoods()[task].optimum(row[f"u/loss/{task}"])
            assert optima.pop(row["step"]) == pytest.approx(math.exp(optimum / 2), rel=1e-5)
        assert not optima
    assert not any("sigma_optimum" in key for row in monitor.history.rows for key in row)


def test_only_loggers_with_the_layout_get_the_optimum_and_only_charts_that_fill(tmp_path):
    board, table = TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table")
    net = Plain(FixedWeighting())
    trainer(logger=[board, table], callbacks=[UncertaintyMonitor()]).fit(net, tuples())  # no validation
    (written,) = events_of(board).Tensors("custom_scalars__config__")
    (lines,) = layout_pb2.Layout.FromString(written.tensor_proto.string_val[0]).category
    assert [chart.title for chart in lines.chart] == ["effective weight", "share of the weighted loss", "loss"]
    assert yaml.safe_load((Path(table.log_dir) / "hparams.yaml").read_text()) == {
        "uncertainty": about("FixedWeighting()")
    }
    other = CSVLogger(tmp_path, name="other")
    board = TensorBoardLogger(tmp_path, name="again")
    fit = trainer(logger=[board, other], callbacks=[UncertaintyMonitor()])
    fit.fit(Plain(), tuples())
    assert "sigma_optimum/depth" in events_of(board).Tags()["scalars"]
    assert "sigma_optimum" not in (Path(other.log_dir) / "metrics.csv").read_text()
    assert "sigma_optimum/depth" not in fit.callback_metrics


@pytest.mark.parametrize("own", [{}, {"width": 3}], ids=["no hyper-parameters", "hyper-parameters"])
def test_the_config_joins_the_modules_hyper_parameters(tmp_path, own):
    board, table, recorder = TensorBoardLogger(tmp_path, name="board"), CSVLogger(tmp_path, name="table"), Recorder()
    net, monitor = Configured() if own else Plain(), UncertaintyMonitor(prefix="u/")
    trainer(logger=[board, table, recorder], callbacks=[monitor]).fit(net, tuples(), tuples())
    expected = {**own, "uncertainty": about(prefix="u/")}
    assert recorder.parameters == expected
    for logger in (board, table):
        assert yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text()) == expected
    events = events_of(board)
    placeholder = [event.value for event in events.Scalars("hp_metric")] if own else []
    assert placeholder == [-1.0] * len(own)  # Lightning's own, for its own
    assert ("hp_metric" in events.Tags()["scalars"]) == bool(own)
    shown = events.summary_metadata.get("_hparams_/session_start_info")
    if own:
        data = plugin_data_pb2.HParamsPluginData.FromString(shown.plugin_data.content)
        assert {name: value.number_value for name, value in data.session_start_info.hparams.items()} == own
    else:
        assert shown is None


def test_the_config_reaches_hyper_parameters_that_an_evaluation_has_written_before(tmp_path):
    board = TensorBoardLogger(tmp_path)
    fit = trainer(logger=board, callbacks=[UncertaintyMonitor()])
    net = Configured()
    fit.validate(net, tuples(), verbose=False)
    fit.fit(net, tuples(), tuples())
    expected = {"width": 3, "uncertainty": about()}
    assert yaml.safe_load((Path(board.log_dir) / "hparams.yaml").read_text()) == expected


def test_other_ranks_configure_no_logger(monkeypatch):
    recorder = Recorder()
    fit = trainer(logger=recorder, callbacks=[UncertaintyMonitor()])
    monkeypatch.setattr(type(fit), "is_global_zero", False)
    fit.fit(Plain(), tuples())
    assert recorder.parameters == {}


def test_held_out_rows_are_those_that_lightning_logs():
    recorder, monitor = Recorder(), UncertaintyMonitor()
    options = {"logger": recorder, "callbacks": [monitor], "log_every_n_steps": 3, "val_check_interval": 2}
    fit = trainer(max_epochs=3, num_sanity_val_steps=2, **options)
    net = Owning()
    fit.fit(net, dicts(), dicts())
    held_out = [(step, row) for step, row in recorder.rows if "val/balanced_loss" in row]
    assert len(held_out) == 6  # none for the sanity check
    for (step, row), kept in zip(held_out, monitor.evaluations.rows, strict=True):
        assert kept == {"step": step, **{key: value for key, value in row.items() if key.startswith("val/")}}
    assert set(kept) == {
        "step", "val/balanced_loss", "val/depth/loss", "val/kind/loss", "val/depth/MeanAbsoluteError",
        "val/kind/MulticlassAccuracy",
    }  # fmt: skip
    fit.validate(net, dicts(), verbose=False)
    assert len(monitor.evaluations.rows) == 6  # after the fit


def test_a_task_without_labels_in_a_validation_is_not_in_its_row():
    class Fading(Owning):
        def val_dataloader(self):
            batches = dicts()
            if self.current_epoch:
                batches.dataset.table["depth"][:] = torch.nan
            return batches

    monitor = UncertaintyMonitor()
    fit = trainer(callbacks=[monitor], reload_dataloaders_every_n_epochs=1)
    with pytest.warns(UserWarning, match="no label of depth"):
        fit.fit(Fading(), dicts())
    assert "val/depth/loss" in fit.callback_metrics  # of the first epoch
    assert ["val/depth/loss" in row for row in monitor.evaluations.rows] == [True, False]
    assert ["val/kind/loss" in row for row in monitor.evaluations.rows] == [True, True]


def test_validation_reads_the_device_once(monkeypatch):
    copies = []
    tolist = torch.Tensor.tolist

    def counted(tensor):
        copies.append(tensor.shape)
        return tolist(tensor)

    monitor = UncertaintyMonitor()
    hook = monitor.on_validation_end

    def watched(*args):
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", counted)
            patch.setattr(torch.Tensor, "item", counted)
            hook(*args)

    monitor.on_validation_end = watched
    trainer(callbacks=[monitor], max_epochs=1).fit(Plain(), tuples(), tuples())
    assert copies == [(3,)]


def test_a_report_holds_both_histories_and_needs_rows(tmp_path, monkeypatch):
    runs = []
    write = dashboards.write_report
    monkeypatch.setattr(dashboards, "write_report", lambda run, path: (runs.append(run), write(run, path)))
    monitor = UncertaintyMonitor(prefix="u/")
    with pytest.raises(ValueError, match="there is nothing to report: found no rows; fit with this callback"):
        monitor.report(tmp_path / "report.html")
    trainer(callbacks=[monitor], log_every_n_steps=3).fit(Plain(), tuples(), tuples())
    loaded = UncertaintyMonitor()
    loaded.load_state_dict(monitor.state_dict())
    for teller in (monitor, loaded):
        teller.report(tmp_path / "report.html")
        run = runs.pop()
        assert (run.title, run.config) == ("Plain", {"uncertainty": about(prefix="u/")})
        assert [row["step"] for row in run.rows] == [2, 3, 5, 7, 7]
        assert [row for row in run.rows if "u/loss/depth" in row] == monitor.history.rows
        assert [row for row in run.rows if "val/balanced_loss" in row] == monitor.evaluations.rows
        assert "RMSE [label]" in (tmp_path / "report.html").read_text(encoding="utf-8")


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
    assert all(row["loss_share/kind"] == 1.0 for (_, row), had in zip(recorder.ours, there, strict=True) if not had)


@pytest.mark.parametrize(
    "options",
    [
        {"barebones": True, "logger": None, "enable_checkpointing": None, "log_every_n_steps": None},
        {"fast_dev_run": True, "logger": True},
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
        warnings.filterwarnings("ignore", message=".*barebones|.*limit_train_batches|.*log_every_n_steps=0")
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


def test_the_table_begins_a_line_of_its_own_below_a_bar(capsys):
    bar = TQDMProgressBar()
    trainer(callbacks=[UncertaintyMonitor(), bar], enable_progress_bar=True).fit(Plain(), tuples())
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "Task uncertainty after 8 steps" in lines
    assert any("100%" in line for line in lines[: lines.index("Task uncertainty after 8 steps")])


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
    fit.fit(Plain(), loader, loader)
    fit.save_checkpoint(tmp_path / "net.ckpt")
    json.dumps(torch.load(tmp_path / "net.ckpt", weights_only=True)["callbacks"])  # builtins only
    second = UncertaintyMonitor()
    trainer(max_epochs=4, callbacks=[second]).fit(Plain(), loader, loader, ckpt_path=tmp_path / "net.ckpt")
    assert second.history.rows[:8] == first.history.rows
    assert second.evaluations.rows[:2] == first.evaluations.rows
    assert [row["step"] for row in second.history.rows] == list(range(16))
    assert [row["step"] for row in second.evaluations.rows] == [3, 7, 11, 15]
    few = UncertaintyMonitor(max_rows=4)
    trainer(max_epochs=8, callbacks=[few]).fit(Plain(), loader, loader)
    assert [row["step"] for row in few.history.rows] == [0, 8, 16, 24]
    assert [row["step"] for row in few.evaluations.rows] == [3, 11, 19, 27]
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

    with pytest.raises(TypeError, match=r"found Bare; write `class Bare\(MultiTaskMixin.*AdoptLosses"):
        trainer(callbacks=[UncertaintyMonitor()]).fit(Bare(), tuples())


def test_a_module_without_tasks_is_told_so():
    class Forgetful(Plain):
        def register_tasks(self, *args, **kwargs):
            pass

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    with pytest.raises(RuntimeError, match=r"check_setup needs tasks: call self\.register_tasks"):
        trainer(callbacks=[UncertaintyMonitor()]).fit(Forgetful(), tuples())


class Shrinking(Plain):
    """Depth's loss halves with every step, kind's stays."""

    def training_step(self, batch, batch_idx):
        anchor = self.depth.weight.sum() * 0
        return self.weigh({"depth": anchor + 0.7**self.global_step, "kind": anchor + 1.0})


def test_a_task_that_takes_all_weight_while_its_sigma_falls_warns_once():
    net = Shrinking(AnalyticUncertaintyWeighting(0.0))
    message = "takes over: its weight has grown 1.*, the others' at most 1 times, and its σ has fallen from 1 to"
    with pytest.warns(UserWarning, match=message) as told:
        trainer(max_epochs=6, callbacks=[UncertaintyMonitor()]).fit(net, tuples())
    assert sum("takes over" in str(warning.message) for warning in told) == 1


class Sized(Plain):
    """Losses of these sizes whatever the network does, one for each step."""

    def __init__(self, sizes, rate, **options):
        super().__init__(UncertaintyWeighting(**options))
        self.sizes, self.rate = sizes, rate

    def losses(self, batch):
        nothing = 0 * self.depth.weight.sum()
        return {"depth": nothing + float(batch), "kind": nothing + 1.0}

    def train_dataloader(self):
        return DataLoader(self.sizes, batch_size=None)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=0.0, log_variance_lr=self.rate))


FALLEN = [100.0] * 50 + [1.0] * 651  # σ is 10, and should be 1


@pytest.mark.parametrize(
    ("sizes", "rate", "options", "warns"),
    [
        (FALLEN, 1e-3, {}, True),
        (FALLEN, 1e-2, {}, False),
        (FALLEN, 1e-3, {"restart": 50}, False),
        ([100.0] + [1.0] * 700, 1e-3, {"memory": None}, True),
        ([1.0] * 50 + [1e6] + [1.0] * 650, 1e-2, {}, False),
    ],
    ids=["a small rate", "our rate", "restart", "a spike at the start, as published", "a spike"],
)
def test_a_sigma_that_is_late_for_long_warns_once(sizes, rate, options, warns):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(callbacks=[UncertaintyMonitor(table=False)], max_epochs=1, log_every_n_steps=10).fit(
            Sized(sizes, rate, **options)
        )
    told = [str(warning.message) for warning in caught if "more than a third too large" in str(warning.message)]
    assert len(told) == warns
    assert all(message.startswith("σ of task 'depth'") and "restart=50" in message for message in told)


def test_a_large_weight_for_the_sake_of_units_alone_does_not_warn_and_is_no_large_share():
    class Units(Plain):
        def training_step(self, batch, batch_idx):
            anchor = self.depth.weight.sum() * 0
            return self.weigh({"depth": anchor + 1e-4, "kind": anchor + 1.0})

    monitor = UncertaintyMonitor()
    trainer(max_epochs=6, callbacks=[monitor]).fit(Units(AnalyticUncertaintyWeighting()), tuples())  # -W error
    row = monitor.history.rows[-1]
    assert row["weight/depth"] > 1000 * row["weight/kind"]
    assert row["loss_share/depth"] == pytest.approx(0.5)


class Normalised(Plain):
    """Depth has a head that gives σ for each element."""

    def __init__(self, weighting=None):
        LightningModule.__init__(self)
        self.depth, self.kind = torch.nn.Linear(4, 2), torch.nn.Linear(4, 3)
        self.register_tasks({"depth": HeteroscedasticGaussian(), "kind": "categorical"}, weighting=weighting)

    def losses(self, batch):
        x, depth, kind = batch
        total, count = HeteroscedasticGaussian().loss(self.depth(x), depth)
        return {"depth": total / count - 100, "kind": torch.nn.functional.cross_entropy(self.kind(x), kind)}


@pytest.mark.parametrize("weighting", [UncertaintyWeighting, FixedWeighting])
def test_a_normalised_task_has_loss_and_weight_and_the_table_says_whose_sigma_is_its_own(weighting, tmp_path, capsys):
    board, monitor = TensorBoardLogger(tmp_path), UncertaintyMonitor()
    fit = trainer(log_every_n_steps=2, callbacks=[monitor], logger=board)
    fit.fit(Normalised(weighting()), tuples(), tuples())
    keys = {key for row in monitor.history.rows for key in row}
    assert {"loss/depth", "weight/depth", "loss_share/depth"} <= keys
    assert not any(key.startswith("sigma") and key.endswith("/depth") for key in keys)
    assert ("sigma/kind" in keys) == (weighting is UncertaintyWeighting)
    assert fit.callback_metrics["loss/depth"] < -90
    assert fit.callback_metrics["weight/depth"] == 1.0
    assert fit.callback_metrics["val/balanced_loss"] < -90
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.lstrip().startswith("depth")]
    assert line.split()[1] == "HeteroscedasticGaussian"
    assert line.rstrip().endswith("its head's, per element")
    assert "%" in line
    events = EventAccumulator(board.log_dir)
    events.Reload()
    (written,) = events.Tensors("custom_scalars__config__")
    layout = str(layout_pb2.Layout.FromString(written.tensor_proto.string_val[0]))
    assert "weight/depth" in layout
    assert "sigma/depth" not in layout


def test_the_config_says_which_metric_is_a_root():
    """Its key is that of its class, MeanSquaredError; the report calls it RMSE."""
    metrics = [MeanSquaredError(squared=False), MeanSquaredError()]
    tasks = {
        name: Task("gaussian", head=nn.Linear(8, 1), target="depth", metrics=metric)
        for name, metric in zip(("root", "square"), metrics, strict=True)
    }
    module = MultiTaskModule(nn.Linear(4, 8), tasks, inputs="x")
    monitor = UncertaintyMonitor(table=False)
    trainer(max_epochs=1, callbacks=[monitor]).fit(module, dicts(), dicts())
    assert monitor._config["uncertainty"]["metrics"] == {"root/MeanSquaredError": "RMSE"}
