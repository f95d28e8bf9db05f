import csv
import json
import math
import re
import sys
from functools import partial

import lightning.pytorch
import numpy as np
import pytest
import torch
import wandb
from pytorch_lightning import LightningDataModule, LightningModule
from pytorch_lightning.callbacks import Callback, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger, WandbLogger
from torch import nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection

from lightning_uncertainty import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    MultiTaskMixin,
    MultiTaskModule,
    Task,
    UncertaintyWarmUp,
    UncertaintyWeighting,
)
from lightning_uncertainty.metrics import MultiTaskGain
from lightning_uncertainty.module import MultiTaskSteps
from lightning_uncertainty.trials import Comparison, Mean, Measure, Trial, compare, comparison
from lightning_uncertainty.trials.comparing import SINGLE_TASK
from tests._nets import Owning, Plain, dicts, tuples
from tests._wandb_reader import history

WEIGHTINGS = {"equal": FixedWeighting, "uncertainty": UncertaintyWeighting()}
FAST = {"max_epochs": 2, "accelerator": "cpu"}
DEPTH = Measure("depth", "MeanAbsoluteError", "val/depth/MeanAbsoluteError", False)
KIND = Measure("kind", "MulticlassAccuracy", "val/kind/MulticlassAccuracy", True)


def loaders():
    rng = torch.random.get_rng_state()
    torch.manual_seed(1)
    pair = dicts(16), dicts(16)
    torch.random.set_rng_state(rng)
    return pair


def run(make=Owning, weightings=WEIGHTINGS, folder="trials", data=None, **options):
    options = {"seeds": [0, 1], "trainer": FAST, "progress_bar": False, **options}
    return compare(make, loaders() if data is None else data, weightings, folder, **options)


class Counting:
    """A function that makes modules, and knows of how many; it may fail at one."""

    def __init__(self, kind=Owning, fail_at=None):
        self.kind, self.fail_at, self.weightings = kind, fail_at, []

    def __call__(self, weighting):
        module = self.kind(weighting)
        self.weightings.append(getattr(module, "task_weighting", None))
        if len(self.weightings) == self.fail_at:
            raise KeyboardInterrupt
        return module

    @property
    def fits(self):
        return len(self.weightings) - 1  # the first is looked at only


# -- trials ------------------------------------------------------------------------------------------------------------


def test_every_weighting_task_and_seed_is_trained_once():
    make = Counting()
    found = run(make)
    assert make.fits == 2 * (2 + 2)
    assert {(trial.name, trial.task, trial.seed) for trial in found.trials} == {
        (name, task, seed)
        for name, task in [("equal", None), ("uncertainty", None), (SINGLE_TASK, "depth"), (SINGLE_TASK, "kind")]
        for seed in (0, 1)
    }
    assert [len(trial.rows) for trial in found.trials] == [2] * 8  # an epoch each, and no sanity check
    assert found.measures == (DEPTH, KIND)
    assert all(trial.step_time > 0 and trial.peak_memory is None for trial in found.trials)


def test_a_trial_is_the_fit_by_hand():
    from pytorch_lightning import Trainer, seed_everything

    found = run(seeds=[3], baseline=None, weightings={"uncertainty": UncertaintyWeighting})
    seed_everything(3, workers=True, verbose=False)
    net = Owning(UncertaintyWeighting())
    train, val = loaders()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(**FAST, **quiet, enable_model_summary=False)
    trainer.fit(net, train, val)
    by_hand = {key: value.item() for key, value in trainer.callback_metrics.items()}
    assert found.trials[0].rows[-1] == {"epoch": 1.0, **by_hand}


def test_single_tasks_train_one_task_in_the_same_network():
    make = Counting()
    run(make, seeds=[0], weightings={"equal": FixedWeighting})
    depth, kind = make.weightings[-2:]
    assert [depth.weight.tolist(), kind.weight.tolist()] == [[1, 0], [0, 1]]


def test_a_weighting_that_is_given_stays_unbound():
    mine = UncertaintyWeighting()
    run(weightings={"mine": mine}, baseline=None)
    assert mine.tasks == ()


def test_a_comparison_that_was_killed_goes_on():
    with pytest.raises(KeyboardInterrupt):
        run(Counting(fail_at=5))
    make = Counting()
    resumed = run(make)
    assert make.fits == 8 - 3
    whole = run(folder="other")
    assert [trial.rows for trial in resumed.trials] == [trial.rows for trial in whole.trials]
    again = Counting()
    assert run(again).table() == resumed.table()
    assert again.fits == 0


def test_weightings_and_seeds_may_be_added():
    run(seeds=[0], weightings={"equal": FixedWeighting})
    make = Counting()
    run(make, weightings={**WEIGHTINGS, "analytic": AnalyticUncertaintyWeighting})
    assert make.fits == 2 * 5 - 3


def seeds_kept(folder, name):
    """The seeds of a weighting's trials, from the files."""
    held = [json.loads(file.read_text()) for file in folder.glob("*.json") if file.name != "setup.json"]
    return sorted(one["seed"] for one in held if one["name"] == name)


def test_half_a_file_is_never_read(tmp_path):
    run(seeds=[0], baseline=None)
    file = next((tmp_path / "trials").glob("[0-9a-f]*.json"))
    file.with_name(f"{file.name}.1.partial").write_text("{")
    make = Counting()
    run(make, baseline=None)
    assert make.fits == 2
    assert seeds_kept(tmp_path / "trials", "equal") == [0, 1]


class Wider(Owning):
    def __init__(self, weighting):
        super().__init__(weighting)
        self.other = nn.Linear(1, 1)


class Rated(Owning):
    def __init__(self, weighting, lr=1e-2):
        super().__init__(weighting)
        self.save_hyperparameters(ignore=["weighting"])


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"trainer": {**FAST, "max_epochs": 3}}, "trainer.max_epochs was 2 and is 3"),
        ({"trainer": {**FAST, "gradient_clip_val": 1.0}}, "gradient_clip_val was not given and is 1.0"),
        ({"trainer": {**FAST, "callbacks": [UncertaintyWarmUp(epochs=1)]}}, r"callbacks was not given.*epochs=1"),
        ({"make": Wider}, r"network was Owning of \d+ tensors \(\w+\) and is Wider of"),
        ({"data": (dicts(8), dicts(8))}, "data was DataLoader of 16 rows in batches of 8, .* and is DataLoader of 8"),
        ({"setup": {"lr": 0.1}}, "setup.lr was not given and is 0.1"),
        ({"weightings": {"equal": FixedWeighting({"depth": 2.0})}}, "weighting 'equal' was Fixed.* and is Fixed.*2.0"),
    ],
)
def test_another_setup_in_the_same_folder_is_refused(changed, expected):
    run(seeds=[0], weightings={"equal": FixedWeighting}, baseline=None)
    with pytest.raises(ValueError, match=f"trials of one setup: found that in .*{expected}.*; name another folder"):
        run(**{"seeds": [0], "weightings": {"equal": FixedWeighting}, "baseline": None, **changed})


def test_what_a_callback_was_given_is_part_of_the_setup_and_older_folders_are_read(tmp_path):
    def trained(epochs, make=Owning):
        callbacks = [
            UncertaintyWarmUp(epochs=epochs, blend_from={"depth": 2.0}),
            ModelCheckpoint(tmp_path / f"{epochs}"),
        ]
        options = {"seeds": [0], "weightings": {"uncertainty": UncertaintyWeighting}, "baseline": None}
        run(make, trainer={**FAST, "callbacks": callbacks, "enable_checkpointing": True}, **options)

    trained(1)
    with pytest.raises(
        ValueError, match=r"trainer.callbacks was .*WarmUp\(blend_from={'depth': 2.0}, epochs=1, .* epochs=2"
    ):
        trained(2)
    file = tmp_path / "trials" / "setup.json"
    setup = json.loads(file.read_text())
    setup["trainer.callbacks"] = re.sub(r"\([^()]*\)", "", setup["trainer.callbacks"])
    file.write_text(json.dumps(setup))
    make = Counting()
    trained(1, make)
    assert make.fits == 2  # looked at, not trained


def test_hyper_parameters_are_part_of_the_setup_and_looks_are_not():
    run(Rated, seeds=[0], baseline=None)
    run(Rated, seeds=[0], baseline=None, trainer={**FAST, "log_every_n_steps": 1})
    with pytest.raises(ValueError, match=r"hyper-parameter lr was 0\.01 and is 0\.1"):
        run(partial(Rated, lr=0.1), seeds=[0], baseline=None)


class Note(Callback):
    def __init__(self):
        self.fits = 0

    def on_fit_start(self, trainer, pl_module):
        assert self.fits == 0
        self.fits += 1


def test_callbacks_are_copied_for_every_trial_and_logs_are_beside_it(tmp_path):
    note = Note()
    run(seeds=[0], baseline=None, trainer={**FAST, "callbacks": note, "logger": True, "log_every_n_steps": 1})
    assert note.fits == 0
    logs = [file for file in (tmp_path / "trials").glob("*/lightning_logs/version_0/*") if file.is_file()]
    assert len({file.parent for file in logs}) == len(WEIGHTINGS)
    assert all(file.parents[2].with_suffix(".json").exists() for file in logs)


class Module(LightningDataModule):
    def __init__(self):
        super().__init__()
        self.pair = loaders()

    def train_dataloader(self):
        return self.pair[0]

    def val_dataloader(self):
        return self.pair[1]


@pytest.mark.parametrize("data", [Module(), Module, loaders], ids=["module", "class", "function"])
def test_data_may_be_a_data_module_or_a_function(data):
    found, other = (run(seeds=[0], baseline=None, data=given, folder=f"{given is data}") for given in (data, None))
    assert [trial.rows for trial in found.trials] == [trial.rows for trial in other.trials]


class OtherModule(MultiTaskSteps, lightning.pytorch.LightningModule):
    pass


def tasks(**options):
    return {
        "depth": Task("gaussian", head=nn.Linear(8, 1), metrics=MeanAbsoluteError()),
        "kind": Task("categorical", head=nn.Linear(8, 3), **options),
    }


def test_modules_of_both_lightning_packages():
    def make(kind, weighting):
        return kind(nn.Linear(4, 8), tasks(), weighting, inputs="x")

    one, other = (
        run(partial(make, kind), seeds=[0], baseline=None, folder=kind.__name__)
        for kind in (MultiTaskModule, OtherModule)
    )
    assert [trial.rows for trial in one.trials] == [trial.rows for trial in other.trials]


# -- mistakes ----------------------------------------------------------------------------------------------------------


def shared(weighting, trunk=nn.Linear(4, 8)):  # noqa: B008
    return MultiTaskModule(trunk, tasks(), weighting, inputs="x")


class Unvalidated(Owning):
    validation_step = LightningModule.validation_step


@pytest.mark.filterwarnings("ignore:You passed in a .val_dataloader. but have no:UserWarning")
@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"weightings": {}}, "weightings, and seeds that differ: found 0 weightings"),
        ({"seeds": [0, 0]}, r"seeds that differ: found 2 weightings and seeds \[0, 0\]"),
        ({"weightings": {SINGLE_TASK: FixedWeighting}}, "should not be called 'single task'"),
        ({"baseline": "best"}, "baseline should be 'single task', None, or one of equal, uncertainty: found 'best'"),
        ({"weightings": {"equal": dict}}, "found dict for 'equal'; write {'uncertainty': UncertaintyWeighting}"),
        ({"weightings": {"equal": 3}}, "found int for 'equal'"),
        ({"weightings": {"bound": Owning().task_weighting}}, "found 'bound' bound to depth, kind"),
        ({"make": lambda weighting: Owning()}, "make should give its argument to register_tasks: found Uncertainty"),
        ({"make": shared}, "make should build every network anew"),
        ({"make": Unvalidated}, "found no validation; give validation data"),
        ({"data": (dicts(8),)}, "a trial should be validated: found 1 loader; give those for training and validation"),
        ({"trainer": {**FAST, "devices": 2}}, "a trial should run in one process: found 2"),
        ({"metrics": {"deth": "loss"}}, r"metrics should name tasks \(depth, kind\): found deth"),
        ({"metrics": {"depth": "rmse"}}, "found nothing under 'val/depth/rmse' among epoch, "),
        ({"best_by": "val/total"}, "best_by should be a log key of every validation: found epoch, "),
        ({"logger": CSVLogger("logs")}, "logged to a WandbLogger or a run of wandb: found <.*CSVLogger"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_told(wrong, expected):
    with pytest.raises(ValueError, match=expected):
        run(**{"seeds": [0], "baseline": None, **wrong})


def test_a_module_without_the_mixin_is_told():
    with pytest.raises(TypeError, match="needs a MultiTaskMixin: found LightningModule"):
        run(lambda weighting: LightningModule())


# -- measures ----------------------------------------------------------------------------------------------------------


class Logging(Plain):
    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("val/depth/bias", (self.depth(batch[0])[:, 0] - batch[1]).mean())
        self.log("mine", 1.0)


def test_losses_judge_where_there_is_no_metric_and_others_by_name():
    data = tuples(16), tuples(16)
    found = run(Plain, data=data)
    assert [measure.key for measure in found.measures] == ["val/depth/loss", "val/kind/loss"]
    with pytest.raises(ValueError, match=r"found none for 'bias' of task 'depth'; give higher_is_better=\{'depth'"):
        run(Logging, data=data, folder="logging")
    options = {"metrics": {"depth": ["bias", "mine"]}, "higher_is_better": {"depth": {"bias": False, "mine": True}}}
    found = run(Logging, data=data, folder="logging", **options)
    assert [(m.metric, m.key, m.higher_is_better) for m in found.measures] == [
        ("bias", "val/depth/bias", False),
        ("mine", "mine", True),
        ("loss", "val/kind/loss", False),
    ]


def test_auxiliary_tasks_are_trained_and_shown_and_do_not_count():
    def make(weighting):
        metrics = MetricCollection({"mse": MeanSquaredError(), "mae": MeanAbsoluteError()})
        given = {**tasks(auxiliary=True), "width": Task("gaussian", nn.Linear(8, 1), target="depth", metrics=metrics)}
        return MultiTaskModule(nn.Linear(4, 8), given, weighting, inputs="x")

    found = run(make, metrics={"width": ["mse", "mae"]})
    assert {trial.task for trial in found.trials} == {None, "depth", "width"}
    columns, rows = found.rows()
    assert {"kind/loss", "width/mse", "width/mae"} <= set(columns)
    single = dict(zip(columns, rows[0], strict=True))
    assert single["kind/loss"] is None
    assert single["gain"] == pytest.approx(0, abs=1e-4)
    assert found.auxiliary == ("kind",)


# -- the result --------------------------------------------------------------------------------------------------------


def trial(name, seed, depth, kind, task=None, loss=(1.0,)):
    rows = [
        {"epoch": float(e), DEPTH.key: d, KIND.key: k, "val/balanced_loss": b, "val/depth/loss": -b, "val/kind/loss": b}
        for e, (d, k, b) in enumerate(zip(depth, kind, loss, strict=True))
    ]
    return Trial(name, task, seed, "", rows, {DEPTH.key: False, KIND.key: True}, 0.001, 2**20)


def made(baseline=SINGLE_TASK, best_by=None, **weightings):
    """Numbers by weighting and seed; single tasks come to 2 and 0.5."""
    trials = [trial(name, seed, [d], [k]) for name, seeds in weightings.items() for seed, (d, k) in enumerate(seeds)]
    for seed, (depth, kind) in enumerate([(1.9, 0.6), (2.1, 0.4)]) if baseline == SINGLE_TASK else ():
        trials.append(trial(SINGLE_TASK, seed, [depth], [9.0], "depth"))
        trials.append(trial(SINGLE_TASK, seed, [9.0], [kind], "kind"))
    return Comparison(tuple(trials), (DEPTH, KIND), (), baseline, best_by)


def test_numbers_of_the_table():
    found = made(low=[(2.0, 0.5), (2.2, 0.4)], high=[(1.6, 0.6), (1.8, 0.6)])
    by_name = {result.name: result for result in found.results}
    assert list(by_name) == [SINGLE_TASK, "high", "low"]
    high = by_name["high"]
    assert high.values[DEPTH] == Mean(pytest.approx(1.7), pytest.approx(0.2 / 2**0.5), (1.6, 1.8))
    by_seed = []
    for base, own in zip([(1.9, 0.6), (2.1, 0.4)], [(1.6, 0.6), (1.8, 0.6)], strict=True):
        metric = MultiTaskGain(dict(zip(("depth", "kind"), base, strict=True)), {"depth": False, "kind": True})
        metric.update(dict(zip(("depth", "kind"), own, strict=True)))
        by_seed.append(metric.compute().item())
    assert high.gain.values == pytest.approx(tuple(by_seed), abs=1e-4)
    assert high.gains == pytest.approx(dict(enumerate(by_seed)), abs=1e-4)
    assert high.gain.interval == pytest.approx(12.7062 * abs(by_seed[0] - by_seed[1]) / 2, rel=1e-4)
    assert [by_name[name].rank for name in (SINGLE_TASK, "high", "low")] == [None, 1.0, 2.0]
    single = by_name[SINGLE_TASK]
    assert single.values[DEPTH].mean == pytest.approx(2.0)  # each task of its own trials
    assert single.values[KIND].mean == pytest.approx(0.5)
    assert (high.step_time, high.peak_memory) == (0.001, 2**20)
    assert found.best.name == "high"


def test_csv_holds_the_numbers(tmp_path):
    found = made(low=[(2.0, 0.5), (2.2, 0.4)], high=[(1.6, 0.6), (1.8, 0.6)])
    found.to_csv(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = {row["weighting"]: row for row in csv.DictReader(file)}
    assert float(rows["high"]["depth/MeanAbsoluteError"]) == pytest.approx(1.7)
    assert float(rows["high"]["kind/MulticlassAccuracy std"]) == 0.0
    assert float(rows["low"]["gain"]) == pytest.approx(
        100 * ((-0.1 / 1.9 - 0.1 / 0.6) + (-0.1 / 2.1 + 0)) / 4, rel=1e-4
    )
    assert (rows["high"]["gain seeds"], rows["high"]["depth/MeanAbsoluteError seeds"]) == ("2", "2")
    assert float(rows["high"]["depth/MeanAbsoluteError ci95"]) == pytest.approx(12.7062 * 0.1, rel=1e-4)
    assert (rows["high"]["seeds"], rows["high"]["mean rank"], rows["single task"]["mean rank"]) == ("2", "1.0", "")


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_reads_well(rich, monkeypatch):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.box", None)
    text = str(made(low=[(2.0, 0.5), (2.2, 0.4)], high=[(1.6, 0.6), (1.8, 0.5)]))
    assert "Weightings at the last epoch, 2 seeds, mean ± 95 % interval" in text
    assert "depth MeanAbsoluteError ↓" in text
    assert "kind MulticlassAccuracy ↑" in text
    (line,) = [line.split() for line in text.splitlines() if line.strip().startswith("high")][:1]
    assert line[:4] == ["high", "1.7", "±", "1.3"]
    assert "high gains most: +13.77 ± 75 % over single task (2 seeds)." in text
    assert max(map(len, text.splitlines())) <= 120


def test_without_a_baseline_ranks_decide():
    found = made(baseline=None, low=[(2.0, 0.5)], high=[(1.6, 0.6)])
    assert [result.gain for result in found.results] == [None, None]
    assert found.answer() == "high has the lowest mean rank, 1.00 (1 seed)."
    _, ax = found.plot()
    assert ax.get_xlabel().startswith("mean rank, 1 is best")


def test_a_weighting_that_diverged_is_last():
    found = made(fine=[(3.0, 0.1)] * 2, broken=[(math.nan, 0.9)] * 2)
    assert [result.name for result in found.results] == [SINGLE_TASK, "fine", "broken"]
    assert "broken" in found.table()


def test_the_best_epoch_is_that_of_the_key_or_of_the_own_loss():
    loss = [2.0, 1.0, 3.0]
    trials = [trial("w", 0, [5.0, 6.0, 7.0], [0.1, 0.2, 0.3], loss=loss)]
    trials += [trial(SINGLE_TASK, 0, [5.0, 6.0, 7.0], [0.1] * 3, task, loss) for task in ("depth", "kind")]

    def depths(best_by):
        found = Comparison(tuple(trials), (DEPTH, KIND), (), SINGLE_TASK, best_by)
        return [result.values[DEPTH].mean for result in found.results]

    assert depths(None) == [7.0, 7.0]
    assert depths("val/balanced_loss") == [7.0, 6.0]  # val/depth/loss is lowest in the last epoch
    assert depths(KIND.key) == [7.0, 7.0]  # higher is better


@pytest.mark.parametrize("epoch", range(3))
def test_an_epoch_that_diverged_is_never_the_best(epoch):
    loss = [2.0, 1.0, 1.5]
    loss[epoch] = math.nan
    row = trial("w", 0, [5.0, 6.0, 7.0], [0.1, 0.2, 0.3], loss=loss).row("val/balanced_loss")
    assert row[DEPTH.key] == [6.0, 7.0, 6.0][epoch]


def test_the_plot_shows_means_and_seeds():
    from matplotlib import pyplot

    found = made(low=[(2.0, 0.5), (2.2, 0.4)], high=[(1.6, 0.6), (1.8, 0.6)])
    figure, ax = found.plot()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["low (n=2)", "high (n=2)"]  # the best on top
    high = found.best.gain
    assert list(ax.lines[3].get_xdata()) == list(high.values)
    assert list(ax.lines[4].get_xdata()) == [high.mean]
    assert list(ax.lines[5].get_xdata()) == [high.mean - high.interval, high.mean + high.interval]
    again = found.plot(ax=ax)
    assert again == (figure, ax)
    pyplot.close("all")


def test_the_plot_needs_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-uncertainty\[plot\]"):
        made(low=[(2.0, 0.5)] * 2).plot()


@pytest.mark.parametrize("kind", ["logger", "run"])
def test_wandb_gets_table_plot_and_summary(kind, tmp_path):
    found = made(low=[(2.0, 0.5), (2.2, 0.4)], high=[(1.6, 0.6), (1.8, 0.6)])
    mine = wandb.init(project="x", dir=tmp_path, mode="offline", reinit="finish_previous")
    logger = mine if kind == "run" else WandbLogger(experiment=mine)
    found.log(logger)
    folder = tmp_path / "wandb" / mine.dir.split("/wandb/")[1].split("/")[0]
    summary = dict(mine.summary)
    wandb.finish()
    assert summary["gain/high"] == found.best.gain.mean
    assert summary["mean rank/low"] == 2.0
    assert any("comparison" in str(row) for row in history(folder))
    (table,) = folder.rglob("comparison*.table.json")
    columns, rows = found.rows()
    written = json.loads(table.read_text())
    assert (written["columns"], [row[0] for row in written["data"]]) == (columns, [row[0] for row in rows])
    assert list(folder.rglob("comparison_plot*.png"))


def test_a_comparison_that_wandb_refuses_is_not_lost(monkeypatch):
    def refuse(*args):
        raise ConnectionError("nobody answers")

    mine = wandb.init(project="x", mode="offline", reinit="finish_previous")
    monkeypatch.setattr(comparison, "log_comparison", refuse)
    with pytest.warns(UserWarning, match=r"Run should take a comparison: found a refusal \(nobody answers\)"):
        found = run(seeds=[0], baseline=None, logger=mine)
    wandb.finish()
    assert len(found.results) == 2


def test_a_logger_of_another_kind_is_refused_before_anything_is_trained(tmp_path):
    built = []
    with pytest.raises(ValueError, match="logged to a WandbLogger or a run of wandb"):
        run(lambda weighting: built.append(weighting), seeds=[0], logger=CSVLogger(tmp_path))
    assert built == []


# -- progress ----------------------------------------------------------------------------------------------------------


def test_progress_follows_trials_and_epochs_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    run(seeds=[0], baseline=None, progress_bar=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "uncertainty, seed 0" in shown


def test_names_may_look_like_markup(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    run(weightings={"a[/b]": FixedWeighting, "bold [b]": FixedWeighting}, seeds=[0], baseline=None, progress_bar=True)
    assert "bold [b], seed 0" in capsys.readouterr().err


def test_seeds_may_be_those_of_numpy():
    assert {trial.seed for trial in run(seeds=np.arange(2), baseline=None).trials} == {0, 1}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_fit_without_a_step_is_refused_and_what_was_compiled_whole():
    with pytest.raises(ValueError, match=r"a trial should train: found max_epochs=0 and max_steps=-1; raise them"):
        run(trainer={**FAST, "max_epochs": 0}, baseline=None)
    with pytest.raises(ValueError, match=r"found what torch.compile makes of one; write module.compile\(\)"):
        run(lambda weighting: torch.compile(Owning(weighting)), baseline=None)


@pytest.mark.parametrize("rich", [True, False])
def test_progress_is_lines_elsewhere_and_silent_when_asked(rich, monkeypatch, capsys):
    if not rich:
        monkeypatch.setitem(sys.modules, "rich.console", None)
    run(seeds=[0], baseline=None, progress_bar=True)
    captured = capsys.readouterr()
    lines = [line.partition(" ")[2] for line in captured.err.splitlines()]
    assert captured.out == ""
    assert lines[0] == "equal, seed 0 begins"
    assert lines[1].startswith("equal, seed 0 is finished after ")
    assert lines[3].endswith("s; 2 of 2 done here")
    run(seeds=[0, 1], baseline=None, progress_bar=False)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_mixin_knows_its_auxiliary_tasks():
    class Net(MultiTaskMixin, LightningModule):
        def __init__(self):
            super().__init__()
            self.register_tasks({"depth": "gaussian", "edges": Task("bernoulli", auxiliary=True)})

    assert Net().auxiliary_tasks() == ["edges"]
