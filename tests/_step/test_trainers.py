"""What is asked of a Trainer."""

from copy import copy
from types import SimpleNamespace

import pytest

from lightning_uncertainty._step import all_dataloaders, trainer_of
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
