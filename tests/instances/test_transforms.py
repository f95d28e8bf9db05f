import pickle

import pytest
import torch

from lightning_uncertainty.instances import DenseTransforms, centroid_offsets, instances_from_votes
from tests.instances._scenes import apart, same_parts, scenes

TRANSFORMS = DenseTransforms(offsets="instances", disparity=["disparity"], normals=("normals",))
SIZES = [(80, 112), (20, 28), (60, 84), (33, 71), (40, 56), (1, 1)]


def batch_of(seed=0, batch=3):
    ids, classes = scenes(batch, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    return {
        "image": torch.rand(batch, 3, 40, 56, generator=rng),
        "ids": ids,
        "classes": classes.to(torch.uint8),
        "instances": centroid_offsets(ids),
        "disparity": torch.where(classes > 2, torch.nan, torch.rand(batch, 1, 40, 56, generator=rng)[:, 0]),
        "depth": torch.rand(batch, 1, 40, 56, generator=rng),
        "normals": torch.randn(batch, 3, 40, 56, generator=rng),
        "mask": classes > 0,
        "count": ids.flatten(1).amax(1),
        "camera": torch.rand(batch, 3, 3, generator=rng),
        "name": ["a", "b", "c"][:batch],
        "missing": None,
    }


def sample_of(batch, image):
    return {name: None if value is None else value[image] for name, value in batch.items()}


def votes(offsets):
    """Return the place that each pixel votes for `[B, H, W, 2]`."""
    height, width = offsets.shape[-2:]
    pixels = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    return (offsets + pixels).movedim(-3, -1)


def assert_same(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    tensors = [{name: x for name, x in each.items() if isinstance(x, torch.Tensor)} for each in (found, expected)]
    torch.testing.assert_close(*tensors, equal_nan=True, **(tolerance or {"rtol": 0, "atol": 0}))
    assert found["name"] == expected["name"]
    assert found["missing"] is None


FLIPS = ("horizontal_flip", "vertical_flip")


@pytest.mark.parametrize("flip", FLIPS)
def test_a_flip_twice_is_none_and_the_given_batch_stays(flip):
    batch, before = batch_of(), batch_of()
    flipped = getattr(TRANSFORMS, flip)(batch)
    assert_same(batch, before)
    assert not flipped["image"].equal(batch["image"])
    assert_same(getattr(TRANSFORMS, flip)(flipped), batch)


@pytest.mark.parametrize(("flip", "dim"), [("horizontal_flip", -1), ("vertical_flip", -2)])
def test_offsets_of_flipped_ids_are_flipped_offsets(flip, dim):
    batch = batch_of(1)
    flipped = getattr(TRANSFORMS, flip)(batch)
    assert flipped["ids"].equal(batch["ids"].flip(dim))
    expected = centroid_offsets(batch["ids"].flip(dim))
    torch.testing.assert_close(flipped["instances"], expected, equal_nan=True, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("flip", "dim", "turned"), [("horizontal_flip", -1, 0), ("vertical_flip", -2, 1)])
def test_normals_turn_and_what_has_no_direction_does_not(flip, dim, turned):
    batch = batch_of(2)
    flipped = getattr(TRANSFORMS, flip)(batch)
    signs = torch.ones(3, 1, 1)
    signs[turned] = -1
    assert flipped["normals"].equal(batch["normals"].flip(dim) * signs)
    for name in ("image", "classes", "depth", "mask"):
        assert flipped[name].equal(batch[name].flip(dim))
    torch.testing.assert_close(flipped["disparity"], batch["disparity"].flip(dim), equal_nan=True)
    for name in ("count", "camera"):
        assert flipped[name] is batch[name]


def test_a_crop_keeps_what_its_pixels_have():
    batch = batch_of(3)
    found = TRANSFORMS.crop(batch, 5, 7, 20, 30)
    for name in ("image", "ids", "instances", "disparity", "normals"):
        torch.testing.assert_close(found[name], batch[name][..., 5:25, 7:37], equal_nan=True, rtol=0, atol=0)
    assert_same(TRANSFORMS.crop(batch, 0, 0, 40, 56), batch)
    mirrored = TRANSFORMS.crop(TRANSFORMS.horizontal_flip(batch), 5, 56 - 37, 20, 30)
    assert_same(mirrored, TRANSFORMS.horizontal_flip(found))


@pytest.mark.parametrize("size", SIZES)
def test_votes_of_an_instance_meet_in_its_centroid_at_any_size(size):
    batch = batch_of(4)
    found = TRANSFORMS.resize(batch, size)
    factors = torch.tensor([size[0] / 40, size[1] / 56])
    before, after = votes(batch["instances"]), votes(found["instances"])
    for image in range(3):
        for one in found["ids"][image].unique()[1:]:
            place = before[image][batch["ids"][image] == one][0]
            own = after[image][found["ids"][image] == one]
            torch.testing.assert_close(own, ((place + 0.5) * factors - 0.5).expand_as(own), atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_labels_at_another_size_are_those_of_the_pixel_next_to_each(size):
    batch = batch_of(5)
    found = TRANSFORMS.resize(batch, size)
    for name in ("ids", "classes", "depth", "mask", "normals", "disparity"):
        value = batch[name].double().reshape(3, -1, 40, 56)
        expected = torch.nn.functional.interpolate(value, size, mode="nearest-exact")
        expected = expected.reshape(found[name].shape) * (size[1] / 56 if name == "disparity" else 1)
        torch.testing.assert_close(found[name].double(), expected, equal_nan=True, atol=1e-6, rtol=0)
        assert found[name].dtype is batch[name].dtype


def test_a_disparity_is_a_length_along_the_width():
    """The right picture of a pair has each pixel's content that much further left, at any size."""
    batch = {"image": torch.rand(1, 3, 4, 64), "disparity": torch.full((1, 4, 64), 8.0)}
    pair = {**batch, "image": batch["image"].roll(-8, -1)}
    for size in ((4, 32), (8, 64), (2, 128)):
        left, right = (TRANSFORMS_OF_PAIRS.resize(each, size) for each in (batch, pair))
        shift = int(left["disparity"].unique().item())
        inner = slice(size[1] // 4, size[1] // 2)
        shifted = left["image"].roll(-shift, -1)[..., inner]
        torch.testing.assert_close(right["image"][..., inner], shifted, atol=1e-5, rtol=0)


TRANSFORMS_OF_PAIRS = DenseTransforms(disparity="disparity")


def test_the_picture_stays_of_its_type_and_in_its_range():
    batch = {"image": torch.randint(256, (2, 3, 24, 32), dtype=torch.uint8)}
    for size in ((12, 16), (48, 64)):
        found = DenseTransforms().resize(batch, size)["image"]
        assert found.dtype is torch.uint8
        expected = torch.nn.functional.interpolate(batch["image"].float(), size, mode="bilinear", antialias=True)
        torch.testing.assert_close(found.float(), expected, atol=0.501, rtol=0)
    checks = {"image": (255 * (torch.arange(64).reshape(8, 8) % 2)).to(torch.uint8).expand(3, 8, 8)}
    assert DenseTransforms().resize(checks, (4, 4))["image"].float().std() < 64  # no pixel alone is the picture


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_a_picture_of_any_precision_is_resized(kind):
    picture = torch.rand(2, 3, 24, 32)
    found = DenseTransforms().resize({"image": picture.to(kind)}, (12, 16))["image"]
    assert found.dtype is kind
    expected = DenseTransforms().resize({"image": picture}, (12, 16))["image"]
    torch.testing.assert_close(found.float(), expected, atol=max(1e-6, torch.finfo(kind).eps), rtol=0)


def test_instances_are_found_again_after_all_of_it():
    ids = apart(4, seed=3)
    batch = {"image": torch.rand(4, 3, 48, 64), "ids": ids, "instances": centroid_offsets(ids)}
    transforms = DenseTransforms(offsets="instances")
    for step in (
        lambda each: transforms.random_horizontal_flip(each, 0.5),
        lambda each: transforms.random_vertical_flip(each, 0.5),
        lambda each: transforms.random_rescale(each, (1.2, 1.5)),
        lambda each: transforms.random_crop(each, (48, 64)),
    ):
        batch = step(batch)
        found = instances_from_votes(batch["instances"], least=1.0, reach=3.0)
        seen = (found > 0) & (found > -1)
        assert (batch["ids"] > 0)[seen].all()
        inner = {"image": batch["image"], "ids": torch.where(seen, batch["ids"], 0)}
        assert same_parts(found, inner["ids"])


def test_a_sample_is_as_in_its_batch():
    batch = batch_of(6)
    for change in (
        TRANSFORMS.horizontal_flip,
        TRANSFORMS.vertical_flip,
        lambda each: TRANSFORMS.crop(each, 1, 2, 30, 20),
        lambda each: TRANSFORMS.resize(each, (30, 70)),
        lambda each: TRANSFORMS.random_horizontal_flip(each, 1.0),
        lambda each: TRANSFORMS.random_crop(each, (40, 56)),
        lambda each: TRANSFORMS.random_rescale(each, (0.5, 0.5)),
    ):
        whole = change(batch)
        for image in range(3):
            assert_same(change(sample_of(batch, image)), sample_of(whole, image), rtol=0, atol=1e-6)


def test_samples_are_drawn_for_by_themselves_and_all_their_maps_alike():
    batch = batch_of(7)
    many = {name: value.repeat(20, *[1] * (value.dim() - 1)) for name, value in batch.items() if name in MAPS}
    generator = torch.Generator().manual_seed(0)
    flipped = TRANSFORMS.random_horizontal_flip(many, 0.3, generator)
    mirrored = TRANSFORMS.horizontal_flip(many)
    chosen = [flipped["image"][i].equal(mirrored["image"][i]) for i in range(60)]
    assert 9 <= sum(chosen) <= 27
    for name in MAPS:
        for i, flip in enumerate(chosen):
            expected = (mirrored if flip else many)[name][i]
            torch.testing.assert_close(flipped[name][i], expected, equal_nan=True, rtol=0, atol=0)
    again = TRANSFORMS.random_horizontal_flip(many, 0.3, torch.Generator().manual_seed(0))
    assert again["image"].equal(flipped["image"])
    places = torch.arange(40 * 56.0).reshape(1, 1, 40, 56).expand(60, 1, 40, 56)
    cut = TRANSFORMS.random_crop({**many, "image": places, "depth": places}, (10, 12), generator)
    corners = cut["image"][:, 0, 0, 0].long()
    assert len(corners.unique()) > 40
    assert cut["depth"].equal(cut["image"])
    for i, corner in enumerate(corners.tolist()):
        top, left = divmod(corner, 56)
        assert cut["ids"][i].equal(many["ids"][i, top : top + 10, left : left + 12])
    sizes = {TRANSFORMS.random_rescale(batch, (0.5, 2.0), generator)["image"].shape[-2:] for _ in range(20)}
    assert len(sizes) > 10
    assert all(20 <= height <= 80 and abs(width / height - 1.4) < 0.03 for height, width in sizes)


MAPS = ("image", "ids", "instances", "disparity", "normals")


def test_workers_are_sent_it():
    assert pickle.loads(pickle.dumps(TRANSFORMS)) == TRANSFORMS


def test_a_vector_as_long_as_the_picture_is_high_is_no_map():
    batch = {"image": torch.rand(40, 3, 40, 56), "embedding": torch.rand(40, 56)}
    assert DenseTransforms().horizontal_flip(batch)["embedding"] is batch["embedding"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda each: TRANSFORMS.horizontal_flip({**each, "image": None}),
            "the picture should be a tensor .* under 'im",
        ),
        (lambda each: DenseTransforms(image="x").vertical_flip(each), r"under 'x': found image, ids, .* image=\.\.\."),
        (lambda each: TRANSFORMS.resize([each], (3, 4)), "the picture should be a tensor"),
        (
            lambda each: DenseTransforms(offsets="offset").horizontal_flip(each),
            r"'offset' should be a map \[B, 2, H, W\] .*: found nothing; name the keys",
        ),
        (
            lambda each: DenseTransforms(offsets="normals").horizontal_flip(each),
            r"'normals' should be a map \[B, 2, H, W\] .*: found \[3, 3, 40, 56\]",
        ),
        (
            lambda each: DenseTransforms(disparity="count").crop(each, 0, 0, 4, 4),
            r"'count' should be a map \[B, H, W\] .*: found \[3\]",
        ),
        (lambda each: TRANSFORMS.crop(each, 30, 0, 20, 20), r"within the picture \[40, 56\]: found rows 30 to 50, col"),
        (lambda each: TRANSFORMS.crop(each, -1, 0, 20, 20), "found rows -1 to 19"),
        (lambda each: TRANSFORMS.random_crop(each, (41, 20)), "found rows 0 to 41, .*; take a smaller one, or resize"),
        (lambda each: TRANSFORMS.resize(each, (0, 4)), r"size should be a height and a width .*: found \(0, 4\)"),
        (lambda each: TRANSFORMS.resize(each, 4), r"size should be a height and a width .*: found 4; give two"),
        (lambda each: TRANSFORMS.random_crop(each, 4), r"size should be a height and a width .*: found 4; give two"),
        (lambda each: TRANSFORMS.random_rescale(each, 2.0), r"scale should be a least .*: found 2.0; give two"),
        (lambda each: TRANSFORMS.random_horizontal_flip(each, 1.5), "p should be a probability: found 1.5"),
        (lambda each: TRANSFORMS.random_rescale(each, (2.0, 1.0)), r"scale should be a least .*: found \(2.0, 1.0\)"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        change(batch_of())
