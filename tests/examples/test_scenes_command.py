"""The command: a run over tiny scenes, a comparison, a photograph, and what cannot be meant."""

import argparse
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_uncertainty.examples import _scenes_command
from lightning_uncertainty.examples._scene_pictures import draw_predictions, read_photograph
from lightning_uncertainty.examples.scenes import SceneData, main
from lightning_uncertainty.examples.streets import CLASSES
from lightning_uncertainty.predictions import Prediction
from tests.examples._folders import SIZE, cityscapes, mtan

pytestmark = pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with a checkpoint, pictures and a report of an epoch over tiny streets, and what was printed."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        main(["--root", str(folder / "cache"), "--layout", "streets", "--epochs", "1", "--out", str(folder)])
    return folder


def small(patch):
    options = {"size": SIZE, "streets": (4, 2, 2)}
    patch.setattr(_scenes_command, "SceneData", lambda *given, **more: SceneData(*given, **(more | options)))


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "photograph.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)).save(path)
    return path


def test_it_trains_and_writes_checkpoint_pictures_and_report(run):
    assert (run / "scenes.ckpt").is_file()
    assert "<html" in (run / "report.html").read_text(encoding="utf-8")
    assert {path.parent.name for path in (run / "pictures").rglob("*.png")} == {"semantics", "instances", "disparity"}
    assert (run / "logs" / "version_0" / "metrics.csv").is_file()


def test_streets_that_were_drawn_are_known_again(run):
    given = argparse.Namespace(root=run / "cache", layout=None, batch_size=2, classes=13, workers=0)
    assert _scenes_command._data(given).layout == "streets"


def test_it_prints_sigma_and_metrics(tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    root = mtan(tmp_path / "there", count=3)
    main(["--root", str(root), "--epochs", "1", "--batch-size", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    rows = [
        line.split() for line in printed.splitlines() if line.split()[:1] in (["semantics"], ["depth"], ["normals"])
    ]
    assert [row[:2] for row in rows] == [["semantics", "categorical"], ["depth", "laplace"], ["normals", "laplace"]]
    assert "mIoU" in printed
    assert all("MAE" in row for row in rows[1:])
    assert str(tmp_path / "scenes.ckpt") in printed


def test_a_photograph_becomes_one_picture(run, photograph, tmp_path, capsys):
    main(["--predict", str(photograph), "--ckpt", str(run / "scenes.ckpt"), "--out", str(tmp_path / "out")])
    path = tmp_path / "out" / "photograph.png"
    assert str(path) in capsys.readouterr().out
    with Image.open(path) as drawn:
        assert drawn.mode == "RGB"
        assert drawn.width > 4 * 2 * SIZE[1]  # photograph, classes, instances, disparity, in twice the size
        pixels = np.asarray(drawn)
    height = 4 * round(90 * SIZE[1] / 120 / 4)
    small = np.asarray(Image.open(photograph).resize((SIZE[1], height), reducing_gap=2.0))
    corner = np.argwhere((pixels == small[0, 0]).all(-1))
    assert any((pixels[i : i + 2 * height : 2, j : j + 2 * SIZE[1] : 2] == small).all() for i, j in corner[:20])


def test_a_photograph_stands_upright(photograph, tmp_path):
    held = Image.Exif()
    held[0x0112] = 6  # the camera was turned
    Image.open(photograph).save(tmp_path / "turned.png", exif=held)
    upright = Image.open(photograph).transpose(Image.Transpose.ROTATE_270)
    upright.save(tmp_path / "upright.png")
    turned = read_photograph(tmp_path / "turned.png", 64)
    assert turned.shape[-2] > turned.shape[-1]
    torch.testing.assert_close(turned, read_photograph(tmp_path / "upright.png", 64))


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_the_sky_has_no_depth_in_a_picture(share):
    sky, grey = list(CLASSES).index("sky"), (128, 128, 128)
    logits = torch.zeros(1, len(CLASSES), 32, 64)
    logits[:, sky, :, : int(64 * share)] = 9.0
    disparity = torch.linspace(1, 9, 64).expand(1, 1, 32, 64)
    found = {
        name: Prediction(mean, mean, mean, mean) for name, mean in {"semantics": logits, "disparity": disparity}.items()
    }
    drawn = draw_predictions(torch.rand(1, 3, 32, 64), found, CLASSES, ())
    assert (drawn == grey).all(-1).sum() >= 4 * 32 * 64 * share
    without = draw_predictions(torch.rand(1, 3, 32, 64), found, [f"class {n}" for n in range(len(CLASSES))], ())
    assert (without == grey).all(-1).sum() < 100  # of letters


def test_a_comparison_is_printed_and_kept(tmp_path, monkeypatch, capsys):
    small(monkeypatch)
    asked = ["--root", str(tmp_path / "cache"), "--layout", "streets", "--compare", "--seeds", "0", "--epochs", "1"]
    main([*asked, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("single task", "equal", "uncertainty", "semantics mIoU", "disparity MAE"))
    assert (tmp_path / "compare" / "comparison.csv").is_file()
    assert (tmp_path / "compare" / "comparison.png").is_file()


@pytest.mark.parametrize(
    ("save", "sentence"),
    [
        (lambda path: Image.new("L", (32, 32)).save(path), r"an RGB image: found mode 'L' in .*other.png; convert it"),
        (lambda path: Image.new("RGBA", (32, 32)).save(path), r"an RGB image: found mode 'RGBA' in .*other.png"),
        (lambda path: path.write_text("no picture"), r"one that Pillow reads: found .*other.png, which it does not"),
        (
            lambda path: Image.new("RGB", (4, 33)).save(path),
            r"at most 8 times as .*: found 4 x 33 pixels in .*other.png",
        ),
        (lambda path: None, r"No such file or directory: .*other.png"),
    ],
)
def test_a_photograph_that_is_none_is_told(run, tmp_path, save, sentence):
    save(tmp_path / "other.png")
    with pytest.raises(SystemExit, match=sentence):
        main(["--predict", str(tmp_path / "other.png"), "--ckpt", str(run / "scenes.ckpt")])


def test_a_checkpoint_of_other_classes_is_told(run, photograph, tmp_path):
    root = str(cityscapes(tmp_path / "there"))
    with pytest.raises(SystemExit, match=r"classes of layout 'cityscapes', road, .*: found road, sidewalk, .*truck in"):
        main(["--predict", str(photograph), "--ckpt", str(run / "scenes.ckpt"), "--root", root])


@pytest.mark.parametrize("kind", ["text", "weights", "other", "missing"])
def test_a_checkpoint_that_is_none_is_told(kind, photograph, tmp_path):
    path = tmp_path / "other.ckpt"
    if kind == "text":
        path.write_text("no checkpoint")
    elif kind != "missing":
        torch.save({"weights": torch.ones(2)} if kind == "weights" else torch.ones(2), path)
    sentence = "No such file" if kind == "missing" else "--ckpt should be a checkpoint that this command has written"
    with pytest.raises(SystemExit, match=sentence):
        main(["--predict", str(photograph), "--ckpt", str(path)])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--epochs", "0"], "epochs should be at least 1: found 0"),
        (["--predict", "x.png"], "--predict PICTURE and --ckpt X should be given together: found one of them"),
        (["--ckpt", "x.ckpt"], "--predict PICTURE and --ckpt X should be given together: found one of them"),
        (
            ["--compare", "--predict", "x.png", "--ckpt", "x"],
            "--compare and --predict should be given apart",
        ),
        (["--seed", "-1"], "seed should be from 0 to 4294967295: found -1"),
        (["--batch-size", "0"], "batch_size should be at least 1: found 0"),
        (["--workers", "-1"], "num_workers should be at least 0: found -1"),
        (["--root", "."], "--root should have leftImg8bit/train or train/image: found neither in"),
        (["--layout", "mtan"], "root should be the folder of the scenes under layout 'mtan'"),
        (["--encoder", "no-such"], "the encoder 'no-such' is one of timm's: pip install timm"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, sentence, tmp_path, monkeypatch):
    small(monkeypatch)
    monkeypatch.setenv("LIGHTNING_UNCERTAINTY_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(SystemExit, match=sentence):
        main(arguments)


def test_what_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(_scenes_command, "find_spec", lambda name: None if name == "plotly" else name)
    with pytest.raises(SystemExit, match=r"scenes need plotly: pip install 'lightning-uncertainty\[demo\]'"):
        main([])
