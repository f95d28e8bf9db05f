"""What is asked of a Trainer."""

from copy import copy
from types import SimpleNamespace

import pytest

from lightning_uncertainty._step import all_dataloaders, check_skipping, trainer_of
from tests._nets import Plain, trainer


def test_a_module_has_its_trainer_or_none():
    net, own = Plain(), trainer()
    assert trainer_of(net) is None
    net.trainer = own
    assert trainer_of(net) is own


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_logged_within_belongs_to_all_dataloaders_and_no_more(fails):
    results = SimpleNamespace(dataloader_idx=1)
    try:
        with all_dataloaders(SimpleNamespace(_results=results)):
            assert results.dataloader_idx is None
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert results.dataloader_idx == 1


@pytest.mark.parametrize("own", [None, SimpleNamespace(_results=None)])
def test_without_results_nothing_is_changed(own):
    before = copy(own)
    with all_dataloaders(own):
        assert own == before
    assert own == before


@pytest.mark.parametrize(
    ("accumulated", "scaler", "found"),
    [(2, None, "accumulated batches"), (1, object(), "a GradScaler"), (2, object(), "accum.* and a GradScaler")],
)
def test_skipping_over_processes_wants_whole_steps(accumulated, scaler, found, monkeypatch):
    own = SimpleNamespace(accumulate_grad_batches=accumulated, scaler=scaler)
    check_skipping(own)
    monkeypatch.setattr("lightning_uncertainty._step.trainers.world_size", lambda: 2)
    with pytest.raises(RuntimeError, match=f"whole steps to skip: found 2 processes with {found}"):
        check_skipping(own)
    check_skipping(SimpleNamespace(accumulate_grad_batches=1, scaler=None))
    check_skipping(None)
