"""Scenes as samples: what mirrors and strides do to labels, held against labels made anew."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_uncertainty.examples._scene_cache import Streets
from lightning_uncertainty.examples.scenes import Scenes
from lightning_uncertainty.instances import centroid_offsets

NORMAL = np.float32([0.6, 0.0, 0.8])


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    scenes = list(Streets(tmp_path_factory.mktemp("streets"), "train", 4, (32, 64), progress_bar=False))
    return [scene | {"normals": np.broadcast_to(NORMAL, (32, 64, 3)), "depth": scene["disparity"]} for scene in scenes]


def test_a_sample_is_the_scene(raw):
    sample = Scenes(raw)[1]
    torch.testing.assert_close(sample["image"].movedim(0, -1) * 255, torch.tensor(raw[1]["image"]).float())
    assert sample["semantics"].equal(torch.tensor(raw[1]["semantics"]).long())
    assert sample["instances"].nan_to_num().equal(centroid_offsets(torch.tensor(raw[1]["ids"])).nan_to_num())
    torch.testing.assert_close(sample["disparity"][0], torch.tensor(raw[1]["disparity"]), equal_nan=True)
    assert sample["normals"].movedim(0, -1).unique(dim=0).shape[0] == 1
    kinds = {name: part.dtype for name, part in sample.items()}
    assert kinds.pop("semantics") is kinds.pop("ids") is torch.int64
    assert set(kinds.values()) == {torch.float32}


def test_an_image_of_floats_is_taken_as_it_is(raw):
    scene = raw[0] | {"image": raw[0]["image"].astype(float) / 255}
    torch.testing.assert_close(Scenes([scene])[0]["image"], Scenes(raw)[0]["image"])


def test_training_samples_are_mirrored_whole_and_strided(raw):
    torch.manual_seed(0)
    mirrored = set()
    for _ in range(12):
        sample, whole = Scenes(raw, training=True)[2], Scenes(raw)[2]
        kept = whole["semantics"][2::4, 2::4], whole["semantics"].flip(-1)[2::4, 2::4]
        flipped = sample["semantics"].equal(kept[1])
        assert flipped or sample["semantics"].equal(kept[0])
        mirrored.add(flipped)
        assert sample["image"].shape == whole["image"].shape
        ids = whole["ids"].flip(-1) if flipped else whole["ids"]
        expected = centroid_offsets(ids)[:, 2::4, 2::4] + 0.5
        torch.testing.assert_close(sample["instances"], expected, equal_nan=True)
        assert sample["ids"].equal(ids[2::4, 2::4])
        disparity = whole["disparity"].flip(-1) if flipped else whole["disparity"]
        torch.testing.assert_close(sample["disparity"], disparity[:, 2::4, 2::4], equal_nan=True)
        assert sample["normals"][0].unique().item() == pytest.approx(-0.6 if flipped else 0.6)
        picture = whole["image"].flip(-1) if flipped else whole["image"]
        assert (sample["image"] - picture).abs().max() < 0.2
    assert mirrored == {True, False}


def test_a_strided_offset_leads_from_the_centre_of_its_cell(raw):
    """Predictions at a stride of 4, drawn large, are then of the pixels themselves."""
    ids = np.zeros((32, 64), np.uint8)
    ids[4:20, 16:48] = 1  # of whole cells, and its own mirror image
    sample = Scenes([raw[0] | {"ids": ids}], training=True)[0]["instances"][:, 1:5, 4:12]
    rows, columns = nn.functional.interpolate(sample[None], (16, 32), mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(rows[4:-4, 8] + torch.arange(4, 12), torch.full((8,), 7.5))
    torch.testing.assert_close(columns[8, 4:-4] + torch.arange(4, 28), torch.full((24,), 15.5))


def test_sizes_that_four_does_not_divide_have_a_label_for_every_cell(raw):
    scene = {name: part[:30, :62] for name, part in raw[0].items()}
    sample = Scenes([scene], training=True)[0]
    assert sample["semantics"].shape == (8, 16)
    assert sample["instances"].shape == (2, 8, 16)
