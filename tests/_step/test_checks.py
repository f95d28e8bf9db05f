import math
import re
import warnings
from types import SimpleNamespace

import pytest
from pytorch_lightning import Trainer

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty._step import epochs_of
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.trials import compare
from lightning_uncertainty.weightings import (
    DynamicWeightAverage,
    SmoothTchebycheff,
    SoftOptimalUncertaintyWeighting,
)
from tests._nets import Owning, Plain, dicts, tuples

QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
BEGINS = "only gathers losses"
SHARES = "should share its weight"


def scaled(kind, scale):
    class Scaled(kind):
        def weigh(self, losses, stage=None):
            depth = losses["depth"]
            depth = (depth[0] * scale, depth[1]) if isinstance(depth, tuple) else depth * scale
            return super().weigh({**losses, "depth": depth}, stage=stage)

    return Scaled


def said(net, data, words, **options):
    options = {"max_epochs": 1, **options}
    trainer = Trainer(accelerator="cpu", **QUIET, **options)
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        trainer.fit(net, data)
    return [str(one.message) for one in found if words in str(one.message)]


@pytest.mark.parametrize("callbacks", [[], [UncertaintyMonitor]], ids=["alone", "monitor"])
@pytest.mark.parametrize(
    ("make", "options", "found"),
    [
        (
            lambda: SmoothTchebycheff(nadir_epoch=0),
            {"max_epochs": 1},
            "SmoothTchebycheff .* 1 of 1; train for longer$",
        ),
        (SmoothTchebycheff, {"max_epochs": 4}, "found 4 of 5; .*lower nadir_epoch"),
        (SmoothTchebycheff, {"max_epochs": 5}, "found 5 of 5"),
        (SmoothTchebycheff, {"max_epochs": 6}, None),
        (SmoothTchebycheff, {"max_epochs": -1, "max_steps": 8}, "found 4 of 5"),
        (SmoothTchebycheff, {"max_epochs": 9, "max_steps": 11}, None),
        (SmoothTchebycheff, {"max_epochs": 9, "max_steps": 5, "accumulate_grad_batches": 2}, "found 5 of 5"),
        (lambda: SmoothTchebycheff(nadir_epoch=None), {"max_epochs": 1}, None),
        (DynamicWeightAverage, {"max_epochs": 2}, "DynamicWeightAverage .* 2 of 2; train for longer$"),
        (DynamicWeightAverage, {"max_epochs": 3}, None),
        (DynamicWeightAverage, {"fast_dev_run": True}, None),
        (lambda: GradientBalancing("mgda", DynamicWeightAverage()), {"max_epochs": 1}, "DynamicWeightAverage"),
        (UncertaintyWeighting, {"max_epochs": 1}, None),
    ],
)
def test_a_fit_that_ends_before_a_weighting_begins_is_told_once(make, options, found, callbacks):
    told = said(Owning(make()), dicts(16), BEGINS, callbacks=[kind() for kind in callbacks], **options)
    assert len(told) == (found is not None)
    for text in told:
        assert re.search(found, text)


@pytest.mark.parametrize("batches", [0, math.inf])
def test_where_nothing_says_how_long_a_fit_is_it_is_endless(batches):
    trainer = SimpleNamespace(max_epochs=None, max_steps=7, num_training_batches=batches, accumulate_grad_batches=1)
    assert epochs_of(trainer) == math.inf


@pytest.mark.parametrize("callbacks", [[], [UncertaintyMonitor]], ids=["alone", "monitor"])
@pytest.mark.parametrize("kind", [Plain, Owning])
@pytest.mark.parametrize(
    ("make", "scale", "found"),
    [
        (lambda: SoftOptimalUncertaintyWeighting(5.0), 1e-4, "SoftOptimalUncertaintyWeighting .* 100.0% for 'depth'"),
        (lambda: SoftOptimalUncertaintyWeighting(5.0), 1.0, None),
        (lambda: SoftOptimalUncertaintyWeighting(5.0, {"kind": 0.0}), 1e-4, None),  # the only one that is wanted
        (lambda: SoftOptimalUncertaintyWeighting(5.0, {"depth": 1e6}), 1.0, None),  # as it was asked for
        (lambda: SmoothTchebycheff(0.1, nadir_epoch=None), 1e4, "SmoothTchebycheff .* 100.0% for 'depth'"),
        (lambda: SmoothTchebycheff(1e6, nadir_epoch=None), 1e4, None),
        (UncertaintyWeighting, 1e-4, None),  # as which units ask
    ],
)
def test_a_weighting_that_compares_sizes_and_gives_all_to_one_task_is_told_once(kind, make, scale, found, callbacks):
    data = dicts(16) if kind is Owning else tuples(16)
    told = said(scaled(kind, scale)(make()), data, SHARES, callbacks=[one() for one in callbacks], max_epochs=2)
    assert len(told) == (found is not None)
    for text in told:
        assert re.search(found, text)


def test_a_task_trained_alone_has_all_the_weight_and_that_is_right():
    options = {
        "seeds": [0],
        "baseline": None,
        "progress_bar": False,
        "trainer": {"max_epochs": 1, "accelerator": "cpu"},
    }
    weightings = {"mine": lambda: SoftOptimalUncertaintyWeighting(50.0)}
    compare(Plain, (tuples(16), tuples(16)), weightings, "x", alone=["mine"], **options)


@pytest.mark.parametrize("callbacks", [[], [UncertaintyMonitor]], ids=["alone", "monitor"])
def test_a_fit_whose_losses_are_all_detached_is_refused_whoever_has_looked_before(callbacks):
    class Detached(Plain):
        def losses(self, batch):
            return {name: loss.detach() for name, loss in super().losses(batch).items()}

    trainer = Trainer(max_epochs=1, accelerator="cpu", callbacks=[kind() for kind in callbacks], **QUIET)
    with pytest.raises(RuntimeError, match="losses should depend on what is trained"):
        trainer.fit(Detached(), tuples(16))


@pytest.mark.parametrize("make", [lambda: SmoothTchebycheff(nadir_epoch=1), DynamicWeightAverage])
def test_a_fit_anew_of_a_weighting_that_has_gathered_losses_is_told_nothing(make):
    net = Owning(make())
    assert not said(net, dicts(16), BEGINS, max_epochs=4)
    assert not said(net, dicts(16), BEGINS, max_epochs=1)


def test_where_a_look_would_wait_for_a_device_the_monitor_looks(monkeypatch):
    monkeypatch.setattr("lightning_uncertainty.mixin.reads_values", lambda values: False)
    make = scaled(Owning, 1e-4)
    options = {"max_epochs": 2, "log_every_n_steps": 1}
    assert not said(make(SoftOptimalUncertaintyWeighting(5.0)), dicts(16), SHARES, **options)
    told = said(
        make(SoftOptimalUncertaintyWeighting(5.0)), dicts(16), SHARES, callbacks=[UncertaintyMonitor()], **options
    )
    assert len(told) == 1
