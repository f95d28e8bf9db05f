"""Losses by name become vectors in the order of registration."""

import math

import pytest
import torch

from lightning_uncertainty._step import check_graphs, stack_losses
from lightning_uncertainty._tensors import mean_losses
from lightning_uncertainty.likelihoods._labels import Counted
from lightning_uncertainty.tasks.task import check_known
from tests._nets import Plain, tensors, trainer, tuples

TASKS = {"depth": "gaussian", "kind": "categorical"}
CPU = torch.empty(2)


def test_means_alone_have_no_counts_and_come_in_the_order_of_registration():
    sums, counts, labels = stack_losses({"kind": torch.tensor(2.0), "depth": torch.tensor(1.0)}, TASKS, CPU)
    assert sums.tolist() == [1.0, 2.0]
    assert counts is labels is None


def test_beside_a_pair_a_mean_counts_one_and_none_nothing():
    sums, counts, _ = stack_losses(
        {"depth": (torch.tensor(6.0), torch.tensor(4)), "kind": torch.tensor(1.0)}, TASKS, CPU
    )
    assert (sums.tolist(), counts.tolist()) == ([6.0, 1.0], [4.0, 1.0])
    sums, counts, _ = stack_losses({"depth": None, "kind": (torch.tensor(1.0), 3)}, TASKS, CPU)
    assert (sums.tolist(), counts.tolist()) == ([0.0, 1.0], [0.0, 3.0])


@pytest.mark.parametrize("default", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("count", [4097.0, 70_000])
def test_counts_keep_their_digits_whatever_the_default_type_is(default, count):
    """The Trainer makes a half type the default one inside a step of half precision."""
    torch.set_default_dtype(default)
    try:
        _, counts, labels = stack_losses({"depth": (torch.tensor(1.0, dtype=default), count), "kind": None}, TASKS, CPU)
    finally:
        torch.set_default_dtype(torch.float32)
    assert counts.tolist() == labels.tolist() == [count, 0.0]


def test_labels_are_counts_where_there_are_any_and_those_of_a_mean_nobody_knows():
    weighted = Counted((torch.tensor(6.0), torch.tensor(0.5)), torch.tensor(3))
    _, counts, labels = stack_losses({"kind": weighted, "depth": torch.tensor(1.0)}, TASKS, CPU)
    assert (counts.tolist(), labels.tolist()) == ([1.0, 0.5], [math.inf, 3.0])
    _, counts, labels = stack_losses({"kind": (torch.tensor(6.0), 4), "depth": None}, TASKS, CPU)
    assert counts.tolist() == labels.tolist() == [0.0, 4.0]


@pytest.mark.parametrize(
    ("own", "stacked"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_half_losses_are_widened_and_wide_ones_kept(own, stacked):
    loss = torch.tensor(1.0, dtype=own)
    assert stack_losses({"depth": loss, "kind": loss}, TASKS, CPU)[0].dtype == stacked
    assert stack_losses({"depth": loss, "kind": None}, TASKS, CPU)[0].dtype == stacked


def test_gradients_reach_the_losses():
    depth, kind = torch.tensor(2.0, requires_grad=True), torch.tensor(3.0, requires_grad=True)
    stack_losses({"kind": (kind, 2), "depth": depth}, TASKS, CPU)[0].dot(torch.tensor([5.0, 7.0])).backward()
    assert (depth.grad.item(), kind.grad.item()) == (5.0, 7.0)


def test_names_are_checked():
    with pytest.raises(ValueError, match="among depth, kind: found knd; register them all"):
        check_known(["depth", "knd"], TASKS)
    with pytest.raises(ValueError, match="found none for depth; give None"):
        stack_losses({"kind": torch.tensor(1.0)}, TASKS, CPU)


@pytest.mark.parametrize(
    ("loss", "found"),
    [(1.0, "a float"), (torch.ones(1), r"a tensor \[1\]"), ((torch.ones(2), 2), r"\(a tensor \[2\], a int\)")],
)
def test_what_is_no_scalar_is_refused_by_name(loss, found):
    with pytest.raises(
        ValueError, match=f"should be a 0-dimensional tensor or a pair .*: found {found} for task 'depth'"
    ):
        stack_losses({"depth": loss, "kind": None}, TASKS, CPU)


ONE = torch.ones((), requires_grad=True)


@pytest.mark.parametrize("losses", [[ONE, ONE], (ONE, ONE), torch.ones(2), None, 1.0])
def test_losses_are_given_by_name(losses):
    with pytest.raises(ValueError, match=r"losses should be given by task name, as in \{'depth': loss\}: found "):
        stack_losses(losses, TASKS, CPU)


@pytest.mark.parametrize("loss", [ONE * 1j, (ONE * 1j, 1), (ONE, torch.tensor(1j))])
def test_complex_losses_are_refused(loss):
    with pytest.raises(ValueError, match="a loss should be a real number: found a complex one for depth"):
        stack_losses({"depth": loss, "kind": ONE}, TASKS, CPU)


@pytest.mark.parametrize("count", [0, torch.tensor(0.0)])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_sum_of_nothing_that_would_poison_gradients_is_refused(count, value):
    with pytest.raises(ValueError, match=r"found (nan|inf) with count 0 for task 'depth', whose gradient is NaN"):
        stack_losses({"depth": (ONE * value, count), "kind": ONE}, TASKS, CPU)
    sums, counts, _ = stack_losses({"depth": (torch.tensor(value), count), "kind": ONE}, TASKS, CPU)  # out of the graph
    assert counts.tolist() == [0.0, 1.0]
    with torch.no_grad():
        assert not stack_losses({"depth": (ONE * value, count), "kind": ONE}, TASKS, CPU)[0].requires_grad
    assert not sums[0].isfinite()


@pytest.mark.parametrize("forked", [False, True])
def test_a_sum_of_nothing_whose_gradient_is_finite_counts_nothing(forked):
    """As the mean cross-entropy of classes that are all missing, times none; and a function that runs once."""

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.ran = False
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            assert not ctx.ran
            ctx.ran = True
            return gradient

    logits = torch.randn(3, 4, requires_grad=True)
    missing = torch.full((3,), -100)
    empty = torch.nn.functional.cross_entropy(Once.apply(logits) if forked else logits, missing) * 0
    assert empty.isnan()
    sums, counts, _ = stack_losses({"depth": (empty, 0), "kind": ONE}, TASKS, CPU)
    mean_losses(sums, counts, over_ranks=True)[0].sum().backward()
    assert not logits.grad.any()
    leaf = torch.tensor(math.nan, requires_grad=True)
    assert stack_losses({"depth": (leaf, 0), "kind": ONE}, TASKS, CPU)[1].tolist() == [0.0, 1.0]


class Cut(Plain):
    def training_step(self, batch, batch_idx):
        return self.weigh({name: loss.detach() for name, loss in self.losses(batch).items()})


def test_a_fit_whose_losses_are_cut_off_is_told_before_anything_moves():
    net = Cut()
    before = tensors(net.task_weighting)
    with pytest.raises(RuntimeError, match="found none with a graph of depth, kind, as after detach"):
        trainer().fit(net, tuples())
    torch.testing.assert_close(tensors(net.task_weighting), before, rtol=0, atol=0, equal_nan=True)


def test_losses_without_graph_are_fine_where_nothing_is_cut_off():
    cut, whole = torch.tensor(1.0), torch.tensor(1.0, requires_grad=True)
    network = [torch.nn.Parameter(torch.ones(2))]
    check_graphs({"depth": cut, "kind": whole}, network)
    check_graphs({"depth": (0 * cut, 0), "kind": None}, network)  # a batch without labels
    check_graphs({"depth": cut, "kind": cut}, [network[0].detach()])  # a frozen network, whose σ is wanted
    with torch.no_grad():
        check_graphs({"depth": cut, "kind": cut}, network)
    net = Plain().train()
    assert net.weigh({"depth": cut, "kind": cut}).requires_grad  # no Trainer: to try it
