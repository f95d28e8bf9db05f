"""What is kept of a fit: all of its steps, to the last, and none of another."""

import math
from contextlib import suppress

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from tests._nets import Owning, Plain, dicts, trainer, tuples
from tests.callbacks._tails import KEY, fit


class Noted(Plain):
    """Keeps the depth's loss of every batch."""

    def __init__(self, weighting=None):
        super().__init__(weighting)
        self.seen = []

    def training_step(self, batch, batch_idx):
        losses = self.losses(batch)
        self.seen.append(losses["depth"].item())
        return self.weigh(losses)


class Stop(Callback):
    """Ends the fit with a batch, in one of several ways."""

    def __init__(self, at, how):
        self.at, self.how, self.batches = at, how, 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batches += 1
        if self.batches == self.at:
            if isinstance(self.how, BaseException):
                raise self.how
            trainer.should_stop = True


def rows_of(monitor):
    return [(row["step"], pytest.approx(row["loss/depth"])) for row in monitor.history.rows]


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize(
    ("options", "windows"),
    [
        ({}, {7: (0, 8)}),
        ({"log_every_n_steps": 3}, {2: (0, 3), 5: (3, 6), 7: (6, 8)}),
        ({"log_every_n_steps": 4}, {3: (0, 4), 7: (4, 8)}),
        ({"max_steps": 7, "log_every_n_steps": 3}, {2: (0, 3), 5: (3, 6), 6: (6, 7)}),
        ({"limit_train_batches": 3, "log_every_n_steps": 4}, {3: (0, 4), 5: (4, 6)}),
        ({"limit_train_batches": 0.75, "log_every_n_steps": 4}, {3: (0, 4), 5: (4, 6)}),
        ({"accumulate_grad_batches": 3, "log_every_n_steps": 3}, {2: (0, 7), 3: (7, 8)}),
        ({"overfit_batches": 1}, {1: (0, 2)}),
        ({"fast_dev_run": 2}, {1: (0, 2)}),
        ({"callbacks": [Stop(6, "should_stop")], "log_every_n_steps": 4}, {3: (0, 4), 5: (4, 6)}),
        ({"callbacks": [Stop(6, KeyboardInterrupt())], "log_every_n_steps": 4}, {3: (0, 4), 5: (4, 6)}),
        ({"callbacks": [Stop(6, RuntimeError("failed"))], "log_every_n_steps": 4}, {3: (0, 4), 5: (4, 6)}),
        ({"callbacks": [Stop(5, KeyboardInterrupt())], "accumulate_grad_batches": 2}, {2: (0, 5)}),
    ],
    ids=lambda given: "-".join(map(str, given)) if isinstance(given, dict) and set(given) - {7} else "",
)
def test_the_last_row_holds_the_steps_that_are_left_over(options, windows, tmp_path):
    net, monitor, logger = Noted(), UncertaintyMonitor(table=False), CSVLogger(tmp_path)
    others = options.pop("callbacks", [])
    fitted = trainer(callbacks=[monitor, *others], logger=logger, **{"log_every_n_steps": 50, **options})
    with suppress(SystemExit, RuntimeError):
        fitted.fit(net, tuples())
    expected = [(step, mean(net.seen[begin:end])) for step, (begin, end) in windows.items()]
    assert expected == rows_of(monitor)
    assert fitted.callback_metrics["loss/depth"].item() == pytest.approx(expected[-1][1])
    if not fitted.fast_dev_run:
        written = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
        at = written[0].split(",").index("step")
        assert [int(line.split(",")[at]) for line in written[1:]] == list(windows)


def test_a_step_that_fails_halfway_is_in_a_row_of_its_own():
    class Failing(Noted):
        def on_after_backward(self):
            if len(self.seen) == 6:
                raise RuntimeError("failed")

    net, monitor = Failing(), UncertaintyMonitor(table=False)
    with pytest.raises(RuntimeError, match="failed"):
        trainer(callbacks=[monitor]).fit(net, tuples())
    assert [(step, loss) for step, loss in enumerate(net.seen)] == rows_of(monitor)


def test_what_cannot_be_read_hides_no_exception():
    class Broken(Noted):
        def take_row(self, **options):
            raise ValueError("the device is gone")

    with pytest.raises(RuntimeError, match="failed"):
        trainer(callbacks=[UncertaintyMonitor(), Stop(2, RuntimeError("failed"))], log_every_n_steps=50).fit(
            Broken(), tuples()
        )


@pytest.mark.parametrize(("how", "shown"), [(KeyboardInterrupt(), True), (RuntimeError("failed"), False)])
def test_an_interrupted_fit_has_its_table(how, shown, capsys):
    with suppress(SystemExit, RuntimeError):
        trainer(callbacks=[UncertaintyMonitor(), Stop(6, how)]).fit(Plain(), tuples())
    assert ("Task uncertainty after 6 steps" in capsys.readouterr().out) == shown


def test_a_later_failure_is_none_of_the_fit(capsys):
    class Failing(Plain):
        def validation_step(self, batch, batch_idx):
            raise RuntimeError("failed")

    monitor, net = UncertaintyMonitor(), Failing()
    fitted = trainer(callbacks=[monitor], log_every_n_steps=50)
    fitted.fit(net, tuples())
    with pytest.raises(RuntimeError, match="failed"):
        fitted.validate(net, tuples())
    assert len(monitor.history.rows) == 1
    assert capsys.readouterr().out.count("Task uncertainty") == 1


def test_no_row_is_made_where_nothing_is_to_be_logged():
    monitor, stop = UncertaintyMonitor(table=False), EarlyStopping("loss/depth", patience=0, min_delta=1e9)
    fitted = trainer(callbacks=[stop, monitor], log_every_n_steps=0, max_epochs=9)
    with pytest.warns(UserWarning, match="found log_every_n_steps=0, .* so that loggers and history get no row"):
        fitted.fit(Plain(), tuples())
    assert monitor.history.rows == []
    assert fitted.current_epoch == 2  # callbacks find the values all the same


# -- what callbacks find -----------------------------------------------------------------------------------------------


class Watch(Callback):
    """What a callback that stands anywhere finds, wherever it looks, and what the losses were by then."""

    monitor = "loss/depth"

    def __init__(self):
        self.found = []

    def look(self, trainer, pl_module, *args):
        if not trainer.sanity_checking:
            value = trainer.callback_metrics[self.monitor].item()
            self.found.append((len(pl_module.seen), value))

    on_validation_end = on_train_epoch_end = look


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"num_sanity_val_steps": 2},
        {"val_check_interval": 2},
        {"val_check_interval": 3, "check_val_every_n_epoch": None},
        {"limit_train_batches": 3},
        {"limit_val_batches": 0},
        {"accumulate_grad_batches": 2},
        {"max_steps": 6},
    ],
    ids=lambda options: next(iter(options)),
)
def test_callbacks_find_the_steps_since_the_last_row_whenever_they_look(options, first):
    watch, monitor, net = Watch(), UncertaintyMonitor(table=False), Noted()
    every = 3 * options.get("accumulate_grad_batches", 1)  # batches of a row
    callbacks = [watch, monitor] if first else [monitor, watch]
    trainer(callbacks=callbacks, max_epochs=3, log_every_n_steps=3, **options).fit(net, tuples(), tuples())
    assert len(watch.found) >= 2
    for count, value in watch.found:
        assert value == pytest.approx(mean(net.seen[(count - 1) // every * every : count]))


def test_an_epoch_that_a_hook_ends_early_is_told_of_too():
    class Short(Noted):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 2 else None

    net, stop = Short(), EarlyStopping("loss/depth", patience=0, min_delta=1e9)
    fitted = trainer(callbacks=[stop, UncertaintyMonitor(table=False)], log_every_n_steps=50, max_epochs=9)
    fitted.fit(net, tuples())
    assert fitted.current_epoch == 2


@pytest.mark.parametrize("key", ["loss/depth", "sigma/kind", "sigma_gap/depth", "weight/kind"])
@pytest.mark.parametrize("at", [True, False], ids=["epoch", "validation"])
def test_early_stopping_and_checkpoints_before_the_monitor_follow_our_keys_from_the_first_epoch(key, at, tmp_path):
    stop = EarlyStopping(key, patience=0, min_delta=1e9, check_on_train_epoch_end=at)
    best = ModelCheckpoint(tmp_path, "{epoch}", monitor=key, save_on_train_epoch_end=at)
    fitted = trainer(
        callbacks=[stop, best, UncertaintyMonitor(table=False)],
        enable_checkpointing=True,
        log_every_n_steps=50,
        max_epochs=9,
    )
    fitted.fit(Plain(), tuples(), tuples())
    assert fitted.current_epoch == 2
    assert best.best_model_score is not None


def test_schedulers_follow_our_keys_from_the_first_epoch():
    class Scheduled(Plain):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=1e9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "loss/depth"}}

    fitted = trainer(callbacks=[UncertaintyMonitor(table=False)], log_every_n_steps=50, max_epochs=3)
    fitted.fit(Scheduled(), tuples())
    assert fitted.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-5)


def test_a_step_is_read_from_the_device_once(monkeypatch):
    reads = []

    class Counted(Plain):
        def take_row(self, **options):
            reads.append(self.global_step)
            return super().take_row(**options)

    trainer(callbacks=[UncertaintyMonitor(table=False)], log_every_n_steps=3).fit(Counted(), tuples(), tuples())
    assert reads == [3, 4, 6, 8, 8]  # two rows, two epochs' ends, the last row


@pytest.mark.cells("tests.callbacks._tails", "{accumulated}")
@pytest.mark.parametrize("accumulated", ["1", "2"])
def test_two_processes_keep_and_find_what_one_does(accumulated, found):
    one, two = fit(int(accumulated)), found(accumulated)
    assert two == found(accumulated, rank=1)
    assert [row["step"] for row in two["rows"]] == {"1": [3, 7, 11, 14], "2": [3, 7, 8]}[accumulated]
    for row, expected in zip(two["rows"], one["rows"], strict=True):
        assert row == pytest.approx(expected, rel=1e-6)
    assert two["read"] == pytest.approx(one["read"], rel=1e-6)
    assert two["best"] == pytest.approx(min(one["read"]), rel=1e-6), KEY


# -- one run, and no other ---------------------------------------------------------------------------------------------


def test_a_new_fit_starts_anew(capsys):
    monitor = UncertaintyMonitor()
    trainer(callbacks=[monitor], max_epochs=5).fit(Plain(), tuples(), tuples())
    capsys.readouterr()
    other = Owning(UncertaintyWeighting())
    trainer(callbacks=[monitor], log_every_n_steps=3).fit(other, dicts(), dicts())
    assert [row["step"] for row in monitor.history.rows] == [2, 5, 7]
    assert [row["step"] for row in monitor.evaluations.rows] == [3, 7]
    assert monitor.to_frame().index.is_unique
    assert "Task uncertainty after 8 steps" in capsys.readouterr().out


def test_a_fit_that_resumes_goes_on(tmp_path):
    first = UncertaintyMonitor(table=False)
    fitted = trainer(callbacks=[first], log_every_n_steps=3)
    fitted.fit(Plain(), tuples())
    fitted.save_checkpoint(tmp_path / "net.ckpt")
    other = UncertaintyMonitor(table=False)
    trainer(callbacks=[other], max_epochs=9).fit(Plain(), tuples())  # of which nothing is left
    trainer(callbacks=[other], log_every_n_steps=3, max_epochs=4).fit(
        Plain(), tuples(), ckpt_path=tmp_path / "net.ckpt"
    )
    assert [row["step"] for row in other.history.rows] == [2, 5, 7, 8, 11, 14, 15]
    assert other.history.rows[:3] == first.history.rows
    trainer(callbacks=[other]).fit(Plain(), tuples())
    assert [row["step"] for row in other.history.rows] == list(range(8))


def test_a_run_that_resumes_without_the_monitors_state_starts_anew(tmp_path):
    plain = trainer()
    plain.fit(Plain(), tuples())
    plain.save_checkpoint(tmp_path / "net.ckpt")
    monitor = UncertaintyMonitor(table=False)
    trainer(callbacks=[monitor], max_epochs=5).fit(Plain(), tuples())
    trainer(callbacks=[monitor], max_epochs=3).fit(Plain(), tuples(), ckpt_path=tmp_path / "net.ckpt")
    assert [row["step"] for row in monitor.history.rows] == [8, 9, 10, 11]


@pytest.mark.parametrize("saved", ["on_train_batch_end", "on_validation_end", "on_train_epoch_end"])
@pytest.mark.parametrize("at", [1, 4])
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_the_index_is_unique_wherever_a_checkpoint_was_saved(saved, at, tmp_path):
    class Saver(Callback):
        def save(self, trainer, *args):
            if trainer.global_step == at and not (tmp_path / "net.ckpt").exists():
                trainer.save_checkpoint(tmp_path / "net.ckpt")

    saver = Saver()
    setattr(saver, saved, saver.save)
    options = {"val_check_interval": 1, "log_every_n_steps": 1}
    trainer(callbacks=[UncertaintyMonitor(table=False), saver], limit_train_batches=at, **options).fit(
        Plain(), tuples(), tuples()
    )
    monitor = UncertaintyMonitor(table=False)
    trainer(callbacks=[monitor], max_epochs=3, limit_train_batches=at, **options).fit(
        Plain(), tuples(), tuples(), ckpt_path=tmp_path / "net.ckpt"
    )
    frame = monitor.to_frame()
    assert frame.index.is_unique
    assert list(frame.index) == sorted(frame.index)
    assert frame.index[0] == 0
    assert len(frame) >= at + 1


def test_tasks_that_never_had_labels_have_a_blank_row_in_their_place(capsys):
    batches = dicts()
    batches.dataset.table["depth"][:] = math.nan
    monitor = UncertaintyMonitor()
    trainer(callbacks=[monitor]).fit(Owning(), batches)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["depth", "gaussian", "RMSE", "[label]"] in lines
    (kind,) = (line for line in lines if line[:1] == ["kind"])
    assert lines.index(["depth", "gaussian", "RMSE", "[label]"]) < lines.index(kind)


def test_a_fit_without_any_label_is_shown_as_such(capsys):
    batches = dicts()
    batches.dataset.table["depth"][:] = math.nan
    batches.dataset.table["kind"][:] = -100
    trainer(callbacks=[UncertaintyMonitor()]).fit(Owning(), batches)
    shown = capsys.readouterr().out
    assert "Task uncertainty after 8 steps" in shown
    assert "depth   gaussian" in shown
