"""The state of recalibration in checkpoints, casts and other names of tasks."""

import pytest
import torch
from torch import nn

from lightning_uncertainty.tasks import TaskCorrections


def corrected():
    corrections = TaskCorrections(["depth", "kind"])
    corrections.correct({"depth": 1 / 3, "kind": 2.5})
    return corrections


def test_they_load_by_name_whatever_the_order_and_drop_tasks_that_are_no_more():
    other = TaskCorrections(["kind", "new"])
    other.correct({"new": 9.0})
    other.load_state_dict(corrected().state_dict())
    assert (other.of("kind").item(), other.of("new").item()) == (2.5, 1.0)


def test_they_load_under_todays_names():
    other = TaskCorrections(["distance", "kind"])
    other.rename({"depth": "distance"})
    other.load_state_dict(corrected().state_dict())
    assert torch.equal(other.of("distance"), corrected().of("depth"))


def test_a_checkpoint_without_them_loads_strictly_as_ones():
    corrections = corrected()
    corrections.load_state_dict({})
    assert [corrections.of(name).item() for name in corrections.tasks] == [1.0, 1.0]


def test_they_stay_float32_and_start_after_a_meta_device():
    net = nn.Sequential(corrected()).to(torch.bfloat16)
    assert torch.equal(net[0].of("depth"), torch.tensor(1 / 3))
    with torch.device("meta"):
        empty = TaskCorrections(["depth"])
    assert repr(empty) == "TaskCorrections(depth=?)"
    empty.to_empty(device="cpu").reset_parameters()
    assert empty.of("depth") == 1


@pytest.mark.parametrize(("values", "found"), [({"dept": 1.0}, "found dept"), ({"kind": 0.0}, "found {'kind': 0.0}")])
def test_unknown_tasks_and_unsound_numbers_change_nothing(values, found):
    corrections = corrected()
    with pytest.raises(ValueError, match=found):
        corrections.correct({"depth": 4.0, **values})
    assert torch.equal(corrections.of("depth"), torch.tensor(1 / 3))
