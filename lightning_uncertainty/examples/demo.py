"""The demo: the penguins, uncertainty-weighted and with equal weights."""

from __future__ import annotations

import os
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from pytorch_lightning import Trainer, seed_everything

from lightning_uncertainty._show import render
from lightning_uncertainty.callbacks import UncertaintyMonitor
from lightning_uncertainty.examples.penguins import MEASURES, PenguinNet, load_penguins
from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting

__all__ = ["demo"]


def demo(epochs: int = 60, seed: int = 0, out: Path = Path("runs/penguins")) -> None:
    """Train four tasks on the Palmer penguins, uncertainty-weighted and with equal weights, and show σ.

    Logs to wandb (offline unless WANDB_MODE says otherwise) and TensorBoard, prints the held-out results of both runs
    beside σ, and saves the trajectories of σ and of the weights as a plot and as a page.

    Args:
        epochs: passes over the training birds.
        seed: decides the held-out birds, the first weights and the order of batches.
        out: folder for logs, plot and page.

    Raises:
        SystemExit: a package of the extra `demo` is not installed, or `epochs` is not positive.
    """
    missing = [name for name in ("matplotlib", "pandas", "plotly", "tensorboard") if find_spec(name) is None]
    if missing:
        raise SystemExit(f"the demo needs {', '.join(missing)}: pip install 'lightning-uncertainty[demo]'")
    if epochs < 1:
        raise SystemExit(f"epochs should be at least 1: found {epochs}")
    torch.set_num_threads(1)  # a net this small only waits for a second thread
    out = out.resolve()  # wandb's service may have another working directory
    data = load_penguins(seed)
    weightings = {"uncertainty": UncertaintyWeighting(), "equal": FixedWeighting()}
    held_out, wandb_runs, sigma = {}, {}, {}
    plot, page = out / "sigma.png", out / "report.html"
    for name, weighting in weightings.items():
        seed_everything(seed, verbose=False)
        net, monitor = PenguinNet(data[0], weighting), UncertaintyMonitor(table=False)
        trainer, wandb_runs[name] = _trainer(out, name, max_epochs=epochs, callbacks=[monitor])
        trainer.fit(net, data[0].loader(shuffle=True, seed=seed), data[1].loader())
        held_out[name] = trainer.test(net, data[1].loader(), verbose=False)[0]
        wandb_runs[name].finish()
        if name == "uncertainty":
            sigma = net.sigma()
            _save_plot(monitor, plot)
            monitor.report(page)
    lines = []
    for task, (measure, metric) in MEASURES.items():
        numbers = [sigma[task], *(results[f"test/{task}/{metric}"] for results in held_out.values())]
        likelihood = net.task_likelihoods()[task]
        lines.append([task, likelihood.name, likelihood.meaning, *(f"{number:.4g}" for number in numbers), measure])
    columns = ["task", "likelihood", "σ is", "σ", "uncertainty", "equal", "held-out"]
    print(render(f"Penguins after {epochs} epochs: {len(data[0])} birds, {len(data[1])} held out", columns, lines))
    wandb_folder = Path(wandb_runs["uncertainty"].dir).parent
    live = f"  wandb leet {wandb_folder}\n" if Version(version("wandb")) >= Version("0.28") else ""  # its first
    grams = held_out["uncertainty"]["test/body_mass_g/MeanSquaredError"]
    print(
        f"σ of the body mass is {sigma['body_mass_g']:.0f} g; on held-out birds the net is off by {grams:.0f} g "
        "(RMSE).\n"
        f"Trajectories of σ and of the effective weights: {plot}\n"
        f"The same and more, for a browser: {page}\n"
        f"Dashboards:\n{live}"
        f"  tensorboard --logdir {out / 'tensorboard'}\n"
        f"  wandb sync {wandb_folder}    # with an account: on the web"
    )


def _trainer(out: Path, name: str, **options: Any) -> tuple[Trainer, Any]:
    """Return a Trainer that logs to wandb and TensorBoard, and its wandb run."""
    from pytorch_lightning.loggers import TensorBoardLogger, WandbLogger

    out.mkdir(parents=True, exist_ok=True)
    offline = os.environ.get("WANDB_MODE", "offline") != "online"
    wandb_logger = WandbLogger(project="lightning-uncertainty-demo", name=name, save_dir=out, offline=offline)
    trainer = Trainer(
        accelerator="cpu",
        logger=[wandb_logger, TensorBoardLogger(out / "tensorboard", name=name)],
        log_every_n_steps=9,  # an epoch
        enable_checkpointing=False,
        enable_model_summary=False,
        **options,
    )
    return trainer, wandb_logger.experiment


def _save_plot(monitor: UncertaintyMonitor, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    monitor.plot("sigma", ax=left)
    monitor.plot("weight", ax=right)
    left.get_legend().remove()
    right.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
