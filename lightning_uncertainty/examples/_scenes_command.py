"""The command of `scenes.py`: train, compare, or look at one photograph."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from pytorch_lightning import Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor

from lightning_uncertainty._show import render
from lightning_uncertainty.callbacks import PredictionImages, UncertaintyMonitor
from lightning_uncertainty.examples._scene_cache import drawn_within
from lightning_uncertainty.examples._scene_folders import LAYOUTS
from lightning_uncertainty.examples._scene_pictures import (
    colours_of,
    draw_predictions,
    instance_panels,
    read_photograph,
)
from lightning_uncertainty.examples.scenes import SceneData, SceneModule
from lightning_uncertainty.trials import compare
from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting, Weighting

__all__ = ["command"]


def command(arguments: Sequence[str] | None = None) -> None:
    """Do what the command line asks for.

    Raises:
        SystemExit: something that was given cannot be used, or a package is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m lightning_uncertainty.examples.scenes",
        description="Classes, instances and depth from one image by one network.",
    )
    add = parser.add_argument
    add("--root", type=Path, help="folder of the scenes; where none is given, streets are drawn")
    add("--layout", choices=("streets", *LAYOUTS), help="how they lie there; where not given, what fits the folder")
    add("--classes", type=int, default=13, help="how many there are, under the layout mtan")
    add("--encoder", default="small", help="small, efficientnet-lite0 (pretrained), or a backbone of timm")
    add("--epochs", type=int, default=12)
    add("--batch-size", type=int, default=8)
    add("--workers", type=int, default=0, help="processes that read")
    add("--seed", type=int, default=0, help="of the weights and the order of the scenes")
    add("--out", type=Path, default=Path("runs/scenes"), help="folder for checkpoint, pictures and report")
    add("--compare", action="store_true", help="train under several weightings, and single tasks")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of --compare")
    add("--predict", type=Path, metavar="PICTURE", help="a photograph to look at, with --ckpt")
    add("--ckpt", type=Path, help="checkpoint that this command has written")
    given = parser.parse_args(arguments)
    missing = [name for name in ("matplotlib", "pandas", "plotly") if find_spec(name) is None]
    if missing:
        raise SystemExit(f"scenes need {', '.join(missing)}: pip install 'lightning-uncertainty[demo]'")
    if given.epochs < 1:
        raise SystemExit(f"epochs should be at least 1: found {given.epochs}")
    if (given.predict is None) != (given.ckpt is None):
        raise SystemExit("--predict PICTURE and --ckpt X should be given together: found one of them")
    if given.compare and given.predict is not None:
        raise SystemExit("--compare and --predict should be given apart: found both; run one after the other")
    if not 0 <= given.seed < 2**32:
        raise SystemExit(f"seed should be from 0 to 4294967295: found {given.seed}")
    try:
        if given.predict is not None:
            _predict(given)
        elif given.compare:
            _compare(given)
        else:
            _train(given)
    except (ModuleNotFoundError, OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


def _train(given: argparse.Namespace) -> None:
    """Train, test, and write checkpoint, pictures and report."""
    data, out = _data(given), given.out.resolve()
    data.prepare_data()
    seed_everything(given.seed, verbose=False)
    module, monitor = _module(given, data), UncertaintyMonitor(table=False)
    pictures = PredictionImages(
        images=min(4, len(data.scenes("val"))),
        every_n_epochs=max(1, given.epochs // 3),
        classes={"semantics": data.classes},
        colours={"semantics": colours_of(data.classes)},
        show={"instances": partial(instance_panels, things=data.things)} if data.things else None,
        to_image=_as_it_is,
        folder=out / "pictures",
    )
    trainer = Trainer(
        max_epochs=given.epochs,
        callbacks=[monitor, pictures],
        logger=CSVLogger(out, name="logs"),
        log_every_n_steps=10,
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    trainer.save_checkpoint(out / "scenes.ckpt")
    monitor.report(out / "report.html")
    results = trainer.test(module, data, verbose=False)[0]
    lines = []
    for task, sigma in module.sigma().items():
        likelihood = module.task_likelihoods()[task]
        own = {key.rpartition("/")[2]: value for key, value in results.items() if key.startswith(f"test/{task}/")}
        shown = ", ".join(f"{metric} {value:.4g}" for metric, value in own.items() if metric != "loss")
        lines.append([task, likelihood.name, likelihood.meaning, f"{sigma:.4g}", shown])
    columns = ["task", "likelihood", "σ is", "σ", "on test scenes"]
    print(render(f"Scenes after {given.epochs} epochs", columns, lines))
    print(
        f"Checkpoint: {out / 'scenes.ckpt'}\n"
        f"Trajectories of σ and of the weights, for a browser: {out / 'report.html'}\n"
        f"Pictures: {out / 'pictures'}\n"
        "A photograph of yours: python -m lightning_uncertainty.examples.scenes --predict PICTURE --ckpt "
        f"{out / 'scenes.ckpt'}"
    )


def _as_it_is(image: Tensor) -> Tensor:
    return image


def _compare(given: argparse.Namespace) -> None:
    """Train under several weightings, and print the table."""
    data, out = _data(given), given.out.resolve() / "compare"
    data.prepare_data()
    found = compare(
        partial(_module, given, data),
        lambda: _data(given),
        {"equal": FixedWeighting, "uncertainty": UncertaintyWeighting},
        out,
        seeds=given.seeds,
        trainer={"max_epochs": given.epochs},
        setup={"root": str(data.root), "layout": data.layout, "batch_size": given.batch_size},
    )
    print(found)
    found.to_csv(out / "comparison.csv")
    found.plot()[0].savefig(out / "comparison.png", dpi=120)
    print(f"Numbers: {out / 'comparison.csv'}\nPlot: {out / 'comparison.png'}")


def _predict(given: argparse.Namespace) -> None:
    """Write what a trained network makes of a photograph."""
    from PIL import Image

    module = _load(given.ckpt)
    classes, things = module.hparams["classes"], module.hparams["things"]
    if given.root is not None or given.layout is not None:
        data = _data(given)
        if list(data.classes) != classes:
            raise ValueError(
                f"the checkpoint should be of the classes of layout {data.layout!r}, {', '.join(data.classes)}: found "
                f"{', '.join(classes)} in {given.ckpt}; leave --root and --layout out, or give another checkpoint"
            )
    photograph = read_photograph(given.predict, module.hparams["width"])
    with torch.no_grad():
        predictions = module.predict_tasks(photograph)
    path = given.out.resolve() / f"{given.predict.stem}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_predictions(photograph, predictions, classes, things)).save(path, optimize=True)
    print(f"Classes, instances and depth: {path}")


def _data(given: argparse.Namespace) -> SceneData:
    """Return the scenes that are asked for.

    Raises:
        ValueError: no layout was named, and none fits the folder.
    """
    layout = given.layout
    if layout is None and given.root is not None:
        fitting = [name for name, parts in LAYOUTS.items() if (given.root / parts[0]).is_dir()]
        fitting += ["streets"] if drawn_within(given.root).is_dir() else []
        if not fitting:
            raise ValueError(
                f"--root should have {' or '.join(parts[0] for parts in LAYOUTS.values())}: found neither in "
                f"{given.root}; name the folder that has one of them, or --layout streets to draw streets there"
            )
        layout = fitting[0]
    options: dict[str, Any] = {"batch_size": given.batch_size, "classes": given.classes, "num_workers": given.workers}
    return SceneData(given.root, layout or "streets", **options)


def _module(given: argparse.Namespace, data: SceneData, weighting: Weighting | None = None) -> SceneModule:
    width = data.scenes("train")[0]["image"].shape[-1]
    options: dict[str, Any] = {"things": data.things, "encoder": given.encoder, "epochs": given.epochs, "width": width}
    return SceneModule(data.classes, data.scales(), weighting, **options)


def _load(path: Path) -> SceneModule:
    """Return the trained network of a checkpoint.

    Raises:
        ValueError: it is none of this command's.
        OSError: there is no such file.
    """
    try:
        kept = torch.load(path, map_location="cpu", weights_only=True).get("hyper_parameters", {})
    except (AttributeError, RuntimeError, EOFError, UnpicklingError):
        kept = {}
    if not {"classes", "scales", "things"} <= kept.keys():
        raise ValueError(f"--ckpt should be a checkpoint that this command has written: found another file in {path}")
    module = SceneModule.load_from_checkpoint(path, map_location="cpu", pretrained=False)
    return module.eval()
