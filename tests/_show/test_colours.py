"""Colours say what they stand for."""

import colorsys

import numpy as np
import pytest
from matplotlib import colormaps

from lightning_uncertainty._show import (
    MISSING,
    class_colours,
    given_colours,
    instance_colours,
    number_colours,
    vector_colours,
)


def nearest(colours):
    """The least distance of two colours."""
    apart = np.linalg.norm(colours[:, None].astype(float) - colours[None], axis=-1)
    return apart[~np.eye(len(colours), dtype=bool)].min()


@pytest.mark.parametrize(("count", "least"), [(2, 200), (8, 90), (19, 50)])
def test_classes_are_told_apart_from_each_other_and_from_what_is_missing(count, least):
    colours = class_colours(count)
    assert colours.shape == (count, 3)
    assert colours.dtype == np.uint8
    assert nearest(colours) >= least
    assert nearest(np.concatenate([colours, [MISSING]])) > 50


def test_a_class_keeps_its_colour_whatever_the_number_of_classes():
    assert (class_colours(40)[:7] == class_colours(7)).all()
    assert len({tuple(colour) for colour in class_colours(300).tolist()}) == 300


def test_colours_past_the_first_are_those_of_their_hue():
    """Against the standard library's conversion."""
    for number, colour in enumerate(class_colours(60)[19:], 19):
        hue, saturation, value = colorsys.rgb_to_hsv(*(colour / 255))
        assert abs((hue - 0.618034 * number + 0.5) % 1 - 0.5) < 0.01
        assert min(saturation, value) > 0.4


def test_instances_have_a_colour_each_and_none_where_there_is_none():
    ids = np.array([[0, 1, 2], [-1, 700, 2]])
    colours = instance_colours(ids)
    assert (colours[0, 0] == 24).all()
    assert (colours[1, 0] == MISSING).all()
    assert (colours[0, 2] == colours[1, 2]).all()
    assert len({tuple(colour) for colour in colours.reshape(-1, 3).tolist()}) == 5


def test_numbers_are_those_of_the_scale_and_what_is_not_finite_is_grey():
    values = np.array([[-1.0, 0.0, 1.0], [2.0, 9.0, np.nan], [np.inf, -np.inf, 1.5]])
    colours = number_colours(values, 0.0, 2.0, "viridis")
    for place in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (2, 2)):
        share = float(np.clip(values[place] / 2, 0, 1))
        assert (colours[place] == colormaps["viridis"](share, bytes=True)[:3]).all()
    for place in ((1, 2), (2, 0), (2, 1)):
        assert (colours[place] == MISSING).all()


def test_numbers_that_are_all_alike_have_a_colour():
    assert number_colours(np.ones((2, 2)), 1.0, 1.0, "magma").shape == (2, 2, 3)


def test_directions_are_hues_and_lengths_saturations():
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)[None]
    for length in (0.0, 0.5, 1.0):
        colours = vector_colours(length * np.stack([np.cos(angles), np.sin(angles)]) * 3, 3.0)
        for angle, colour in zip(angles[0], colours[0], strict=True):
            expected = colorsys.hsv_to_rgb(angle / (2 * np.pi), length, 1.0)
            assert np.abs(colour / 255 - expected).max() < 0.003


def test_vectors_that_are_missing_are_grey_and_longer_ones_are_cut():
    vectors = np.array([[[np.nan, 30.0]], [[1.0, 0.0]]])
    colours = vector_colours(vectors, 3.0)
    assert (colours[0, 0] == MISSING).all()
    assert (colours[0, 1] == (255, 0, 0)).all()


def test_vectors_in_space_are_shown_as_normals_are():
    colours = vector_colours(np.array([0.0, 0.0, 1.0])[:, None, None], 1.0)
    assert colours[0, 0].tolist() == [128, 128, 255]


@pytest.mark.parametrize("colour", ["no colour", (1, 2), (1, 2, 3, 4), (-1, 0, 0), (0, 0, 256), None, 3])
def test_what_is_no_colour_is_told(colour):
    with pytest.raises(ValueError, match="a colour should be three whole numbers from 0 to 255, or a text"):
        given_colours([(0, 0, 0), colour])
