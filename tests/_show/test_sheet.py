"""Panels stand where they should, and nothing is lost."""

import numpy as np
import pytest

from lightning_uncertainty._show import Column, Scale, cell_of, draw_sheet, fitted


def panels(*colours, cell=(128, 192)):
    return [np.full((*cell, 3), colour, np.uint8) for colour in colours]


@pytest.mark.parametrize(
    ("size", "most", "cell"),
    [
        ((32, 48), 192, (96, 144)),
        ((1024, 2048), 192, (96, 192)),
        ((100, 100), 192, (100, 100)),
        ((28, 28), 64, (56, 56)),
        ((1, 1), 192, (128, 128)),
        ((1, 5000), 192, (1, 192)),
    ],
)
def test_cells_are_no_larger_than_was_said_and_whole_multiples_of_what_is_small(size, most, cell):
    assert cell_of(*size, most) == cell


def test_a_sheet_holds_every_panel_and_says_so_above():
    columns = [Column("one", panels(10, 20)), Column("two", panels(30, 40), Scale("viridis", 0.0, 2.5))]
    sheet = draw_sheet("title", columns, (128, 192), [("road", (1, 2, 3)), ("sky", (4, 5, 6))])
    assert sheet.dtype == np.uint8
    assert sheet.shape[1] == 2 * (192 + 8) + 8
    for row in range(2):
        for column in range(2):
            top, left = 52 + row * 136, 8 + column * 200
            found = sheet[top : top + 128, left : left + 192]
            assert (found == 10 * (1 + row + 2 * column)).all()
    for colour in ((1, 2, 3), (4, 5, 6)):
        assert ((sheet == colour).all(-1)).sum() == 12 * 12  # of the legend
    bar = sheet[52 + 2 * 136 : 52 + 2 * 136 + 10, 208:400]
    assert (bar[0] == bar[9]).all()
    assert len({tuple(colour) for colour in bar[0].tolist()}) > 100


def test_long_words_are_cut_and_many_classes_need_more_lines():
    one = [Column("a heading that is far too long for a cell of this width", panels(10, cell=(40, 60)))]
    legend = [(f"class number {number}", (1, 2, number)) for number in range(12)]
    sheet = draw_sheet("a title that is as long as that", one, (40, 60), legend)
    assert sheet.shape[1] == 76
    assert {number for number in range(12) if (sheet == (1, 2, number)).all(-1).any()} == set(range(12))


def test_a_panel_keeps_its_proportions():
    panel = np.zeros((10, 10, 3), np.uint8)
    placed = fitted(panel, (20, 40))
    assert placed.shape == (20, 40, 3)
    assert (placed[:, 10:30] == 0).all()
    assert (placed[:, :10] == 255).all()
    assert (placed[:, 30:] == 255).all()


def test_photographs_are_averaged_and_classes_are_not():
    panel = np.zeros((4, 4, 3), np.uint8)
    panel[:, ::2] = 200
    assert (fitted(panel, (2, 2), smooth=True) == 100).all()
    assert set(np.unique(fitted(panel, (2, 2)))) <= {0, 200}
