"""Gramians and weighted sums of gradients, part by part, are those of float64 at once."""

import pytest
import torch

from lightning_uncertainty.balancing import _fork
from lightning_uncertainty.balancing._fork import _Gradients, gramian_of


def gradients_of(shape, dtype=torch.float32, tasks=4, layout=torch.contiguous_format):
    rng = torch.Generator().manual_seed(len(shape))
    return [torch.randn(shape, generator=rng).to(dtype).contiguous(memory_format=layout) for _ in range(tasks)]


def matrix_of(gradients):
    return torch.stack([gradient.double().reshape(-1) for gradient in gradients])


def assert_gramian(found, rows):
    assert found.dtype == torch.float64
    lengths = rows.square().sum(1).sqrt()
    scale = (lengths[:, None] * lengths).clamp(min=1e-300)
    torch.testing.assert_close(found / scale, rows @ rows.T / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 50, 1 << 20])
@pytest.mark.parametrize("shape", [(), (7,), (5, 6, 3, 2)], ids=str)
def test_parts_make_the_whole(monkeypatch, chunk, shape):
    monkeypatch.setattr(_fork, "_chunk", lambda like: chunk)
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    gradients, weights = gradients_of(shape, layout=layout), torch.tensor([0.5, 2.0, 0.0, -1.0]).double()
    rows = matrix_of(gradients)
    assert_gramian(_Gradients(gradients).gramian(), rows)
    assert_gramian(gramian_of(rows.float()), rows)
    for by in (weights, None):
        combined = _Gradients(gradients).combined(by)
        expected = (torch.ones_like(weights) if by is None else weights) @ rows
        torch.testing.assert_close(combined.double(), expected.reshape(shape), rtol=1e-5, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(gradients, gradients_of(shape, layout=layout), strict=True))


@pytest.mark.parametrize("scales", [(1e-30, 1e-12, 1.0, 1e30), (1e-22,) * 4, (4e18,) * 4], ids=str)
@pytest.mark.parametrize("on_cpu", [True, False])
def test_squares_beyond_float32_are_counted(monkeypatch, on_cpu, scales):
    """Where values may be read, rows are only scaled if need be."""
    monkeypatch.setattr(_fork, "reads_values", lambda device: on_cpu)
    gradients = [scale * gradient for scale, gradient in zip(scales, gradients_of((5, 6)), strict=True)]
    rows = matrix_of(gradients)
    assert_gramian(_Gradients(gradients).gramian(), rows)
    assert_gramian(gramian_of(rows.float()), rows)
    alike = matrix_of(gradients_of((5, 6)))
    assert_gramian(gramian_of(alike.float()), alike)


def test_half_types_are_summed_in_float32():
    gradients = gradients_of((5, 6), torch.bfloat16)
    rows = matrix_of(gradients)
    assert_gramian(_Gradients(gradients).gramian(), rows)
    combined = _Gradients(gradients).combined(torch.ones(4).double())
    assert torch.equal(combined, rows.sum(0).reshape(5, 6).bfloat16())


def test_gradients_that_are_missing_or_zero_count_nothing():
    gradients = gradients_of((5, 6))
    gradients[1], gradients[3] = None, torch.zeros(5, 6)
    rows = matrix_of([torch.zeros(5, 6) if gradient is None else gradient for gradient in gradients])
    found = _Gradients(gradients)
    assert_gramian(found.gramian(), rows)
    assert (found.gramian()[[1, 3]] == 0).all()
    weights = torch.tensor([2.0, torch.nan, 3.0, 4.0])
    torch.testing.assert_close(found.combined(weights), 2 * gradients[0] + 3 * gradients[2])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_seen(bad):
    gradients = gradients_of((5, 6))
    gradients[2][0, 0] = bad
    assert not _Gradients(gradients).gramian()[2, 2].isfinite()


def test_features_of_an_empty_batch_have_a_gramian_of_zeros():
    found = _Gradients(gradients_of((0, 6)))
    assert torch.equal(found.gramian(), torch.zeros(4, 4).double())
    assert found.combined(torch.ones(4)).shape == (0, 6)
    assert torch.equal(gramian_of(torch.zeros(4, 0)), torch.zeros(4, 4).double())
