"""Predictions against truth."""

from unittest.mock import patch

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_uncertainty._show import Classified, Paired, draw_parity


def drawn(*tasks):
    """The axes of a plot."""
    made = []
    subplots = Figure.subplots

    def kept(*given, **options):
        made.append(subplots(*given, **options))
        return made[-1]

    with patch.object(Figure, "subplots", kept):
        picture = draw_parity("epoch 3", tasks)
    assert picture.dtype == np.uint8
    assert picture.std() > 0
    return made[0].ravel().tolist(), picture


def numbers(count=50, sigma=None, name="depth"):
    truth = np.linspace(-1, 2, count)
    return Paired(name, truth, truth + 0.1, sigma)


@pytest.mark.parametrize("count", [1, 4, 5, 12])
def test_there_are_axes_for_every_task(count):
    axes, picture = drawn(*(numbers(name=f"task{number}") for number in range(count)))
    assert picture.shape == (320 * -(-count // 4), 320 * min(4, count), 3)
    assert [ax.get_title().splitlines()[0] for ax in axes[:count]] == [f"task{number}" for number in range(count)]
    assert all(not ax.axison for ax in axes[count:])


def test_points_are_truth_and_prediction_and_the_line_is_that_of_the_right_ones():
    (ax,), _ = drawn(numbers())
    points = ax.collections[-1].get_offsets()
    assert np.allclose(points[:, 0], np.linspace(-1, 2, 50))
    assert np.allclose(points[:, 1], points[:, 0] + 0.1)
    line = ax.lines[0].get_xydata()
    assert np.allclose(line[:, 0], line[:, 1])
    assert "RMSE 0.1" in ax.get_title()
    assert ax.get_xlim() == ax.get_ylim()


def test_sigma_is_a_band_where_it_is_one_number_and_bars_else():
    with patch.object(Axes, "errorbar") as bars, patch.object(Axes, "fill_between") as band:
        (ax,), _ = drawn(numbers(sigma=np.full(50, 0.25)))
        assert not bars.called
        line, below, above = band.call_args.args
        assert np.allclose(np.array(above) - np.array(line), 0.25)
        assert np.allclose(np.array(line) - np.array(below), 0.25)
        assert "σ 0.25" in ax.get_title()
        band.reset_mock()
        sigma = np.linspace(0.1, 0.5, 50)
        drawn(numbers(sigma=sigma))
        assert not band.called
        assert np.allclose(bars.call_args.args[2], sigma)


def test_one_wild_prediction_does_not_shrink_the_rest():
    truth = np.linspace(0, 1, 400)
    mean = truth.copy()
    mean[7] = 1e6
    (ax,), _ = drawn(Paired("depth", truth, mean, None))
    assert ax.get_xlim()[1] < 2


def test_a_single_label_is_drawn():
    drawn(Paired("depth", np.ones(1), np.ones(1), np.zeros(1)))


def test_classes_are_counted():
    counts = np.array([[8, 2], [0, 5]])
    (ax,), _ = drawn(Classified("kind", counts, ["cat", "dog"]))
    assert ax.get_title() == "kind\n87 % right"
    assert np.allclose(ax.images[0].get_array(), [[0.8, 0.2], [0, 1]])
    assert [text.get_text() for text in ax.texts] == ["8", "2", "5"]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["cat", "dog"]
    (ax,), _ = drawn(Classified("kind", np.eye(30, dtype=int), [str(one) for one in range(30)]))
    assert not ax.texts
