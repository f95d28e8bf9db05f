"""Sums over counts on one process; `tests/trainer/test_ddp.py` has several."""

import pytest
import torch

from lightning_uncertainty._tensors import exchange_device, mean_losses, world_size


def test_without_a_process_group_means_are_sums_over_counts():
    assert world_size() == 1
    sums, counts = torch.tensor([6.0, torch.nan, 0.0]), torch.tensor([4.0, 0.0, 2.0])
    for over_ranks in (True, False):
        means, present, _ = mean_losses(sums, counts, over_ranks=over_ranks)
        assert means.tolist() == [1.5, 0.0, 0.0]
        assert present.tolist() == [True, False, True]


def test_counts_below_one_still_divide():
    means, *_ = mean_losses(torch.tensor([0.3]), torch.tensor([0.1]), over_ranks=True)
    assert means.item() == pytest.approx(3.0)  # a batch of rare, lightly weighted classes


def test_a_nan_sum_of_no_labels_has_no_gradient():
    sums = torch.tensor([2.0, torch.nan], requires_grad=True)
    mean_losses(sums, torch.tensor([2.0, 0.0]), over_ranks=True)[0].sum().backward()
    assert sums.grad.tolist() == [0.5, 0.0]


@pytest.mark.parametrize("over_ranks", [True, False])
@pytest.mark.parametrize("count", [-1.0, torch.nan, torch.inf, -torch.inf])
def test_a_count_that_makes_no_sense_is_neither_no_label_nor_a_small_loss(count, over_ranks):
    means, *_ = mean_losses(torch.tensor([6.0, 6.0]), torch.tensor([count, 2.0]), over_ranks=over_ranks)
    assert means.isnan().tolist() == [True, False]
    assert means[1] == 3


@pytest.mark.parametrize(("backend", "device"), [("gloo", "cpu"), ("nccl", "cuda")])
def test_what_a_fit_leaves_on_a_cpu_is_exchanged_where_the_backend_takes_it(backend, device, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: backend)
    assert exchange_device(torch.device("cpu")) == torch.device(device)
    assert exchange_device(torch.device("meta")) == torch.device("meta")
