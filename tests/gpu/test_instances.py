"""Instances by votes on a GPU are those of the CPU."""

import pytest
import torch

from lightning_uncertainty.instances import (
    DenseTransforms,
    centroid_offsets,
    instances_from_votes,
    majority_classes,
)
from lightning_uncertainty.metrics import InstanceAP
from tests.gpu._device import DEVICE, for_gpu
from tests.metrics.test_instance_ap import draw

pytestmark = for_gpu


@pytest.fixture(params=[False, True], ids=["", "deterministic"])
def _ways(request):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("_ways")
def test_the_way_there_and_back():
    _, kinds, ids, _, _ = draw(0, batch=8)
    offsets = centroid_offsets(ids)
    torch.testing.assert_close(centroid_offsets(ids.to(DEVICE)).cpu(), offsets, equal_nan=True)
    noisy = offsets + torch.randn(offsets.shape)
    for classes in (None, kinds):
        own = None if classes is None else classes.to(DEVICE)
        found = instances_from_votes(noisy.to(DEVICE), ids.to(DEVICE) > 0, classes=own)
        assert found.cpu().equal(instances_from_votes(noisy, ids > 0, classes=classes))
    assert majority_classes(found, kinds.to(DEVICE)).cpu().equal(majority_classes(found.cpu(), kinds))


@pytest.mark.usefixtures("_ways")
def test_what_is_found_and_moved():
    maps = draw(1)
    metrics = InstanceAP([0.25, 0.5]), InstanceAP([0.25, 0.5]).to(DEVICE)
    metrics[0].update(*maps)
    metrics[1].update(*(each.to(DEVICE) for each in maps))
    torch.testing.assert_close(metrics[1].compute().cpu(), metrics[0].compute())
    batch = {"image": torch.rand(4, 3, 40, 56), "ids": maps[2], "instances": centroid_offsets(maps[2])}
    there = {name: each.to(DEVICE) for name, each in batch.items()}
    transforms = DenseTransforms(offsets="instances")
    for move in (
        lambda each: transforms.random_horizontal_flip(each),
        lambda each: transforms.random_crop(each, (9, 9)),
    ):
        torch.manual_seed(0)
        expected = move(batch)
        torch.manual_seed(0)
        for name, each in move(there).items():
            torch.testing.assert_close(each.cpu(), expected[name], equal_nan=True)
    for name, each in transforms.resize(there, (30, 77)).items():
        torch.testing.assert_close(each.cpu(), transforms.resize(batch, (30, 77))[name], equal_nan=True)
