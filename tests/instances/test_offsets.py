import numpy as np
import pytest
import torch

from lightning_uncertainty import Task
from lightning_uncertainty.instances import centroid_offsets, majority_classes
from tests.instances._scenes import scenes

NAN = float("nan")


def by_hand(ids):
    """Return offsets as the paper writes them, pixel by pixel."""
    offsets = np.full((len(ids), 2, *ids.shape[1:]), np.nan)
    for image, own in enumerate(ids):
        for one in np.unique(own[own > 0]):
            places = np.argwhere(own == one)
            offsets[image][:, own == one] = (places.mean(0) - places).T
    return torch.from_numpy(offsets)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_offsets_are_those_of_the_paper(dtype):
    ids, _ = scenes(seed=1)
    found = centroid_offsets(ids.to(dtype))
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), by_hand(ids.numpy()), equal_nan=True, atol=1e-5, rtol=0)


def test_ids_may_be_any_and_below_one_there_is_none():
    ids, _ = scenes(seed=2)
    names = torch.tensor([0, 16_777_215, 33_018, 2**40, 5, 70_000, 2**31])
    expected = centroid_offsets(ids)
    torch.testing.assert_close(centroid_offsets(names[ids]), expected, equal_nan=True)
    torch.testing.assert_close(centroid_offsets(torch.where(ids > 0, ids, -1)), expected, equal_nan=True)


def test_an_image_is_as_in_its_batch_and_ids_of_other_images_are_others():
    ids, _ = scenes(seed=3)
    batch = centroid_offsets(ids)
    for image, own in zip(batch, ids, strict=True):
        torch.testing.assert_close(centroid_offsets(own), image, equal_nan=True, atol=0, rtol=0)


def test_votes_of_an_instance_are_one_place_however_large_it_is():
    ids = torch.ones(64, 16_384, dtype=torch.int64)
    down, right = centroid_offsets(ids)
    assert down[:, 0].tolist() == [31.5 - row for row in range(64)]
    assert (right[0] + torch.arange(16_384)).unique().tolist() == [8191.5]


def test_nothing_has_offsets_where_there_is_no_instance():
    assert centroid_offsets(torch.zeros(2, 3, 4, dtype=torch.int64)).isnan().all()
    assert centroid_offsets(torch.zeros(0, 3, 4, dtype=torch.int64)).shape == (0, 2, 3, 4)


def test_a_task_counts_the_scalars_of_instances_alone():
    ids, _ = scenes(seed=4)
    output = torch.zeros(3, 2, 40, 56)
    offsets = centroid_offsets(ids)
    loss, count = Task("laplace").likelihood.loss(output, offsets)
    assert count == 2 * (ids > 0).sum()
    torch.testing.assert_close(loss, offsets.nan_to_num().abs().sum())


def test_an_instance_has_the_class_of_most_of_its_pixels():
    ids, classes = scenes(seed=5)
    expected = classes.numpy().copy()
    for image, own in enumerate(ids.numpy()):
        for one in np.unique(own[own > 0]):
            expected[image][own == one] = np.bincount(classes[image][own == one]).argmax()
    assert majority_classes(ids, classes).tolist() == expected.tolist()
    assert majority_classes(ids[0], classes[0]).tolist() == expected[0].tolist()
    nothing = torch.zeros_like(ids)
    assert majority_classes(nothing, classes).equal(classes)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(3, 4), "ids should be a tensor of whole numbers: found torch.float32"),
        (np.zeros((3, 4), int), "ids should be a tensor of whole numbers: found a ndarray"),
        (torch.zeros(4, dtype=torch.int64), r"ids should be \[H, W\] or \[B, H, W\]: found \[4\]"),
        (torch.zeros(1, 1, 4, 4, dtype=torch.int64), r"ids should be \[H, W\] or \[B, H, W\]: found \[1, 1, 4, 4\]"),
    ],
)
def test_what_are_no_ids_is_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        centroid_offsets(ids)


def test_classes_of_another_size_are_refused():
    ids = torch.zeros(3, 4, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"maps should have one shape: found ids \[3, 4\], classes \[4, 3\]"):
        majority_classes(ids, ids.T)
