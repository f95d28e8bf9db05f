import json

import numpy as np
import pytest
import torch
from pytorch_lightning import LightningDataModule, Trainer, seed_everything

from lightning_uncertainty import FixedWeighting
from lightning_uncertainty.trials._settings import points_of
from tests._nets import Owning, Plain
from tests.trials.test_comparing import FAST, WEIGHTINGS, loaders, run

RATES = {"lr": [1e-4, 3e-2]}


class Rated(Owning):
    def __init__(self, weighting, lr):
        super().__init__(weighting)
        self.save_hyperparameters("lr")

    def test_step(self, batch, batch_idx):
        self.task_step(self.trunk(batch["x"]).tanh(), batch, "test")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameter_groups(lr=self.hparams.lr))


def three():
    return (*loaders(), loaders()[1])


class Making:
    """Notes at what rate each weighting is fitted; may break one."""

    def __init__(self, broken=None):
        self.calls, self.broken = [], broken

    def __call__(self, weighting, lr):
        self.calls.append((type(weighting).__name__, lr))
        if len(self.calls) > 1 and lr == self.broken:
            raise RuntimeError("diverged")
        return Rated(weighting, lr)


def test_each_weighting_is_reported_on_test_data_at_its_best_rate(tmp_path):
    make = Making()
    found = run(make, data=three(), settings=RATES, baseline="equal")
    assert len(make.calls) - 1 == 2 * 2 + 2  # both rates with the first seed, and the better with the second
    kept = [json.loads(file.read_text()) for file in (tmp_path / "trials").glob("[0-9a-f]*.json")]
    for name in WEIGHTINGS:
        scores = {
            one["settings"]["lr"]: one["rows"][-1]["val/balanced_loss"]
            for one in kept
            if one["name"] == name and one["seed"] == 0
        }
        best = min(scores, key=scores.get)
        assert {trial.settings["lr"] for trial in found.trials if trial.name == name} == {best}
    assert [measure.key for measure in found.measures] == [
        "test/depth/MeanAbsoluteError",
        "test/kind/MulticlassAccuracy",
    ]
    trial = found.trials[0]
    seed_everything(trial.seed, workers=True, verbose=False)
    net = Rated(FixedWeighting(), float(trial.settings["lr"]))
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(**FAST, **quiet)
    train, val, test = three()
    trainer.fit(net, train, val)
    (by_hand,) = trainer.test(net, test, verbose=False)
    assert dict(trial.test) == by_hand
    assert found.best.values[found.measures[0]].mean > 0
    text = " ".join(found.table().split())
    assert "Weightings on test data at the last epoch" in text
    assert "settings: " in text
    assert "uncertainty: lr=0." in text


def test_rates_and_seeds_may_be_added():
    run(Making(), data=three(), settings=RATES, baseline=None, seeds=[0])
    make = Making()
    run(make, data=three(), settings={"lr": [1e-4, 1e-3, 3e-2]}, baseline=None, seeds=[0])
    assert [rate for _, rate in make.calls[1:]] == [1e-3, 1e-3]


def test_single_tasks_have_their_own_best():
    found = run(Making(), data=three(), settings=RATES, seeds=[0])
    single = next(result for result in found.results if result.name == "single task")
    assert "depth lr=" in single.settings
    assert "kind lr=" in single.settings


def test_a_rate_that_fails_is_not_chosen_and_where_all_fail_it_is_a_row():
    with pytest.warns(UserWarning, match=r"'\w+, lr=0.03, seed 0' failed: RuntimeError: diverged"):
        found = run(Making(broken=3e-2), data=three(), settings=RATES, baseline=None)
    assert {trial.settings["lr"] for trial in found.trials} == {"0.0001"}
    assert not any(trial.failed for trial in found.trials)


def test_failed_trials_of_every_seed_are_fitted_again_once_when_asked():
    class OnlyFirst(Making):
        def __call__(self, weighting, lr):
            module = super().__call__(weighting, lr)
            if torch.initial_seed() == 1 and len(self.calls) > 1:
                raise RuntimeError("broken")
            return module

    with pytest.warns(UserWarning, match="seed 1' failed"):
        run(OnlyFirst(), data=three(), settings=RATES, baseline=None)
    make = OnlyFirst()
    with pytest.warns(UserWarning, match="seed 1' failed"):
        run(make, data=three(), settings=RATES, baseline=None, retry_failed=True)
    assert len(make.calls) - 1 == 2


class Untested(LightningDataModule):
    def train_dataloader(self):
        return loaders()[0]

    def val_dataloader(self):
        return loaders()[1]


def test_settings_that_shape_the_network_may_be_added_in_front():
    class Sized(Rated):
        def __init__(self, weighting, lr, width):
            super().__init__(weighting, lr)
            self.save_hyperparameters({"options": {"lr": lr}})
            self.other = torch.nn.Linear(1, width)

    given = {"data": three(), "baseline": None, "seeds": [0]}
    run(Sized, settings={"lr": [1e-3], "width": [2, 3]}, **given)
    calls = []

    def counting(weighting, lr, width):
        calls.append((lr, width))
        return Sized(weighting, lr, width)

    run(counting, settings={"lr": [1e-2, 1e-3], "width": [4, 3, 2]}, **given)
    looked_at = 1 + 6  # the first, and all until one is that of the folder
    assert len(calls) == looked_at + 2 * 4
    assert not {(1e-3, 2), (1e-3, 3)} & {*calls[looked_at:]}


def test_settings_may_be_of_numpy_or_made_as_they_come():
    assert points_of({"lr": np.array([0.5, 0.25]), "width": (2**i for i in range(2))}) == [
        {"lr": lr, "width": width} for lr in (0.5, 0.25) for width in (1, 2)
    ]
    assert type(points_of({"lr": [np.float64(0.5)]})[0]["lr"]) is float


def test_a_wrong_key_to_choose_by_is_told_after_one_fit():
    make = Making()
    with pytest.raises(ValueError, match="choose_by"):
        run(make, data=three(), settings=RATES, baseline=None, seeds=[0], choose_by="val/x")
    assert len(make.calls) == 2


def test_trials_of_before_settings_are_not_taken_for_some(tmp_path):
    old = run(lambda weighting: Rated(weighting, 1e-4), data=three, baseline=None, seeds=[0])
    for trial, file in zip(old.trials, sorted((tmp_path / "trials").glob("[0-9a-f]*.json")), strict=True):
        held = json.loads(file.read_text())
        file.rename(tmp_path / f"trials/{held['name']}, seed {held['seed']}.json")
        assert trial
    setup = tmp_path / "trials" / "setup.json"
    kept = json.loads(setup.read_text())
    kept.pop("hyper-parameter lr")
    setup.write_text(json.dumps(kept))
    make = Making()
    run(make, data=three, settings=RATES, baseline=None, seeds=[0])
    assert len(make.calls) == 1 + 2 * 2


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"settings": {"lr": []}}, r"values whose texts differ: found \[\] for 'lr'"),
        ({"settings": {"lr": [1, 1]}}, "values whose texts differ"),
        ({"settings": {"lr": [Plain, Plain]}}, "values whose texts differ"),
        ({"settings": {"lr": [object(), object()]}}, "names or numbers in place of functions and objects"),
        ({"settings": {"lr": [lambda: 1, lambda: 2]}}, "names or numbers in place of functions and objects"),
        ({"settings": {"lr": 1e-3}}, "values whose texts differ: found 0.001 for 'lr'"),
        ({"settings": {"weighting": [1, 2]}}, "should not be called 'weighting'"),
        ({"data": Untested()}, "found no test_dataloader in Untested; write one"),
        ({"settings": {"lr": "ab"}}, "values whose texts differ: found 'ab'"),
        ({"best_by": "val/balanced_loss"}, "best_by should be None with settings"),
        ({"data": loaders()}, "reported on test data: found 2 loaders"),
        ({"data": loaders}, "reported on test data: found 2 loaders; give those for training, validation and testing"),
        ({"choose_by": "val/x"}, "choose_by should be a log key of validation: found nothing under 'val/x'"),
        ({"make": lambda weighting, lr: Plain(weighting)}, "reported on test data: found no test_step in Plain"),
        ({"metrics": {"depth": "x"}}, "should be logged in testing: found nothing under 'test/depth/x'"),
    ],
)
def test_mistakes_are_told(wrong, expected):
    with pytest.raises(ValueError, match=expected):
        run(**{"make": Making(), "data": three(), "settings": RATES, "baseline": None, "seeds": [0], **wrong})


def test_points_are_all_combinations():
    points = points_of({"lr": [1, 2], "width": [3, 4]})
    assert points == [{"lr": 1, "width": 3}, {"lr": 1, "width": 4}, {"lr": 2, "width": 3}, {"lr": 2, "width": 4}]
