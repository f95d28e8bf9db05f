"""Scenes as data and as a module: a fit over each layout, checkpoints, and the YAML file beside them."""

import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.cli import main
from lightning_uncertainty.examples.scenes import SceneData, SceneModule
from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting
from tests._nets import trainer
from tests.examples._folders import SIZE, cityscapes, mtan

TASKS = {
    "streets": ["semantics", "instances", "disparity"],
    "cityscapes": ["semantics", "instances", "disparity"],
    "mtan": ["semantics", "depth", "normals"],
}


def scenes(layout, folder):
    options = {"size": SIZE, "batch_size": 2, "streets": (4, 2, 2)}
    if layout == "streets":
        return SceneData(folder, **options)
    return SceneData({"cityscapes": cityscapes, "mtan": mtan}[layout](folder), layout, **options)


@pytest.mark.parametrize("layout", TASKS)
def test_every_layout_is_fitted_and_tested(layout, tmp_path):
    data = scenes(layout, tmp_path)
    module = SceneModule(data.classes, data.scales(), things=data.things)
    assert list(module.task_likelihoods()) == TASKS[layout]
    fitted = trainer(max_epochs=1)
    fitted.fit(module, data)
    assert ("val/instances/AP50" in fitted.callback_metrics) == bool(data.things)
    logged = fitted.test(module, data, verbose=False)[0]
    expected = {f"test/{task}/{key}" for task in TASKS[layout] for key in ("loss", "MAE")}
    expected |= {"test/semantics/mIoU", "test/balanced_loss"} | ({"test/instances/AP50"} if data.things else set())
    assert expected - {"test/semantics/MAE"} == set(logged)
    assert all(torch.tensor(value).isfinite() for value in logged.values())
    batches = fitted.predict(module, data)
    assert list(batches[0]) == TASKS[layout]
    assert {part.mean.shape[-2:] for part in batches[0].values()} == {SIZE}


@pytest.mark.parametrize("make", [FixedWeighting, lambda: GradientBalancing("mgda", UncertaintyWeighting())])
def test_it_is_fitted_under_other_weightings(make, tmp_path):
    data = scenes("streets", tmp_path)
    trainer(max_epochs=1).fit(SceneModule(data.classes, data.scales(), make()), data)


def test_a_checkpoint_is_read_without_arguments(tmp_path):
    data = scenes("streets", tmp_path)
    module = SceneModule(data.classes, data.scales(), things=data.things, width=SIZE[1])
    fitted = trainer(max_epochs=1)
    fitted.fit(module, data)
    fitted.save_checkpoint(tmp_path / "scenes.ckpt")
    read = SceneModule.load_from_checkpoint(tmp_path / "scenes.ckpt", map_location="cpu")
    assert dict(read.hparams)["classes"] == list(data.classes)
    images = next(iter(data.test_dataloader()))["image"]
    for one, other in zip(module.eval()(images).values(), read.eval()(images).values(), strict=True):
        assert one.equal(other)
    assert read.sigma() == module.sigma()


def test_scales_are_those_of_the_labels(tmp_path):
    data = scenes("mtan", tmp_path)
    samples = [data.scenes("train").raw[index] for index in range(2)]
    depth = torch.cat([torch.tensor(sample["depth"]).flatten() for sample in samples])
    depth = depth[~depth.isnan()]
    mean, std = data.scales()["depth"]
    assert mean == pytest.approx(depth.mean().item(), rel=6e-3)
    assert std == pytest.approx(depth.std().item(), rel=6e-3)
    assert scenes("streets", tmp_path / "streets").scales()["instances"][0] == 0


def test_scales_without_labels_are_told(tmp_path):
    root = mtan(tmp_path, normals=False)
    for path in root.glob("train/depth/*.npy"):
        np.save(path, np.zeros((*SIZE, 1)))
    with pytest.raises(ValueError, match="labels of 'depth' should be known somewhere in the first 2 scenes of"):
        SceneData(root, "mtan", size=SIZE).scales()


def test_scenes_without_classes_are_told(tmp_path):
    root = mtan(tmp_path, normals=False)
    for path in root.glob("train/label/*.npy"):
        np.save(path, np.full(SIZE, -1.0))
    with pytest.raises(ValueError, match="labels of 'semantics' should be known somewhere in the first 2 scenes of"):
        SceneData(root, "mtan", size=SIZE).scales()


def test_streets_of_the_splits_differ_and_training_is_shuffled(tmp_path):
    data = scenes("streets", tmp_path)
    images = {split: torch.stack([sample["image"] for sample in data.scenes(split)]) for split in ("val", "test")}
    assert not any(one.equal(other) for one in images["val"] for other in images["test"])
    for loader, split in ((data.val_dataloader(), "val"), (data.test_dataloader(), "test")):
        assert torch.cat([batch["image"] for batch in loader]).equal(images[split])
    orders = set()
    for seed in range(6):
        torch.manual_seed(seed)
        orders.add(tuple(int(batch["semantics"].sum()) for batch in data.train_dataloader()))
    assert len(orders) > 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"layout": "kitti"}, "layout should be streets, cityscapes or mtan: found 'kitti'"),
        ({"layout": "mtan"}, "root should be the folder of the scenes under layout 'mtan': found none; name it"),
        ({"size": 128}, "size should be 2 whole numbers: found 128; give as many"),
        ({"streets": (80, 10)}, r"streets should be 3 whole numbers: found \(80, 10\); give as many"),
        ({"batch_size": 0}, "batch_size should be at least 1: found 0"),
        ({"classes": 1}, "classes should be at least 2: found 1"),
        ({"num_workers": -1}, "num_workers should be at least 0: found -1"),
    ],
)
def test_what_cannot_be_meant_is_told(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        SceneData(**arguments)


def test_the_yaml_file_describes_the_module_of_the_command(tmp_path):
    text = files("lightning_uncertainty.examples").joinpath("scenes.yaml").read_text(encoding="ascii")
    config = yaml.safe_load(text)
    model = config["model"]
    assert model["backbone"]["class_path"] == "lightning_uncertainty.examples.scenes.SceneNet"
    data = scenes("streets", tmp_path)
    module = SceneModule(data.classes, model["backbone"]["init_args"]["scales"])
    assert model["backbone"]["init_args"]["classes"] == len(data.classes)
    assert list(model["tasks"]) == list(module.task_likelihoods())
    for name, task in model["tasks"].items():
        likelihood = task["likelihood"]
        found = likelihood if isinstance(likelihood, str) else likelihood["class_path"].rpartition(".")[2].lower()
        assert found == module.task_likelihoods()[name].name
        assert list(task["metrics"]) == [key.rpartition("/")[2] for key in module.task_metrics.keys_of("val", name)]
    optimizer = module.configure_optimizers()
    given = model["optimizer"]["init_args"]
    assert optimizer["optimizer"].param_groups[0]["lr"] == given["lr"]
    assert optimizer["optimizer"].param_groups[0]["weight_decay"] == given["weight_decay"]
    assert config["trainer"]["max_epochs"] == model["lr_scheduler"]["init_args"]["T_max"] == module.hparams["epochs"]


def run(*arguments):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lightning-uncertainty", *map(str, arguments)])
        main()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # as the checkpoint is of another run
def test_the_yaml_file_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # of how Lightning calls it
    run("example", "--of", "scenes")
    Path("scenes.yaml").write_text(capsys.readouterr().out, encoding="ascii")
    of_data = {"root": tmp_path / "cache", "size": "[32, 64]", "streets": "[4, 2, 2]", "batch_size": 2}
    options = [text for name, value in of_data.items() for text in (f"--data.init_args.{name}", str(value))]
    run("fit", "--config", "scenes.yaml", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", *options)
    assert "instances" in capsys.readouterr().out
    best = Path("runs/scenes/version_0/checkpoints/best.ckpt")
    run("test", "--config", "scenes.yaml", "--ckpt_path", str(best), "--trainer.accelerator", "cpu", *options)
    assert "test/semantics/mIoU" in capsys.readouterr().out


def test_a_pixel_may_have_a_sigma_of_its_own_and_samples(tmp_path):
    data = scenes("streets", tmp_path)
    options = {"heteroscedastic": ["disparity"], "dropout": 0.5, "samples": 3, "things": data.things}
    module = SceneModule(data.classes, data.scales(), **options)
    fitted = trainer(max_epochs=1)
    fitted.fit(module, data)
    assert set(module.sigma()) == {"semantics", "instances"}
    fitted.save_checkpoint(tmp_path / "a.ckpt")
    found = SceneModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True).eval()
    made = fitted.predict(found, data)[0]
    assert made["disparity"].aleatoric.std() > 0
    assert made["semantics"].epistemic.max() > 0
    assert made["disparity"].epistemic.max() > 0


@pytest.mark.parametrize("options", [{"likelihood": "l1_kendall"}, {}])
def test_the_likelihood_of_numbers_is_the_users(options):
    module = SceneModule(["a", "b"], {"depth": (1.0, 2.0)}, **options)
    assert module.task_likelihoods()["depth"].name == options.get("likelihood", "laplace")
    assert module.hparams["likelihood"] == module.task_likelihoods()["depth"].name
