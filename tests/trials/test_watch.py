import signal
from contextlib import suppress
from itertools import product

import pytest
from pytorch_lightning import Trainer

from lightning_uncertainty.trials import compare
from lightning_uncertainty.trials._watch import TrialWatch, _batches, _first_validation
from tests._nets import Owning, dicts
from tests.trials.test_comparing import FAST, WEIGHTINGS, Counting, run

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


class Asked(TrialWatch):
    """Notes what is foreseen, and refuses nothing."""

    def on_train_start(self, trainer, pl_module):
        self.foreseen = _first_validation(trainer) <= _batches(trainer, pl_module)

    def on_fit_end(self, trainer, pl_module):
        pass


OPTIONS = [
    {"max_epochs": epochs, "max_steps": steps, "check_val_every_n_epoch": every, "val_check_interval": interval}
    for epochs, steps, every, interval in product((1, 2, None), (-1, 1, 3, 5), (1, 2, None), (1.0, 0.5, 3))
    if (epochs is not None or steps > 0)  # it ends
    and (every is not None or interval == 3)  # the Trainer wants batches where it counts them through
    and (every is None or interval != 3)  # and not more than an epoch has where it does not
]


@pytest.mark.parametrize("size", [1, 2])
def test_whether_a_fit_validates_is_foreseen(size):
    seen = set()
    for options in OPTIONS:
        watch = Asked()
        trainer = Trainer(
            **options,
            **QUIET,
            accelerator="cpu",
            accumulate_grad_batches=size,
            num_sanity_val_steps=0,
            callbacks=[watch],
        )
        trainer.fit(Owning(), dicts(32), dicts(16))
        assert watch.foreseen == bool(watch.rows), options
        seen.add(watch.foreseen)
    assert seen == {True, False}


@pytest.mark.parametrize(
    "options",
    [
        {"max_steps": 1, "max_epochs": -1},
        {"check_val_every_n_epoch": 5},
        {"max_steps": 1, "accumulate_grad_batches": 1},
        {"val_check_interval": 5, "check_val_every_n_epoch": None},
    ],
)
def test_a_fit_that_would_not_validate_is_refused_before_its_first_step(options, monkeypatch):
    steps = []
    monkeypatch.setattr(Owning, "training_step", lambda self, batch, batch_idx: steps.append(1))
    with pytest.raises(
        ValueError, match=r"validated before its end: found the first validation after \d+ .* max_epochs"
    ):
        run(seeds=[0], baseline=None, trainer={**FAST, **options})
    assert steps == []


def test_a_fit_that_did_not_validate_after_all_is_a_row():
    class Stopping(Owning):
        def training_step(self, batch, batch_idx):
            if type(self.task_weighting).__name__ == "FixedWeighting":
                self.trainer.limit_val_batches = 0  # as a callback of somebody's might
                self.trainer.fit_loop.epoch_loop.val_loop.run = lambda: None
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match="ValueError: no validation came before the end of the fit"):
        found = run(Stopping, seeds=[0], baseline=None)
    assert {result.name: bool(result.failed) for result in found.results} == {"uncertainty": False, "equal": True}


@pytest.mark.parametrize(("hook", "calls_a_fit"), [("on_train_epoch_start", 2), ("setup", 1)])
def test_ctrl_c_says_what_is_kept_and_how_to_go_on(hook, calls_a_fit, tmp_path, capsys):
    handler = signal.getsignal(signal.SIGINT)
    calls = []

    def interrupt(self, stage=None):
        calls.append(1)
        if len(calls) == calls_a_fit + 1:
            signal.raise_signal(signal.SIGINT)

    interrupted = type("Owning", (Owning,), {hook: interrupt})
    with pytest.raises(KeyboardInterrupt):
        compare(interrupted, (dicts(16), dicts(16)), WEIGHTINGS, "x", seeds=[0, 1], trainer=FAST, baseline=None)
    assert f"interrupted: 1 of 4 trials are kept in {tmp_path / 'x'}; the same call goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is handler  # and not ignored, as the Trainer leaves it
    make = Counting(Owning)
    found = compare(make, (dicts(16), dicts(16)), WEIGHTINGS, "x", seeds=[0, 1], trainer=FAST, baseline=None)
    assert len(found.trials) == 4
    assert make.fits == 3


@pytest.mark.parametrize("ends", [lambda: None, lambda: (_ for _ in ()).throw(RuntimeError("a worker exited"))])
def test_ctrl_c_that_is_lost_on_its_way_still_interrupts(ends, tmp_path):
    """As where workers of a loader end first, and raise, or where a hook of the interpreter drops it."""

    class Losing(Owning):
        def on_train_start(self):
            with suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
            ends()

    with pytest.raises(KeyboardInterrupt):
        compare(Losing, (dicts(16), dicts(16)), WEIGHTINGS, "x", seeds=[0], trainer=FAST, baseline=None)
    assert not list((tmp_path / "x").glob("[0-9a-f]*.json"))


def test_sigterm_says_what_is_kept_and_ends_with_its_status(tmp_path, capsys):
    class Terminated(Owning):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if self.trainer.global_step == 3:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        compare(Terminated, (dicts(16), dicts(16)), WEIGHTINGS, "x", seeds=[0], trainer=FAST, baseline=None)
    assert ended.value.code == 128 + signal.SIGTERM
    assert "interrupted: 0 of 2 trials are kept" in capsys.readouterr().err
    assert not list((tmp_path / "x").glob("[0-9a-f]*.json"))
