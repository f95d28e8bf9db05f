"""Pictures of a batch, wherever they are and however they were made."""

import numpy as np
import pytest
import torch

from lightning_uncertainty.callbacks._photographs import found_at, photographs, picture_of

PIXELS = torch.arange(2 * 3 * 6 * 5).reshape(2, 3, 6, 5).to(torch.uint8)
EXPECTED = PIXELS.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (PIXELS, {}),
        (PIXELS.permute(0, 2, 3, 1), {}),
        (torch.cat([PIXELS, PIXELS[:, :1]], 1), {}),  # with a channel of opacity
        (PIXELS.unsqueeze(2).expand(-1, -1, 3, -1, -1), {}),  # a volume
        ((PIXELS / 255 - 0.4) / 0.2, {"mean": [0.4] * 3, "std": [0.2] * 3}),
        ((PIXELS / 255 - 0.4), {"mean": [0.4]}),
        (PIXELS.float(), {"to_image": lambda pictures: pictures / 255}),
        (PIXELS.float(), {"to_image": lambda pictures: pictures.to(torch.uint8)}),
        ((PIXELS / 255).to(torch.float64), {"mean": [0.0] * 3, "std": [1.0] * 3}),
    ],
)
def test_pixels_come_back(given, options):
    found = photographs(given, **{"mean": None, "std": None, "to_image": None, **options})
    assert all(one.dtype == np.uint8 and one.flags["C_CONTIGUOUS"] for one in found)
    assert np.abs(np.stack(found).astype(int) - EXPECTED).max() <= 1


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 1, 6, 5), (2, 2, 6, 5), (2, 6, 5, 1)])
def test_one_channel_is_grey(shape):
    found = photographs(torch.randn(shape), None, None, None)
    assert all(one.shape == (6, 5, 3) and (one == one[..., :1]).all() for one in found)


def test_each_is_stretched_between_its_own_dark_and_bright():
    pictures = torch.stack([torch.linspace(0, 1, 1000), torch.linspace(-300, 500, 1000)]).reshape(2, 1, 20, 50)
    one, other = photographs(pictures, None, None, None)
    assert np.abs(one.astype(int) - other).max() <= 1
    assert (one.ravel()[:30] == 0).all()
    assert (one.ravel()[-30:] == 255).all()


@pytest.mark.parametrize("value", [0.0, torch.nan, torch.inf])
def test_a_picture_of_nothing_is_a_picture(value):
    assert photographs(torch.full((1, 3, 6, 5), value), None, None, None)[0].shape == (6, 5, 3)


@pytest.mark.parametrize(
    ("batch", "where"),
    [
        ({"image": PIXELS, "x": 0}, None),
        ({"photo": PIXELS}, "photo"),
        ((PIXELS, 0), None),
        ((0, PIXELS), 1),
        ([0, PIXELS], -1),
        (PIXELS, None),
        ({1: PIXELS}, 1),
        (3, lambda batch: PIXELS),
    ],
)
def test_pictures_are_found(batch, where):
    assert picture_of(batch, where, object()) is PIXELS


@pytest.mark.parametrize("batch", [{"other": PIXELS}, (), ("text", PIXELS), 3, None])
def test_what_nobody_names_may_be_missing(batch):
    assert picture_of(batch, None, object()) is None


@pytest.mark.parametrize(
    ("batch", "where", "message"),
    [
        ((1, 2), 2, "at place 2 of the batch: found 2 parts"),
        (3, 0, "at place 0 of the batch: found a int"),
        ({"a": 1}, "b", "under 'b' in the batch: found keys a"),
    ],
)
def test_what_is_named_must_be_there(batch, where, message):
    with pytest.raises(ValueError, match=message):
        found_at(batch, where, "labels", "name another")
