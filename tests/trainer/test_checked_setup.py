"""Every fit is looked at once for log-variances that no optimizer has, and tells anew what it tells once."""

import copy
import pickle
import warnings

import pytest
import torch

from lightning_uncertainty import GradientBalancing, UncertaintyMonitor
from tests._nets import Owning, Plain, dicts, in_a_row, trainer, tuples

FORGOTTEN = "log-variances should be in one optimizer: found them in none"


class Net(Plain):
    """It forgets the log-variances where it is told to, and steps by hand too."""

    forgets = False

    def configure_optimizers(self):
        own = self.parameter_groups(lr=1e-2)
        return torch.optim.Adam(own[:1] if self.forgets else own)


def fit(net, *callbacks, fitted=None):
    fitted = fitted or trainer(max_epochs=1, callbacks=list(callbacks))
    fitted.fit(net, tuples())
    return fitted


def by_hand(net):
    net.training_step(next(iter(tuples())), 0)


def checked(net):
    net.check_setup()


def fitted_before(net):
    net.forgets = False
    fit(net)
    net.forgets = True


def copied(net):
    fitted_before(net)
    net.__dict__.update(copy.deepcopy(net).__dict__)


def pickled(net):
    fitted_before(net)
    net.trainer = None
    net.__dict__.update(pickle.loads(pickle.dumps(net)).__dict__)


@pytest.mark.parametrize("before", [by_hand, checked, fitted_before, copied, pickled], ids=lambda call: call.__name__)
@pytest.mark.parametrize("watched", [False, True], ids=["alone", "with a monitor"])
def test_a_fit_that_forgets_them_is_refused(before, watched):
    net = Net()
    net.forgets = True
    before(net)
    with pytest.raises(RuntimeError, match=FORGOTTEN):
        fit(net, *[UncertaintyMonitor(table=False)] * watched)


def test_frozen_log_variances_may_be_left_out_of_a_second_fit():
    net = Net()
    fit(net)
    before = net.task_weighting.offset.clone()
    net.task_weighting.requires_grad_(False)
    net.forgets = True
    with pytest.warns(UserWarning, match="the log-variances are frozen"):
        fit(net)
    assert torch.equal(net.task_weighting.offset, before)


def test_a_second_fit_of_one_trainer_is_another():
    net = Net()
    fitted = fit(net)
    net.forgets, fitted.fit_loop.max_epochs = True, 2
    with pytest.raises(RuntimeError, match=FORGOTTEN):
        fit(net, fitted=fitted)


def test_a_fit_is_looked_at_once(monkeypatch):
    looks = []
    monkeypatch.setattr("lightning_uncertainty.mixin.check_optimizers", lambda *_, **__: looks.append(1))
    net = Owning()
    for fits in (1, 2):
        trainer(max_epochs=2).fit(net, dicts(), dicts())
        assert len(looks) == fits


def test_without_a_trainer_once_is_enough(monkeypatch):
    looks, net = [], Net()
    monkeypatch.setattr(net.task_weighting, "check_tasks", lambda: looks.append(1))
    for _ in range(3):
        by_hand(net)
    assert looks == [1]


def spoilt():
    """Its losses are NaN, and its steps skipped."""

    class Spoilt(Owning):
        def training_step(self, batch, batch_idx):
            return super().training_step({**batch, "x": batch["x"] * torch.nan}, batch_idx)

    net = Spoilt()
    net._task_skips = True
    return net


def frozen():
    """Nothing of its trunk is trained, so there is nothing to balance."""
    net = Owning(GradientBalancing("mgda"))
    net.trunk.requires_grad_(False)
    return net


@pytest.mark.parametrize(
    ("make", "told"), [(spoilt, "a training step is skipped"), (frozen, "the shared features have no gradient")]
)
def test_what_is_told_once_is_told_in_every_fit(make, told):
    net = make()
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trainer(max_epochs=2).fit(net, in_a_row(2))
        assert sum(told in str(warning.message) for warning in caught) == 1
