"""Two processes train as one does on the whole batch."""

import pytest
import torch

from lightning_uncertainty.global_batch import mean_losses, world_size
from tests._nets import tensors
from tests._ranks import CASES, batch_of, fit, run_two


def test_without_a_process_group_means_are_sums_over_counts():
    assert world_size() == 1
    sums, counts = torch.tensor([6.0, torch.nan, 0.0]), torch.tensor([4.0, 0.0, 2.0])
    for over_ranks in (True, False):
        means, present = mean_losses(sums, counts, over_ranks=over_ranks)
        assert means.tolist() == [1.5, 0.0, 0.0]
        assert present.tolist() == [True, False, True]


def test_counts_below_one_still_divide():
    means, _ = mean_losses(torch.tensor([0.3]), torch.tensor([0.1]), over_ranks=True)
    assert means.item() == pytest.approx(3.0)  # a batch of rare, lightly weighted classes


def test_a_nan_sum_of_no_labels_has_no_gradient():
    sums = torch.tensor([2.0, torch.nan], requires_grad=True)
    mean_losses(sums, torch.tensor([2.0, 0.0]), over_ranks=True)[0].sum().backward()
    assert sums.grad.tolist() == [0.5, 0.0]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    return run_two(tmp_path_factory.mktemp("ranks") / "results.pt")


@pytest.mark.timeout(200)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(case, two_processes):
    """Unequal counts, a task without labels on one rank, on all and in turn; Dealt checks ranks and collectives."""
    tolerance = CASES[case][-1]
    net, expected = fit(case)
    before = tensors(type(net)(CASES[case][0]()))
    two, logged = two_processes[case]
    for name, value in tensors(net).items():
        value, other = value.double(), two[name].double()
        assert torch.equal(value.isnan(), other.isnan()), name
        scale = value.nan_to_num().abs().max().clamp(min=1e-3)
        assert ((value - other).nan_to_num().abs() / scale).max() <= tolerance, name
    moved = [name for name in before if name.endswith("weight") and not torch.equal(two[name].float(), before[name])]
    assert len(moved) == 3  # trunk and both heads
    for key in ("loss/depth", "weight/kind"):  # of the last step, the global value on every rank
        assert logged[key] == pytest.approx(expected[key], rel=1e-5)


@pytest.mark.timeout(200)
def test_validation_is_summed_over_ranks_with_uneven_batches(two_processes):
    """Rank 1 has one batch more: no hang, and the mean is over labels."""
    net, _ = fit("uncertainty, SGD, float64")
    _, logged = two_processes["uncertainty, SGD, float64"]
    batches = [(step, slice(0, 6)) for step in range(3)] + [(step, slice(6, 12)) for step in range(4)]
    parts = [{name: column[rows] for name, column in batch_of(step).items()} for step, rows in batches]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    net.float()
    with torch.no_grad():
        losses = net.task_losses(net.task_outputs(net.trunk(whole["x"]).tanh()), whole)
    for name, (total, count) in losses.items():
        assert logged[f"val/{name}/loss"] == pytest.approx((total / count).item(), rel=1e-5)
