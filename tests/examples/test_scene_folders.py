"""Cityscapes and MTAN on disk: what is read is what lies there, and what does not fit is told in a sentence."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_uncertainty.examples._scene_folders import CITYSCAPES, ID_OF, Cityscapes, MTANArrays
from lightning_uncertainty.examples.scenes import SceneData
from tests.examples._folders import IDS, SIZE, cityscapes, mtan


def test_the_ids_of_cityscapes_are_the_official_ones():
    assert len(CITYSCAPES) == len(ID_OF) == 19
    official = {7: "road", 13: "fence", 23: "sky", 24: "person", 26: "car", 28: "bus", 31: "train", 33: "bicycle"}
    assert {number: name for number, name in zip(ID_OF, CITYSCAPES, strict=True) if number in official} == official


def test_cityscapes_at_its_own_size_is_what_lies_there(tmp_path):
    root = cityscapes(tmp_path)
    found = Cityscapes(root, "train", SIZE)
    assert len(found) == 3
    scene, files = found[0], found.files[0]
    np.testing.assert_array_equal(scene["image"], np.asarray(Image.open(files["image"])))
    expected = [0, 1, 2, 10, 13, 11, 255, 255]  # of IDS
    np.testing.assert_array_equal(scene["semantics"], np.repeat(expected, SIZE[1] // len(IDS))[None].repeat(SIZE[0], 0))
    ids = scene["ids"]
    assert np.unique(ids).tolist() == [0, 1, 2]  # two cars; a person of no id, and a group, are none
    assert (ids[:20, 32:40] == 1).all()
    assert (ids[20:, 32:40] == 2).all()
    raw = np.asarray(Image.open(files["disparity"])).astype(float)
    np.testing.assert_allclose(scene["disparity"][:, 4:], (raw[:, 4:] - 1) / 256, rtol=1e-6)
    assert np.isnan(scene["disparity"][:, :4]).all()


def test_cityscapes_in_half_its_size_has_half_the_disparity(tmp_path):
    root = cityscapes(tmp_path)
    whole, half = Cityscapes(root, "train", SIZE)[1], Cityscapes(root, "train", (16, 32))[1]
    assert {name: part.shape[:2] for name, part in half.items()} == dict.fromkeys(whole, (16, 32))
    np.testing.assert_allclose(half["disparity"], whole["disparity"][1::2, 1::2] / 2, rtol=1e-6)
    np.testing.assert_array_equal(half["semantics"], whole["semantics"][1::2, 1::2])
    assert np.unique(half["ids"]).tolist() == [0, 1, 2]


def test_arrays_of_mtan_are_what_lies_there(tmp_path):
    found = MTANArrays(mtan(tmp_path, count=12), "train", 13)
    assert [files["image"].stem for files in found.files] == [str(number) for number in range(12)]  # 10 after 9
    scene = found[3]
    image, label, depth, normal = (
        np.load(tmp_path / f"train/{name}/3.npy") for name in ("image", "label", "depth", "normal")
    )
    np.testing.assert_array_equal(scene["image"], image)
    np.testing.assert_array_equal(scene["semantics"], np.where(label < 0, 255, label))
    np.testing.assert_array_equal(np.isnan(scene["depth"]), depth[..., 0] == 0)
    np.testing.assert_allclose(np.nan_to_num(scene["depth"]), depth[..., 0], rtol=1e-6)
    assert np.isnan(scene["normals"][:4]).all()
    np.testing.assert_allclose(scene["normals"][4:], normal[4:], rtol=1e-6)


def test_mtan_may_have_two_tasks_and_labels_of_several_numbers_of_classes(tmp_path):
    root = mtan(mtan(tmp_path, classes=19, normals=False, label="label_19"), classes=7, normals=False, label="label_7")
    seven, nineteen = (MTANArrays(root, "val", classes)[0] for classes in (7, 19))
    assert set(seven) == {"image", "semantics", "depth"}
    assert np.unique(seven["semantics"]).max() == 255
    assert {part["semantics"][part["semantics"] < 255].max() for part in (seven, nineteen)} == {6, 18}


def data(root, layout, **options):
    found = SceneData(root, layout, size=SIZE, batch_size=2, **options)
    found.prepare_data()
    return [batch for loader in (found.train_dataloader(), found.test_dataloader()) for batch in loader]


def without_labels(root):
    next(root.glob("gtFine/train/*/*_labelIds.png")).unlink()


def empty(root):
    for path in root.glob("leftImg8bit/val/*/*.png"):
        path.unlink()


def other_id(root):
    path = next(root.glob("gtFine/val/*/*_labelIds.png"))
    Image.fromarray(np.full(SIZE, 77, np.uint8)).save(path)


def other_size(root):
    path = next(root.glob("disparity/val/*/*.png"))
    Image.fromarray(np.ones((8, 64), np.uint16)).save(path)


def cut(root):
    path = next(root.glob("leftImg8bit/val/*/*.png"))
    path.write_bytes(path.read_bytes()[:2000])


def no_picture(root):
    path = next(root.glob("leftImg8bit/val/*/*.png"))
    path.write_bytes(b"no picture")


def pictures_for_labels(root):
    path = next(root.glob("gtFine/val/*/*labelIds.png"))
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(path)


def refused(root, layout, spoil, sentence):
    data(root, layout)
    spoil(root)
    with pytest.raises(ValueError, match=sentence):
        data(root, layout)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: shutil.rmtree(root / "gtFine"), r"should have .*: found no gtFine/train, gtFine/val in"),
        (lambda root: shutil.rmtree(root), r"should have .*: found no leftImg8bit/train, "),
        (without_labels, r"every picture should have its labels: found no .*labelIds.png for .*_leftImg8bit.png"),
        (empty, r"a split should have pictures: found no <city>/\*_leftImg8bit.png in .*val"),
        (other_id, r"ids of classes should be from 0 to 33: found 77 in .*labelIds.png"),
        (other_size, r"the disparity of a picture should have its size, 32 x 64: found 8 x 64 in .*disparity.png"),
        (pictures_for_labels, r"semantics of a picture .* one number for each pixel: found \[32, 64, 3\] in .*Ids.png"),
        (cut, r"a picture should be one that Pillow reads: found .*_leftImg8bit.png, which it does not \("),
        (
            no_picture,
            r"a picture should be one that Pillow reads: found .*_leftImg8bit.png, which it does not \(cannot identify",
        ),
    ],
)
def test_what_does_not_fit_in_cityscapes_is_told(tmp_path, spoil, sentence):
    refused(cityscapes(tmp_path / "there"), "cityscapes", spoil, sentence)


def mtan_of(split, size):
    for name, more in {"image": (3,), "label": (), "depth": (1,), "normal": (3,)}.items():
        np.save(split / name / "1.npy", np.ones((*size, *more)))


def arrays(name, make):
    def spoil(root):
        np.save(root / "val" / name / "1.npy", make())

    return spoil


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (lambda root: shutil.rmtree(root / "val" / "depth"), r"should have .*: found no val/depth in"),
        (
            lambda root: (root / "val/normal/1.npy").unlink(),
            r"every picture should have its labels: found no .*1.npy for 1.npy",
        ),
        (
            lambda root: shutil.rmtree(root / "val" / "normal"),
            r"every picture should have its labels: found no .*val/normal/0.npy for 0.npy; add the normals",
        ),
        (
            lambda root: (root / "train/label").rename(root / "train/label_7"),
            r"labels of 13 classes should be in label_13, or label: found label_7 in .*train; name the number",
        ),
        (arrays("label", lambda: np.full(SIZE, 18)), r"below the number of classes, 13, .*: found 18 in .*1.npy; name"),
        (
            arrays("depth", lambda: np.ones((8, 8, 1))),
            r"the depth of a picture should have its size, 32 x 64: found 8 x 8",
        ),
        (arrays("depth", lambda: np.ones((*SIZE, 2))), r"one number for each pixel: found \[32, 64, 2\] in .*1.npy"),
        (arrays("label", lambda: np.array([{}])), r"an array should be one of numbers .*: found .*1.npy, which it d"),
        (lambda root: (root / "val/depth/1.npy").write_bytes(b""), r"an array .*: found .*1.npy, which it does not"),
        (
            lambda root: mtan_of(root / "val", (16, 64)),
            r"pictures should have one size, 32 x 64 as the first: found 16 x 64 in .*image/1.npy; bring",
        ),
        (arrays("normal", lambda: np.ones(SIZE)), r"normals should be \[H, W, 3\]: found \[32, 64\] in"),
        (arrays("image", lambda: np.ones(SIZE)), r"an image should be \[H, W, 3\]: found \[32, 64\] in"),
        (
            lambda root: [path.unlink() for path in root.glob("train/image/*")],
            r"a split should have pictures: found no \*.npy in",
        ),
        (
            lambda root: [path.unlink() for path in root.glob("train/image/[12]*")],
            r"two pictures for training at least: found",
        ),
    ],
)
def test_what_does_not_fit_in_arrays_of_mtan_is_told(tmp_path, spoil, sentence):
    refused(mtan(tmp_path / "there"), "mtan", spoil, sentence)


@pytest.mark.parametrize(("layout", "make"), [("cityscapes", cityscapes), ("mtan", mtan)])
def test_val_is_tested_on_and_a_tenth_of_train_validated(tmp_path, layout, make):
    found = SceneData(make(tmp_path, count=21), layout, size=SIZE)
    splits = {split: found.scenes(split).raw.files for split in ("train", "val", "test")}
    assert {split: len(files) for split, files in splits.items()} == {"train": 18, "val": 3, "test": 21}
    paths = {split: {files["image"] for files in those} for split, those in splits.items()}
    assert not paths["train"] & paths["val"]
    assert all("train" in str(path.relative_to(tmp_path)) for path in paths["train"] | paths["val"])
    assert all("val" in str(path.relative_to(tmp_path)) for path in paths["test"])
    assert torch.utils.data.get_worker_info() is None
