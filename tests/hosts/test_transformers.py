"""transformers' DETR, whose losses stand in a dict that it returns, in a module that only returns their sum."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader
from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig
from transformers.loss.loss_for_object_detection import HungarianMatcher

from lightning_uncertainty import AdoptLosses, UncertaintyMonitor, adopt
from tests._launch import RANKS
from tests.hosts._fits import (
    QUIET,
    check_gradients,
    check_resumed,
    check_rows,
    first_gradients,
    weighted_sum,
    weighting_of,
)

PROGRAM = "tests.hosts.test_transformers"
TASKS = ("kind", "box", "overlap")


def coordinates(batch):
    """Four to a box."""
    return {"box": 4 * boxes(batch)}


def boxes(batch):
    return sum(len(labels["boxes"]) for labels in batch["labels"])


# what a user writes
GIVEN = {
    "tasks": {"kind": "categorical", "box": "laplace", "overlap": "constant"},
    "parts": {
        "kind": "call:model@['loss_dict']['loss_ce']",
        "box": "call:model@['loss_dict']['loss_bbox']",
        "overlap": "call:model@['loss_dict']['loss_giou']",
    },
    "count": coordinates,
    "divisor": boxes,
}
# where every layer of the decoder has losses, which the same weights multiply
BY_WEIGHT = {
    "tasks": {"box": "laplace", "overlap": "constant"},
    "parts": {
        "box": "weight:model.config.bbox_loss_coefficient",
        "overlap": "weight:model.config.giou_loss_coefficient",
    },
    "rest": "plain",
}


class Detector(pl.LightningModule):
    def __init__(self, **options):
        super().__init__()
        self.save_hyperparameters()
        self.model = DetrForObjectDetection(config(**options))

    def training_step(self, batch, batch_idx):
        out = self.model(**batch)
        self.log("train_loss", out.loss, batch_size=len(batch["labels"]))
        return out.loss

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 40, 0.01)]


def config(**options):
    small = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    layers = {f"{part}_layers": 1 for part in ("encoder", "decoder")}
    heads = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
    widths = {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")}
    return DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=ResNetConfig(num_channels=3, out_features=["stage2"], **small),
        **{"d_model": 16, "num_queries": 3, "num_labels": 2, "dropout": 0.0, **layers, **heads, **widths, **options},
    )


def make(**options):
    torch.manual_seed(0)
    return Detector(**options)


def image(seed):
    """One square, bright in the channel of its kind; its box is not quite where it is."""
    rng = torch.Generator().manual_seed(seed)
    center, size = torch.rand(2, generator=rng) * 0.5 + 0.25, torch.rand(2, generator=rng) * 0.2 + 0.2
    pixels, kind = torch.randn(3, 32, 32, generator=rng) * 0.1, seed % 2
    (left, top), (right, bottom) = (((center + sign * size / 2) * 32).int().tolist() for sign in (-1, 1))
    pixels[kind, top:bottom, left:right] += 1
    box = torch.cat([center, size]) + torch.randn(4, generator=rng) * 0.03
    return pixels, {"class_labels": torch.tensor([kind]), "boxes": box.clamp(0.05, 0.95)[None]}


def collate(rows):
    return {"pixel_values": torch.stack([pixels for pixels, _ in rows]), "labels": [labels for _, labels in rows]}


def loader(images=48, batch_size=16, rank=None):
    rows = [image(seed) for seed in range(images)]
    return DataLoader(rows if rank is None else rows[rank::RANKS], batch_size=batch_size, collate_fn=collate)


def residual(net, batches):
    """The mean absolute error of a coordinate, of the boxes that the host's matcher matches."""
    matcher = HungarianMatcher(net.model.config.class_cost, net.model.config.bbox_cost, net.model.config.giou_cost)
    errors = []
    with torch.no_grad():
        for batch in batches:
            out = net.model(**batch)
            pairs = matcher({"logits": out.logits, "pred_boxes": out.pred_boxes}, batch["labels"])
            for made, labels, (rows, columns) in zip(out.pred_boxes, batch["labels"], pairs, strict=True):
                errors.append(made[rows] - labels["boxes"][columns])
    return torch.cat(errors).abs().mean().item()


def test_sigma_is_the_residual_in_label_units():
    net, monitor = adopt(make(), **GIVEN), UncertaintyMonitor(table=False)
    pl.Trainer(**QUIET, max_epochs=100, callbacks=[monitor]).fit(net, loader())
    last = check_rows(monitor, set(TASKS), {"kind", "box"})
    found = residual(net.train(), loader())
    print({"box": (last["sigma/box"] / math.sqrt(2), found), "kind": (last["sigma/kind"], last["loss/kind"])})
    assert last["sigma/box"] / math.sqrt(2) == pytest.approx(found, rel=0.02)


def alone(**options):
    """The gradient of each of the host's losses, by the host's own coefficients."""
    of = {}
    for task, own in (("kind", (0, 0)), ("box", (1, 0)), ("overlap", (0, 1))):
        coefficients = dict(zip(("bbox_loss_coefficient", "giou_loss_coefficient"), own, strict=True))
        of[task] = first_gradients(pl, make(**coefficients, **options), loader())
    for task in ("box", "overlap"):
        of[task] = {name: value - of["kind"][name] for name, value in of[task].items()}
    return of


def test_gradients_are_those_of_a_weighting_by_hand():
    monitor = UncertaintyMonitor(table=False)
    found = first_gradients(pl, adopt(make(), **GIVEN), loader(), monitor)
    batch = next(iter(loader()))
    losses = make().train().model(**batch).loss_dict
    row = monitor.history.rows[0]
    assert row["weight/box"] == pytest.approx(4 / losses["loss_bbox"].item(), rel=1e-4)
    kept = make().model.config.giou_loss_coefficient  # a constant term keeps its weight
    by_hand = {"kind": row["weight/kind"], "box": 1 / losses["loss_bbox"].item(), "overlap": kept}
    check_gradients(found, weighted_sum(alone(), by_hand), tolerance=1e-3)


def test_losses_of_every_layer_by_their_common_weight():
    deep = {"auxiliary_loss": True, "decoder_layers": 2}
    monitor = UncertaintyMonitor(table=False)
    found = first_gradients(pl, adopt(make(**deep), **BY_WEIGHT), loader(), monitor)
    row = monitor.history.rows[0]
    kept = make().model.config.giou_loss_coefficient
    by_hand = {"kind": 1.0, "box": row["weight/box"], "overlap": kept}
    check_gradients(found, weighted_sum(alone(**deep), by_hand), tolerance=1e-3)


@pytest.mark.parametrize("learnt", [False, True])
def test_a_resumed_fit_equals_one_that_never_stopped_and_its_checkpoint_is_the_hosts(learnt, tmp_path):
    path = check_resumed(pl, lambda: adopt(make(), **GIVEN, weighting=weighting_of(learnt)), loader(), tmp_path)
    net = Detector.load_from_checkpoint(path, weights_only=False)
    assert type(net) is Detector
    net.model.save_pretrained(tmp_path / "hub")
    again = DetrForObjectDetection.from_pretrained(tmp_path / "hub").eval()
    batch = next(iter(loader()))
    made = net.eval().model(batch["pixel_values"]).pred_boxes
    assert torch.allclose(again(batch["pixel_values"]).pred_boxes, made, atol=1e-6)


def test_the_callback_adopts_as_the_function_does():
    nets = [make(), adopt(make(), **GIVEN)]
    strings = {"count": f"{PROGRAM}.coordinates", "divisor": f"{PROGRAM}.boxes"}
    adoption = AdoptLosses(GIVEN["tasks"], GIVEN["parts"], **strings)
    for net, callbacks in zip(nets, ([UncertaintyMonitor(table=False), adoption], []), strict=True):
        pl.Trainer(**QUIET, max_epochs=1, callbacks=callbacks).fit(net, loader())
    assert nets[0].sigma() == nets[1].sigma()
    assert type(nets[0]).__name__ == "Detector"


# -- two processes -----------------------------------------------------------------------------------------------------


def run(cells):
    """The backbone's norms are frozen, so that halves of a batch are as good as the whole."""
    net = adopt(make(), **GIVEN)
    options = {"strategy": "ddp", "devices": RANKS, "use_distributed_sampler": False}
    rank = torch.distributed.get_rank()
    pl.Trainer(**QUIET, max_epochs=2, precision="64-true", **options).fit(net, loader(batch_size=8, rank=rank))
    return {"state": {"state": net.state_dict(), "sigma": net.sigma()}}


@pytest.mark.cells(PROGRAM, "state")
def test_two_processes_train_as_one(found):
    net = adopt(make(), **GIVEN)
    pl.Trainer(**QUIET, max_epochs=2, precision="64-true").fit(net, loader())
    for rank in range(RANKS):
        other = found("state", rank=rank)
        assert other["sigma"] == pytest.approx(net.sigma(), rel=1e-9)
        for name, value in net.state_dict().items():
            assert torch.allclose(other["state"][name], value, rtol=1e-6, atol=1e-9), name
