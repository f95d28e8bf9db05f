import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lightning_uncertainty.instances import centroid_offsets, instances_from_votes, majority_classes
from tests.instances._scenes import apart, same_parts

CLUSTERERS = ("optics", "dbscan", "hdbscan", "mean_shift")


def noisy(ids, noise, seed=0):
    offsets = centroid_offsets(ids)
    return offsets + noise * torch.randn(offsets.shape, generator=torch.Generator().manual_seed(seed))


def by_hand(offsets, sigma=2.0, radius=5, least=6.0, reach=16.0):
    """Return the instances of one image, vote by vote."""
    radius, (_, height, width) = int(radius), offsets.shape
    pixels = np.argwhere(np.isfinite(offsets).all(0))
    votes = pixels + offsets[:, pixels[:, 0], pixels[:, 1]].T
    cells = np.clip(votes, 0, [height - 1, width - 1]).round().astype(int)
    counts, smooth = np.zeros((height, width)), np.zeros((height, width))
    for row, column in cells:
        counts[row, column] += 1
    far = int(3 * sigma)
    for row, column in np.argwhere(counts):
        for y in range(max(0, row - far), min(height, row + far + 1)):
            for x in range(max(0, column - far), min(width, column + far + 1)):
                smooth[y, x] += counts[row, column] * np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * sigma**2))
    centres = [
        (y, x)
        for y, x in np.argwhere(smooth >= least)
        if smooth[y, x] >= smooth[max(0, y - radius) : y + radius + 1, max(0, x - radius) : x + radius + 1].max()
    ]
    ids = np.zeros((height, width), int)
    for pixel, vote in zip(pixels, votes, strict=True):
        distances = [np.hypot(*(vote - centre)) for centre in centres]
        if distances and min(distances) <= reach:
            ids[tuple(pixel)] = 1 + int(np.argmin(distances))
    return ids


@pytest.mark.parametrize("seed", range(5))
def test_true_offsets_give_the_instances_back(seed):
    ids = apart(seed=seed)
    found = instances_from_votes(centroid_offsets(ids))
    assert same_parts(found, ids)
    assert found.amax((1, 2)).equal(ids.amax((1, 2)))


@pytest.mark.parametrize("options", [{}, {"sigma": 1.0, "radius": 3.0, "least": 3.0}, {"reach": 2.0}])
def test_peaks_are_those_of_counting_by_hand(options):
    offsets = noisy(apart(seed=3), 1.5)
    found = instances_from_votes(offsets, **options)
    expected = [by_hand(own.numpy(), **options).tolist() for own in offsets]
    assert found.tolist() == expected


@pytest.mark.parametrize("classes", [False, True])
def test_an_image_is_as_in_its_batch(classes):
    ids = apart(4, seed=7)
    kinds = ids % 3 if classes else None
    offsets = noisy(ids, 1.0)
    batch = instances_from_votes(offsets, ids > 0, classes=kinds)
    for image in range(4):
        own = instances_from_votes(offsets[image], ids[image] > 0, classes=kinds[image] if classes else None)
        assert own.equal(batch[image])
    assert set(batch[0].unique().tolist()) == set(range(int(batch[0].max()) + 1))


def rings():
    """Return ids of a disc within a ring of one centre, which are of two classes, and offsets of every pixel."""
    rows, columns = torch.meshgrid(torch.arange(40), torch.arange(40), indexing="ij")
    distance = ((rows - 20).square() + (columns - 20).square()).sqrt()
    ids = torch.where(distance < 6, 1, torch.where(distance < 12, 2, 0))
    return ids, centroid_offsets(ids)


def test_classes_vote_apart_where_they_are_given_and_else_together():
    ids, offsets = rings()
    assert same_parts(instances_from_votes(offsets, ids > 0, classes=ids)[None], ids[None])
    together = instances_from_votes(offsets, ids > 0)
    assert same_parts(together[None], (ids > 0).long()[None])
    assert majority_classes(together, ids)[ids > 0].unique().tolist() == [2]


def test_two_places_of_equal_votes_next_to_each_other_are_one_instance():
    offsets = torch.full((2, 24, 24), torch.nan)
    offsets[:, 8:12, 8:16] = centroid_offsets(torch.ones(4, 8, dtype=torch.int64))
    offsets[1, 8:12, 8:12] -= 0.6  # half of them votes for column 11, half for 12
    offsets[1, 8:12, 12:16] += 0.3
    found = instances_from_votes(offsets)
    assert found[8:12, 8:16].unique().tolist() == [1]


@pytest.mark.parametrize("method", ["peaks", "dbscan"])
def test_a_batch_without_images_has_no_instances(method):
    none = torch.zeros(0, 8, 8, dtype=torch.int64)
    assert instances_from_votes(torch.zeros(0, 2, 8, 8), none > 0, classes=none, method=method).equal(none)
    assert majority_classes(none, none).equal(none)


def test_only_things_vote_and_belong():
    ids = apart(seed=1)
    offsets = torch.where(ids[:, None] > 0, centroid_offsets(ids), 0.0)
    found = instances_from_votes(offsets, ids > 0)
    assert same_parts(found, ids)
    assert instances_from_votes(offsets, torch.zeros_like(ids, dtype=torch.bool)).eq(0).all()


def test_votes_that_are_not_finite_or_far_outside_make_nothing():
    offsets = torch.full((2, 32, 32), torch.nan)
    offsets[:, 4:12, 4:12] = centroid_offsets(torch.ones(8, 8, dtype=torch.int64))
    expected = instances_from_votes(offsets)
    offsets[:, 20:24] = torch.inf
    offsets[:, 24:28] = 1e30
    offsets[:, 28:] = -100.0
    assert instances_from_votes(offsets).equal(expected)


def test_a_centre_a_little_outside_of_a_crop_is_one():
    ids = torch.zeros(40, 40, dtype=torch.int64)
    ids[10:30, 10:30] = 1
    crop = centroid_offsets(ids)[:, :, 24:]  # the centroid is at column 19.5
    assert instances_from_votes(crop).equal(ids[:, 24:])


def test_every_how_many_pixels_vote():
    ids = apart(seed=2)
    found = instances_from_votes(centroid_offsets(ids), stride=2, least=2.0)
    assert same_parts(found, ids)
    assert instances_from_votes(centroid_offsets(ids), stride=12).eq(0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_counts_are_whole_whatever_the_precision(dtype):
    """A place with more votes than bfloat16 can count to."""
    ids = torch.zeros(1, 64, 64, dtype=torch.int64)
    ids[:, 2:30, 2:60], ids[:, 34:62, 2:60] = 1, 2
    offsets = centroid_offsets(ids).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = instances_from_votes(offsets)
    assert same_parts(found, ids)
    with torch.inference_mode():
        assert instances_from_votes(offsets).equal(found)


@pytest.mark.parametrize("method", CLUSTERERS)
@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_one_instance_alone_is_found_whole(method, noise):
    ids = torch.zeros(1, 48, 64, dtype=torch.long)
    ids[:, 10:30, 20:44] = 1
    assert instances_from_votes(noisy(ids, noise), method=method, stride=2).equal(ids)


@pytest.mark.parametrize("method", CLUSTERERS)
@pytest.mark.parametrize("stride", [1, 2])
def test_clusterers_find_what_is_apart(method, stride):
    ids = apart(seed=4)
    assert same_parts(instances_from_votes(noisy(ids, 0.4), method=method, stride=stride), ids)


@pytest.mark.parametrize("method", CLUSTERERS)
def test_clusterers_find_nothing_in_nothing(method):
    offsets = torch.full((2, 2, 48, 64), torch.nan)
    assert instances_from_votes(offsets, method=method).eq(0).all()
    offsets[:, :, ::16, ::16] = 0.0  # a few votes, each for another place
    assert instances_from_votes(offsets, method=method, reach=1.0).unique().numel() <= 13


def test_a_clusterer_takes_options_and_may_be_an_object():
    from sklearn.cluster import DBSCAN

    offsets = noisy(apart(seed=5), 0.4)
    expected = instances_from_votes(offsets, method="dbscan", eps=1.0, min_samples=4)
    assert instances_from_votes(offsets, method=DBSCAN(eps=1.0, min_samples=4)).equal(expected)


def test_classes_are_clustered_apart():
    ids, offsets = rings()
    found = instances_from_votes(offsets, classes=ids, method="dbscan")
    assert same_parts(found[None], ids[None])


@pytest.mark.parametrize("method", CLUSTERERS)
def test_without_scikit_learn_the_extra_is_named(method, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        ModuleNotFoundError, match=r"needs scikit-learn: pip install 'lightning-uncertainty\[instances\]'"
    ):
        instances_from_votes(torch.zeros(2, 4, 4), method=method)
    instances_from_votes(torch.zeros(2, 4, 4))


FLAT = torch.zeros(1, 2, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"offsets": torch.zeros(1, 3, 4, 6)},
            r"offsets should be \[B, 2, H, W\] or \[2, H, W\]: found \[1, 3, 4, 6\]",
        ),
        ({"offsets": FLAT.long()}, "offsets should be a tensor of floating-point numbers: found torch.int64"),
        ({"offsets": FLAT.numpy()}, "offsets should be a tensor of floating-point numbers: found a ndarray"),
        ({"things": torch.ones(1, 4, 6)}, "things should be a boolean tensor: found torch.float32; compare classes"),
        ({"things": torch.ones(1, 6, 4) > 0}, r"things should have the shape .* \[1, 4, 6\]: found \[1, 6, 4\]"),
        ({"classes": torch.ones(1, 4, 6)}, "classes should be a tensor of whole numbers: found torch.float32"),
        ({"classes": torch.ones(4, 6).long()}, r"classes should have the shape .* \[1, 4, 6\]: found \[4, 6\]"),
        ({"method": "kmeans"}, "method should be peaks, optics, dbscan, .*: found 'kmeans'"),
        ({"method": F.conv2d}, "method should be peaks, .*, or have a fit_predict: found"),
        ({"reach": 0.0}, "reach should be a number above 0: found 0.0"),
        ({"stride": 1.5}, "stride should be a whole number above 0: found 1.5"),
        ({"eps": 1.0}, "options of peaks should be among sigma, radius, least: found eps"),
        ({"sigma": 0.0}, "sigma should be positive: found 0.0"),
        ({"radius": 2.5}, "radius should be a whole number, 1 or more: found 2.5"),
        ({"radius": 0}, "radius should be a whole number, 1 or more: found 0"),
        ({"least": -1}, "least should be 0 or more: found -1"),
        ({"method": "dbscan", "sigma": 1.0}, "options of dbscan should be among eps, .*: found sigma"),
    ],
)
def test_what_cannot_be_is_told(arguments, message):
    with pytest.raises(ValueError, match=message):
        instances_from_votes(**{"offsets": FLAT, **arguments})


def test_options_beside_an_object_are_refused():
    from sklearn.cluster import DBSCAN

    with pytest.raises(ValueError, match="options should be given to the object that is the method: found eps"):
        instances_from_votes(FLAT, method=DBSCAN(), eps=1.0)
