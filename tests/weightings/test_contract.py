"""What a weighting of one's own owes is told when tasks are registered."""

import pytest
import torch

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import UncertaintyWeighting, Weighted, Weighting

TASKS = {"depth": as_likelihood("gaussian"), "height": as_likelihood("gaussian")}


class Own(Weighting):
    """Keeps a mean of the losses, and weighs with its inverse."""

    def make_vectors(self):
        self.register_buffer("mean", self.vector())
        self.register_buffer("log_variance", self.vector())

    def reset_parameters(self):
        super().reset_parameters()
        self.mean.fill_(1.0)

    def weigh(self, losses, present):
        weights = present / self.mean
        if self.learning:
            self.mean.copy_(torch.where(present, losses.detach(), self.mean))
        return self.returned((weights * losses).sum(), weights, self.mean.log())

    def returned(self, total, weights, log_variances):
        return Weighted(total, weights, log_variances)


def kind(**methods):
    return type("Other", (Own,), methods)


def test_one_that_keeps_the_contract_is_bound_trains_saves_and_loads():
    weighting, other = Own().bind(TASKS), Own().bind(TASKS)
    weighting(torch.tensor([4.0, 9.0]), torch.tensor([True, True]))
    weighted = weighting(torch.tensor([4.0, 9.0]), torch.tensor([True, True]))
    assert weighted.weights.tolist() == pytest.approx([1 / 4, 1 / 9])
    other.load_state_dict(weighting.state_dict())
    assert other.mean.tolist() == [4.0, 9.0]
    assert "Own()" in repr(weighting)


SLIPS = {
    "a scalar": (
        {"make_vectors": lambda self: self.register_buffer("mean", torch.ones(()))},
        ValueError,
        r"vectors over tasks, \[T\] or \[\.\.\., T\].*found mean of shape \[\] for 2 tasks; make it of `self\.vector",
    ),
    "nothing filled": (
        {"reset_parameters": lambda self: Weighting.reset_parameters(self)},
        ValueError,
        r"reset_parameters of Other should fill all that make_vectors makes: found mean as they were",
    ),
    "nothing of the base filled": (
        {"reset_parameters": lambda self: self.mean.fill_(1.0)},
        ValueError,
        r"found log_variance as they were; call super\(\)\.reset_parameters\(\)",
    ),
    "a bare total": (
        {"returned": lambda self, total, weights, log_variances: total},
        TypeError,
        r"Other\.weigh should return Weighted\(total, weights, log_variances\): found a Tensor",
    ),
    "a tuple": (
        {"returned": lambda self, total, weights, log_variances: (total, weights)},
        TypeError,
        "found a tuple",
    ),
    "weights in a list": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total, weights.tolist(), log_variances)},
        TypeError,
        r"^weights of Other\.weigh should be a tensor: found a list; make one of it",
    ),
    "a number for a total": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total.item(), weights, log_variances)},
        TypeError,
        r"^total of Other\.weigh should be a tensor: found a float",
    ),
    "no weights": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total, None, log_variances)},
        TypeError,
        r"^weights of Other\.weigh should be a tensor: found a NoneType",
    ),
    "log-variances in a dict": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total, weights, {"depth": 1.0})},
        TypeError,
        r"^log_variances of Other\.weigh should be a tensor: found a dict",
    ),
    "an __init__ that stands alone": (
        {"__init__": lambda self: None},
        RuntimeError,
        r"Other\.__init__ should begin with super\(\)\.__init__\(\): found that it never calls it",
    ),
    "a total for each task": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total * weights, weights, log_variances)},
        ValueError,
        r"with a 0-dimensional total: found shape \[2\]; sum over the tasks",
    ),
    "one weight": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total, weights[:1], log_variances)},
        ValueError,
        r"with weights \[T\]: found shape \[1\] for 2 tasks",
    ),
    "log-variances without a buffer": (
        {"make_vectors": lambda self: self.register_buffer("mean", self.vector())},
        ValueError,
        r"buffer for them, which sigma\(\) reads: found none; make one in make_vectors",
    ),
    "other weights": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total, 2 * weights, log_variances)},
        ValueError,
        r"weights that are d total / d loss: found \[2\.0, 2\.0\], where the total's derivatives are \[1\.0, 1\.0\]",
    ),
    "a total without graph": (
        {"returned": lambda self, total, weights, log_variances: Weighted(total.detach(), weights, log_variances)},
        ValueError,
        r"derivatives are \[0\.0, 0\.0\]",
    ),
}


@pytest.mark.parametrize(("methods", "error", "found"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_a_sentence_when_tasks_are_registered(methods, error, found):
    with pytest.raises(error, match=found):
        kind(**methods)().bind(TASKS)


def test_a_scalar_that_is_not_saved_and_weights_where_gradients_decide_are_fine():
    def make_vectors(self):
        Own.make_vectors(self)
        self.register_buffer("scalar", torch.ones(()), persistent=False)

    def returned(self, total, weights, log_variances):
        return Weighted(total, 2 * weights, log_variances)

    kind(make_vectors=make_vectors, returned=returned, closed_form=False)().bind(TASKS)


def test_one_that_refines_one_of_ours_is_looked_at_too():
    class Refined(UncertaintyWeighting):
        def weigh(self, losses, present):
            return super().weigh(losses, present).total

    with pytest.raises(TypeError, match=r"Refined\.weigh should return Weighted"):
        Refined().bind(TASKS)


def test_looking_leaves_no_trace():
    class Counting(Own):
        calls = 0

        def weigh(self, losses, present):
            self.calls += 1
            return super().weigh(losses, present)

    weighting = Counting().bind(TASKS)
    assert (weighting.calls, weighting.training) == (0, True)
    assert weighting.mean.tolist() == [1.0, 1.0]


def test_weights_and_log_variances_that_have_a_graph_lose_it():
    def weigh(self, losses, present):
        weights = losses / losses.detach()
        return Weighted((weights.detach() * losses).sum(), weights, losses.log())

    weighted = kind(weigh=weigh)().bind(TASKS)(torch.ones(2, requires_grad=True), torch.tensor([True, True]))
    assert weighted.total.requires_grad
    assert not weighted.weights.requires_grad
    assert not weighted.log_variances.requires_grad
