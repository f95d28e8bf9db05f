"""Log-variances that get no gradient are told of, in whatever way a step is optimized."""

import warnings

import pytest
import torch

from lightning_uncertainty import UncertaintyMonitor, UncertaintyWeighting
from lightning_uncertainty.callbacks import UncertaintyWarmUp
from tests._nets import Plain, trainer, tuples

BATCHES = 12


def fit(net, **options):
    """Return what a fit warns of σ that stays."""
    fitting = trainer(max_epochs=1, limit_train_batches=BATCHES, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitting.fit(net, tuples(8 * BATCHES))
    return [str(each.message) for each in caught if "σ stays" in str(each.message)]


class Manual(Plain):
    """A judge steps after, or before, what the tasks train; σ is in one of both optimizers."""

    def __init__(self, holder, from_step=0):
        super().__init__(UncertaintyWeighting())
        self.automatic_optimization = False
        self.judge, self.holder, self.from_step = torch.nn.Linear(1, 1), holder, from_step

    def training_step(self, batch, batch_idx):
        judge, net = self.optimizers()
        if batch_idx >= self.from_step:
            net.zero_grad()
            self.manual_backward(super().training_step(batch, batch_idx))
            net.step()
        judge.zero_grad()
        self.manual_backward(self.judge(torch.ones(1, 1)).square().mean())
        judge.step()

    def configure_optimizers(self):
        own = {"params": list(self.task_weighting.parameters())}
        parts = {"judge": self.judge.parameters(), "net": self.depth.parameters()}
        return [torch.optim.Adam([{"params": list(p)}, *[own] * (name == self.holder)]) for name, p in parts.items()]


def test_an_optimizer_whose_steps_find_no_gradient_of_theirs_is_told():
    (told,) = fit(Manual("judge"))
    assert "found none in 10 steps of optimizer number 1, Adam; " in told
    assert "`beside=`" in told


@pytest.mark.parametrize("callbacks", [[], [UncertaintyMonitor()]], ids=["alone", "monitor"])
@pytest.mark.parametrize("from_step", [0, 11])
def test_the_right_one_is_not_also_where_tasks_begin_late(callbacks, from_step):
    assert fit(Manual("net", from_step), callbacks=callbacks) == []


def test_steps_before_losses_are_weighed_do_not_count():
    assert fit(Manual("judge", from_step=5), callbacks=[UncertaintyMonitor()]) == []


def test_a_step_that_minimises_another_loss_is_told():
    class Other(Plain):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).detach() + self.depth(batch[0]).square().mean()

    (told,) = fit(Other())
    assert "minimise what `weigh` returned" in told


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 3}, {"gradient_clip_val": 1.0}])
def test_a_step_of_automatic_optimization_is_not(options):
    assert fit(Plain(), **options) == []


def test_steps_in_which_it_is_held_are_not():
    assert fit(Plain(), callbacks=[UncertaintyWarmUp(steps=11)]) == []


def test_hooks_of_others_run_on():
    ran = []

    class Hooked(Plain):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            optimizer.register_step_post_hook(lambda *_: ran.append("before"))
            self.optimizer = optimizer
            return optimizer

        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                self.optimizer.register_step_post_hook(lambda *_: ran.append("after"))

    assert fit(Hooked()) == []
    assert ran == ["before"] + ["before", "after"] * (BATCHES - 1)


def test_what_one_fit_held_the_next_does_not():
    class Other(Plain):
        weighs = True

        def training_step(self, batch, batch_idx):
            total = super().training_step(batch, batch_idx)
            return total if self.weighs else total.detach() + self.depth(batch[0]).square().mean()

    net = Other()
    with pytest.warns(UserWarning, match="a warm-up should be shorter than the fit"):
        trainer(max_epochs=1, callbacks=[UncertaintyWarmUp(epochs=2)]).fit(net, tuples())  # ends while it is held
    net.weighs = False
    assert len(fit(net)) == 1


def test_two_looks_at_the_setup_tell_once():
    class Other(Plain):
        def on_train_start(self):
            self.check_setup()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx).detach() + self.depth(batch[0]).square().mean()

    assert len(fit(Other(), callbacks=[UncertaintyMonitor()])) == 1
