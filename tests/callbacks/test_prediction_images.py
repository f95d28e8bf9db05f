"""Pictures of predictions show what was predicted, and training does not know of them."""

import json
import pickle
import random
import sys
import warnings
from pathlib import Path

import lightning.pytorch
import numpy as np
import pytest
import torch
from matplotlib import colormaps
from PIL import Image
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningCLI
from pytorch_lightning.demos.boring_classes import BoringDataModule, BoringModel
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics import MeanAbsoluteError

from lightning_uncertainty import (
    FixedWeighting,
    MultiTaskMixin,
    MultiTaskModule,
    PredictionImages,
    Task,
    UncertaintyMonitor,
    adopt,
)
from lightning_uncertainty._show import class_colours
from lightning_uncertainty.likelihoods import (
    LIKELIHOODS,
    AsGeneric,
    Generic,
    HeteroscedasticCategorical,
    HeteroscedasticGaussian,
)
from tests import _wandb_reader
from tests._launch import RANKS
from tests._nets import Owning, Plain, dicts, tensors, trainer, tuples
from tests._versions import exact_resume
from tests.callbacks._shapes import CLASSES, HEIGHT, WIDTH, Scenes, Shapes, scene, scenes, tasks

GREY, RIGHT, WRONG = (128, 128, 128), (24, 24, 24), (230, 60, 50)
NAMES = {"semantics": CLASSES}


def fit(net, *loaders, **options):
    """Fit two epochs of two steps, with warnings that are heard."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted = trainer(**{"num_sanity_val_steps": 2, **options})
        fitted.fit(net, *(loaders or (scenes(4), scenes(4, first=100))))
    return fitted, [str(one.message) for one in caught if str(one.message).startswith("PredictionImages")]


def draw(net=None, *loaders, max_epochs=1, trainer_options=(), **options):
    """Fit with pictures in a folder; return those of the end by name, and what was warned of."""
    options = {"images": 2, "folder": "pictures", **options}
    callback = PredictionImages(**options)
    _, told = fit(net or Shapes(), *loaders, max_epochs=max_epochs, callbacks=[callback], **dict(trainer_options))
    return pictures(Path(options["folder"])), told


def pictures(folder):
    """The latest picture of each name."""
    found = {}
    for path in sorted(Path(folder).rglob("*.png")):
        found[path.parent.relative_to(folder).as_posix()] = np.asarray(Image.open(path))
    return found


def panel(sheet, row, column):
    """The pixels of a panel, as many as the image has: of 32 x 48 a cell shows each three times."""
    top, left = 52 + row * (3 * HEIGHT + 8), 8 + column * (3 * WIDTH + 8)
    return sheet[top : top + 3 * HEIGHT : 3, left : left + 3 * WIDTH : 3]


def fixed(outputs):
    """A forward that returns outputs `[N, ...]` for scenes, whichever are asked for."""
    return lambda module, batch: {
        name: output[:1].expand(len(batch["image"]), *output.shape[1:]) for name, output in outputs.items()
    }


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_classes_are_in_their_colours_and_what_is_wrong_is_red():
    logits = torch.zeros(1, 3, HEIGHT, WIDTH)
    logits[:, 1] = 3.0  # all is box
    found, told = draw(forward=fixed({"semantics": logits}), tasks=["semantics"], classes=NAMES)
    sheet, kind = found["semantics"], scene(100)["semantics"].numpy()
    colours = class_colours(3)
    known = kind != 255
    truth, prediction, error, entropy = (panel(sheet, 0, column) for column in (1, 2, 3, 4))
    assert (truth[known] == colours[kind[known]]).all()
    assert (prediction == colours[1]).all()
    assert (error[known & (kind == 1)] == RIGHT).all()
    assert (error[known & (kind != 1)] == WRONG).all()
    for part in (truth, error):
        assert (part[~known] == GREY).all()
    probabilities = logits[0, :, 0, 0].softmax(0)
    share = -(probabilities * probabilities.log()).sum() / np.log(3)
    assert (entropy == np.array(colormaps["magma"](share.item(), bytes=True)[:3])).all()
    assert told == []


def test_colours_may_be_given():
    colours = {"semantics": ["#804080", (70, 130, 180), "red"]}
    found, _ = draw(tasks=["semantics"], colours=colours)
    kind = scene(101)["semantics"].numpy()
    truth = panel(found["semantics"], 1, 1)
    assert {tuple(colour) for colour in truth[kind == 1].tolist()} == {(70, 130, 180)}
    assert {tuple(colour) for colour in truth[kind == 0].tolist()} == {(128, 64, 128)}


def test_numbers_their_errors_and_sigma_are_on_scales_that_can_be_compared():
    """σ that is the error itself has its picture."""
    batch = [scene(100), scene(101)]
    depth = torch.stack([one["depth"] for one in batch])
    error = torch.linspace(0.1, 2.0, WIDTH).expand(2, 1, HEIGHT, WIDTH)
    filled = depth.nan_to_num(1.0)
    output = torch.cat([filled + error, 2 * error.log()], 1)

    def forward(module, batch):
        return {"depth": output[: len(batch["image"])]}

    found, _ = draw(None, scenes(4), scenes(2, first=100), forward=forward, tasks=["depth"])
    for row in range(2):
        truth, prediction, wrong, sigma = (panel(found["depth"], row, column) for column in (1, 2, 3, 4))
        known = ~depth[row, 0].isnan().numpy()
        assert (truth[~known] == GREY).all()
        assert (wrong[~known] == GREY).all()
        low, high = np.quantile(depth[~depth.isnan()].numpy(), [0.01, 0.99])
        shares = (depth[row, 0].numpy()[known] - low) / (high - low)
        expected = colormaps["viridis"](shares.clip(0, 1), bytes=True)[:, :3]
        assert np.abs(truth[known].astype(int) - expected).max() <= 4
        assert np.abs(wrong[known].astype(int) - sigma[known]).max() <= 8
        assert prediction.std() > 0


def test_sigma_where_nothing_is_observed_does_not_darken_the_errors():
    output = torch.zeros(1, 2, HEIGHT, WIDTH)
    output[:, 1, :, :4] = 20.0  # σ of e^10 where depth has no label
    found, _ = draw(forward=fixed({"depth": output}), tasks=["depth"])
    assert panel(found["depth"], 0, 3)[:, 4:].max() > 200


def test_vectors_have_a_hue_for_their_direction():
    offsets = torch.zeros(1, 2, HEIGHT, WIDTH)
    offsets[:, 0, :, : WIDTH // 2], offsets[:, 0, :, WIDTH // 2 :] = 50.0, -50.0
    found, _ = draw(forward=fixed({"offsets": offsets}), tasks=["offsets"])
    prediction, error = panel(found["offsets"], 0, 2), panel(found["offsets"], 0, 3)
    assert (prediction[:, : WIDTH // 2] == (255, 0, 0)).all()
    assert (prediction[:, WIDTH // 2 :] == (0, 255, 255)).all()
    unknown = scene(100)["offsets"][0].isnan().numpy()
    assert (error[unknown] == GREY).all()
    assert not (error[~unknown] == GREY).all(-1).any()


def test_normals_are_shown_as_such_whatever_their_length():
    class Normals(MultiTaskMixin, LightningModule):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 3, 1)
            self.register_tasks({"normals": "laplace"})

        def training_step(self, batch, batch_idx):
            return self.weigh({"normals": (self.head(batch["image"]) - batch["normals"]).abs().mean()})

        def validation_step(self, batch, batch_idx):
            self.weigh({"normals": (self.head(batch["image"]) - batch["normals"]).abs().mean()}, stage="val")

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameter_groups(lr=1e-3))

    up = F.normalize(torch.tensor([0.0, 0.6, 0.8])[:, None, None].expand(3, HEIGHT, WIDTH), dim=0)
    rows = DataLoader([{"image": scene(one)["image"], "normals": up} for one in range(2)], batch_size=2)

    def forward(module, batch):
        return {"normals": 7 * batch["normals"]}

    found, told = draw(Normals(), rows, rows, forward=forward)
    assert told == []
    assert np.abs(panel(found["normals"], 0, 1) - 255 * (np.array([0, 0.6, 0.8]) + 1) / 2).max() < 0.6
    assert (panel(found["normals"], 0, 2) == panel(found["normals"], 0, 1)).all()
    assert (panel(found["normals"], 0, 3) == np.array(colormaps["magma"](0, bytes=True)[:3])).all()


def test_epistemic_uncertainty_is_shown_where_there_are_samples():
    one, _ = draw()
    many, _ = draw(samples=3, folder="samples")
    for name in ("depth", "semantics", "offsets"):
        assert many[name].shape[1] == one[name].shape[1] + 3 * WIDTH + 8
    assert panel(many["depth"], 0, 5).max() > 100


def test_a_constant_sigma_is_told_and_no_column():
    found, _ = draw()
    assert found["offsets"].shape[1] == 4 * (3 * WIDTH + 8) + 8


def test_users_show_ids_numbers_vectors_and_pixels():
    def more(predictions, batch):
        return {
            "ids": batch["ids"],
            "numbers": predictions["depth"].mean,
            "vectors": batch["offsets"],
            "pixels": batch["image"],
        }

    found, told = draw(show={"instances": more, "offsets": lambda predictions, batch: batch["ids"] > 0})
    assert told == []
    ids = scene(100)["ids"].numpy()
    shown = panel(found["instances"], 0, 1)
    assert len({tuple(shown[ids == one][0]) for one in (0, 1, 2)}) == 3
    assert all((shown[ids == one] == shown[ids == one][0]).all() for one in (0, 1, 2))
    pixels = np.round(255 * scene(100)["image"].clamp(0, 1).numpy()).transpose(1, 2, 0)
    assert np.abs(panel(found["instances"], 0, 4) - pixels).max() <= 1
    assert found["offsets"].shape[1] == 5 * (3 * WIDTH + 8) + 8  # beside those of the task


def test_what_a_function_of_the_users_raises_is_told_once_and_the_rest_is_drawn():
    found, told = draw(show={"instances": lambda predictions, batch: batch["nothing"]}, max_epochs=3)
    (message,) = told
    assert message == (
        "PredictionImages should show 'instances' in a picture: found an error (KeyError: 'nothing'); it goes on "
        "without"
    )
    assert found.keys() == {"depth", "offsets", "semantics"}


LIKELIHOODS_OF = {
    **{name: (kind(), 3 if "categorical" in name else 1) for name, kind in LIKELIHOODS.items() if name != "generic"},
    "generic": (Generic(nn.MSELoss(reduction="none")), 1),
    "as_generic": (AsGeneric(HeteroscedasticGaussian()), 2),
    "heteroscedastic_gaussian": (HeteroscedasticGaussian(), 2),
    "heteroscedastic_categorical": (HeteroscedasticCategorical(), 6),
    "vectors": (HeteroscedasticGaussian(), 4),
    "many": (LIKELIHOODS["bernoulli"](), 5),
}


@pytest.mark.parametrize("space", [(), (5,), (8, 8), (3, 8, 8)], ids=["table", "series", "map", "volume"])
@pytest.mark.parametrize("name", LIKELIHOODS_OF)
def test_every_likelihood_is_shown(name, space):
    likelihood, channels = LIKELIHOODS_OF[name]
    kinds = {0: lambda c: nn.Linear(2, c), 1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    head = kinds[len(space)](channels) if not space else kinds[len(space)](2, channels, 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)  # a loss that must not be negative is none
    net = MultiTaskModule(nn.Identity(), {"one": Task(likelihood, head=head)}, FixedWeighting(), inputs="x")
    x = torch.rand(6, 2, *space)
    labels = {"classes": torch.randint(0, 3, (6, *space)), "event": torch.randint(0, 2, (6, 1, *space)).float()}
    label = labels.get(likelihood.predictive, torch.rand(6, 1, *space))
    if name in ("vectors", "many"):
        label = label[:, :1].expand(6, 2 if name == "vectors" else 5, *space).clone()
    rows = DataLoader([{"x": x[row], "one": label[row]} for row in range(6)], batch_size=3)
    found, told = draw(net, rows, rows, trainer_options={"limit_train_batches": 0} if name == "constant" else {})
    if name == "constant":
        assert found == {}
    elif len(space) < 2:
        assert found.keys() == {"parity_plot"}
        assert told == []
    elif name == "many":
        assert found.keys() == {"one/0", "one/1", "one/2"}
        assert [message.partition(": found")[0] for message in told] == [
            "PredictionImages should show the 5 channels of task 'one' in a picture"
        ]
    else:
        assert found.keys() == {"one"}
        assert told == []


def test_a_table_is_a_parity_plot_of_as_many_rows_as_are_wanted(monkeypatch):
    from lightning_uncertainty.callbacks import _drawing

    seen = []
    monkeypatch.setattr(_drawing, "draw_parity", lambda title, tasks: seen.append(tasks) or np.zeros((2, 2, 3), "u1"))
    net, data = Owning(), dicts(64, missing=True)
    draw(net, data, data, points=20)
    depth, kind = seen[-1]
    table = data.dataset.table
    truth = table["depth"][:20]
    known = ~truth.isnan()
    assert depth.name == "depth"
    assert depth.truth.tolist() == truth[known].tolist()
    net.eval()
    with torch.no_grad():
        features = net.trunk(table["x"][:20]).tanh()
        mean = net.task_heads["depth"](features)[known, 0]
        taken = net.task_heads["kind"](features).argmax(1)
    torch.testing.assert_close(torch.tensor(depth.mean), mean.double())
    assert depth.sigma == pytest.approx([net.sigma()["depth"]] * int(known.sum()))
    there = table["kind"][:20] != -100
    for truth_class in range(3):
        for taken_class in range(3):
            wanted = ((table["kind"][:20] == truth_class) & (taken == taken_class) & there).sum()
            assert kind.counts[truth_class, taken_class] == wanted


# -- when, and of which ------------------------------------------------------------------------------------------------


def steps_of(folder, name="depth"):
    return sorted(int(path.stem.partition("=")[2]) for path in Path(folder, name).glob("*.png"))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, [1, 3, 5, 7, 9]),
        ({"every_n_epochs": 2}, [1, 5, 9]),
        ({"every_n_epochs": 3}, [1, 7, 9]),  # the last are those of the fit's end
        ({"every_n_epochs": 10}, [1, 9]),
    ],
)
def test_pictures_are_drawn_at_first_every_n_epochs_and_at_the_end(options, steps):
    draw(max_epochs=5, tasks=["depth"], **options)
    assert steps_of("pictures") == steps


def test_several_validations_in_an_epoch_are_drawn_once():
    draw(max_epochs=2, trainer_options={"val_check_interval": 1}, tasks=["depth"])
    assert steps_of("pictures") == [0, 2, 3]


def test_epochs_without_a_validation_are_waited_for():
    draw(max_epochs=6, trainer_options={"check_val_every_n_epoch": 2}, every_n_epochs=3, tasks=["depth"])
    assert steps_of("pictures") == [3, 11]


def test_steps_are_those_of_the_rows_of_validation(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    draw(max_epochs=2, trainer_options={"logger": logger})
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "scalars": 0}).Reload()
    assert [one.step for one in events.Images("pictures/depth")] == [
        one.step for one in events.Scalars("val/balanced_loss")
    ]


def test_images_may_be_named_wherever_they_are_among_the_batches():
    found, _ = draw(None, scenes(4), scenes(7, batch_size=3, first=100), images=[5, 0, 3], tasks=["semantics"])
    for row, number in enumerate((100, 103, 105)):
        kind = scene(number)["semantics"].numpy()
        truth = panel(found["semantics"], row, 1)
        assert (truth[kind < 255] == class_colours(3)[kind[kind < 255]]).all()


def test_fewer_images_than_wanted_are_told():
    found, told = draw(None, scenes(4), scenes(3, first=100), images=8, tasks=["depth"], max_epochs=2)
    assert told == ["PredictionImages should show 8 images of validation loader 0: found 3; it shows these"]
    assert found["depth"].shape[0] == 52 + 3 * (3 * HEIGHT + 8) + 36


def test_of_several_loaders_one_is_shown_and_its_step_told_which():
    class Told(Shapes):
        def validation_step(self, batch, batch_idx, dataloader_idx=0):
            assert dataloader_idx == int(batch["image"].isnan().any())
            super().validation_step(batch, batch_idx)

    second = Scenes(4, 200)
    for row in second.rows:
        row["image"][0, 0, 0] = torch.nan  # of the second loader
    loaders = [scenes(4, first=100), DataLoader(second, batch_size=2)]
    for index, first in enumerate((100, 200)):
        found, told = draw(Told(), scenes(4), loaders, dataloader_idx=index, tasks=["semantics"])
        kind = scene(first)["semantics"].numpy()
        assert (panel(found["semantics"], 0, 1)[kind == 1] == class_colours(3)[1]).all()
        assert told == []


@exact_resume
@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_fit_shows_the_same_images_and_goes_on_counting():
    def callbacks(folder):
        return [PredictionImages(2, 2, folder=folder), ModelCheckpoint("saved", save_last=True)]

    options = {"enable_checkpointing": True, "logger": False}
    torch.manual_seed(0)
    fit(Shapes(), max_epochs=5, callbacks=callbacks("whole")[:1])
    torch.manual_seed(0)
    fit(Shapes(), max_epochs=2, callbacks=callbacks("first"), **options)
    fitted = trainer(max_epochs=5, callbacks=callbacks("second"), **options)
    fitted.fit(Shapes(), scenes(4), scenes(4, first=100), ckpt_path="saved/last.ckpt")
    assert steps_of("whole") == [1, 5, 9]
    assert steps_of("first") == [1, 3]
    assert steps_of("second") == [5, 9]
    for name in ("step=000005", "step=000009"):
        one, other = (np.asarray(Image.open(f"{folder}/semantics/{name}.png")) for folder in ("whole", "second"))
        assert (panel(one, 1, 0) == panel(other, 1, 0)).all()
        assert (panel(one, 1, 1) == panel(other, 1, 1)).all()


def test_validation_alone_is_drawn():
    callback = PredictionImages(2, folder="pictures")
    trainer(callbacks=[callback]).validate(Shapes(), scenes(4), verbose=False)
    assert pictures("pictures").keys() == {"depth", "offsets", "semantics"}
    trainer(callbacks=[callback]).validate(Shapes(), scenes(4, first=50), verbose=False)
    kind = scene(50)["semantics"].numpy()
    assert (panel(pictures("pictures")["semantics"], 0, 1)[kind == 1] == class_colours(3)[1]).all()


def test_the_sanity_check_draws_nothing_but_tells_what_is_wrong():
    net = Shapes()

    class Stop(Callback):
        def on_train_start(self, trainer, pl_module):
            raise KeyError("a step of training is near")

    with pytest.raises(ValueError, match="pictures should be under 'photo' in the batch: found keys image, semantics"):
        fit(net, callbacks=[PredictionImages(image="photo"), Stop()])
    with pytest.raises(KeyError):
        fit(net, callbacks=[PredictionImages(folder="pictures"), Stop()])
    assert not Path("pictures").exists()


# -- training does not know --------------------------------------------------------------------------------------------


class Random(Shapes):
    """Draws in training from every generator, and has metrics of its own that it updates before `task_step`."""

    def __init__(self):
        super().__init__()
        self.seen = MeanAbsoluteError()
        self.rows = []

    def training_step(self, batch, batch_idx):
        noise = torch.rand(()) + random.random()
        return super().training_step({**batch, "image": batch["image"] + 0.01 * noise}, batch_idx)

    def validation_step(self, batch, batch_idx):
        assert not self.training
        assert not self.trunk[1].training
        self.seen(batch["image"], 0 * batch["image"])
        self.log("mean_image", self.seen, on_epoch=True)
        self.log("first", batch["image"].mean(), on_epoch=True)
        batch["image"].mul_(2.0)
        super().validation_step(batch, batch_idx)

    def on_validation_epoch_end(self):
        self.rows.append(torch.rand(3).tolist())


@pytest.mark.parametrize("samples", [1, 3])
def test_a_fit_with_pictures_is_the_fit_without(samples):
    states, metrics, rows = [], [], []
    for callbacks in ([], [PredictionImages(2, folder="pictures", samples=samples)]):
        torch.manual_seed(0)
        random.seed(0)
        net = Random()
        fitted, _ = fit(net, max_epochs=3, callbacks=callbacks)
        states.append(tensors(net))
        metrics.append({name: value.item() for name, value in fitted.callback_metrics.items()})
        rows.append(net.rows)
        assert net.seen.update_count in (0, 2)
        assert all(part.training for part in net.modules())
        assert not {"task_step", "weigh", "log", "log_dict"} & vars(net).keys()
    torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)
    assert metrics[0] == metrics[1]
    assert rows[0] == rows[1]
    assert pictures("pictures").keys() == {"depth", "offsets", "semantics"}


def test_a_step_that_changes_its_batch_is_shown_the_batch_as_it_came():
    class Halved(Shapes):
        def validation_step(self, batch, batch_idx):
            batch["image"].mul_(0.5)
            batch["semantics"].zero_()
            super().validation_step(batch, batch_idx)

    found, _ = draw(Halved(), max_epochs=3, mean=[0.0], std=[1.0], tasks=["depth"])
    pixels = np.round(255 * scene(100)["image"].clamp(0, 1).numpy()).transpose(1, 2, 0)
    assert np.abs(panel(found["depth"], 0, 0) - pixels).max() <= 1


def test_weights_are_those_of_the_validation():
    """As of an average, which puts them in when it begins and takes them out when its epoch ends."""
    seen = []

    class Average(Callback):
        def on_validation_epoch_start(self, trainer, pl_module):
            self.own = tensors(pl_module)
            with torch.no_grad():
                pl_module.task_heads["semantics"].bias.copy_(torch.tensor([0.0, 1e6, 0.0]))

        def on_validation_epoch_end(self, trainer, pl_module):
            pl_module.load_state_dict(self.own)

    def show(predictions, batch):
        seen.append(predictions["semantics"].mean.argmax(1).unique().tolist())
        return batch["ids"]

    fit(Shapes(), max_epochs=2, callbacks=[Average(), PredictionImages(2, 5, folder="pictures", show={"ids": show})])
    assert seen[:2] == [[1], [1]]  # the sanity check and the first validation


def test_a_compiled_module_is_compiled_no_more_for_pictures():
    counts = []
    for callbacks in ([], [PredictionImages(1, folder="pictures", tasks=["depth"])]):
        torch._dynamo.reset()
        counter = CompileCounter()
        fit(torch.compile(Shapes(), backend=counter), max_epochs=2, callbacks=callbacks)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] > 0
    assert pictures("pictures").keys() == {"depth"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "64-true"])
def test_every_precision_is_shown(precision):
    found, told = draw(trainer_options={"precision": precision})
    assert found.keys() == {"depth", "offsets", "semantics"}
    assert told == []


@pytest.mark.cells("tests.callbacks._pictured", "ddp", "ddp without", "fsdp2")
def test_of_several_ranks_the_first_draws_and_training_does_not_know(found):
    for case in ("ddp", "fsdp2"):
        assert [found(case, rank)["drawn"] for rank in range(RANKS)] == [2, 0]
        assert found(case)["names"] == ["depth", "offsets", "semantics"]
    for rank in range(RANKS):
        states = (found(case, rank)["state"] for case in ("ddp", "ddp without"))
        torch.testing.assert_close(*states, rtol=0, atol=0, equal_nan=True)


# -- whatever the module, the batch ------------------------------------------------------------------------------------


def test_a_ready_module_needs_nothing():
    net = MultiTaskModule(nn.Conv2d(3, 16, 3, padding=1), tasks(), inputs="image")
    found, told = draw(net)
    assert found.keys() == {"depth", "offsets", "semantics"}
    assert told == []


def test_a_part_is_shown_that_the_module_calls():
    class Outer(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = Shapes()
            self.other = nn.BatchNorm2d(3)

        def training_step(self, batch, batch_idx):
            return self.net.task_step(self.net.trunk(self.other(batch["image"])), batch, "train")

        def validation_step(self, batch, batch_idx):
            self.net.task_step(self.net.trunk(self.other(batch["image"])), batch, "val")

        def configure_optimizers(self):
            return torch.optim.Adam(self.net.parameter_groups(lr=1e-2))

    found, told = draw(Outer(), module="net")
    assert found.keys() == {"depth", "offsets", "semantics"}
    assert told == []


def test_outputs_may_be_made_before_losses_are_asked_for():
    class Asking(Shapes):
        def validation_step(self, batch, batch_idx):
            outputs = self.task_outputs(self.trunk(batch["image"]))
            self.weigh(self.task_losses(outputs, {**batch, "depth": batch["depth"] + 1}), stage="val")

    found, told = draw(Asking())
    assert found.keys() == {"depth", "offsets", "semantics"}
    assert told == []


class OwnLosses(MultiTaskMixin, LightningModule):
    """Computes its losses itself, of a tuple; `forward` returns what it is told to."""

    def __init__(self, returns=None):
        super().__init__()
        self.depth, self.returns = nn.Conv2d(3, 1, 1), returns
        self.register_tasks({"depth": "laplace"})

    def forward(self, image):
        return self.returns(self.depth(image))

    def training_step(self, batch, batch_idx):
        return self.weigh({"depth": (self.depth(batch[0]) - batch[1]).abs().mean()})

    def validation_step(self, batch, batch_idx):
        self.weigh({"depth": (self.depth(batch[0]) - batch[1]).abs().mean()}, stage="val")

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameter_groups(lr=1e-3))


def pairs(wrap=tuple):
    rows = [scene(number) for number in range(4)]
    return DataLoader([wrap((row["image"], row["depth"].nan_to_num())) for row in rows], batch_size=2)


def test_losses_of_its_own_and_a_forward_by_task_are_enough_with_labels_that_are_named():
    net = OwnLosses(lambda depth: {"depth": depth, "features": depth})
    found, told = draw(net, pairs(), pairs(), targets={"depth": 1})
    assert told == []
    assert found["depth"].shape[1] == 4 * (3 * WIDTH + 8) + 8
    found, told = draw(net, pairs(), pairs(), folder="others")
    assert found["depth"].shape[1] == 2 * (3 * WIDTH + 8) + 8  # no truth, no error
    (message,) = told
    assert message.startswith("PredictionImages should show labels of task 'depth': found none (labels of task 'depth'")
    assert "give targets={'depth': ...}" in message


@pytest.mark.parametrize(
    ("net", "found"),
    [
        (lambda: OwnLosses(lambda depth: depth), "of forward it returns a Tensor"),
        (lambda: OwnLosses(lambda depth: {"deep": depth}), "of forward it returns the keys deep"),
        (lambda: Plain(), "of forward there is none to call with a picture"),
    ],
)
def test_outputs_that_nothing_tells_are_asked_for(net, found):
    loaders = (tuples(), tuples()) if "none to call" in found else (pairs(), pairs())
    with pytest.raises(ValueError, match=found) as error:
        draw(net(), *loaders)
    assert "give forward=lambda module, batch" in str(error.value)


class Host(LightningModule):
    """Knows nothing of tasks."""

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 2, 1)

    def forward(self, image):
        return self.net(image)

    def _step(self, batch, stage):
        made = self(batch["image"])
        depth = (made[:, :1] - batch["depth"].nan_to_num()).abs().mean()
        light = (made[:, 1:] - batch["image"].mean(1, keepdim=True)).square().mean()
        self.log(f"{stage}_depth", depth)
        self.log(f"{stage}_light", light)
        return depth + light

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        return self._step(batch, "val")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def adopted():
    tasks = {"depth": "laplace", "light": "gaussian"}
    held_out = {task: f"log:val_{task}" for task in tasks}
    return adopt(Host(), tasks, {task: f"log:train_{task}" for task in tasks}, validation=held_out)


def test_an_adopted_module_is_told_what_it_needs_and_is_then_shown():
    with pytest.raises(ValueError, match="PredictionImages needs outputs by task \\(depth, light\\): found that"):
        draw(adopted())

    def forward(module, batch):
        made = module(batch["image"])
        return {"depth": made[:, :1], "light": made[:, 1:]}

    targets = {"light": lambda batch: batch["image"].mean(1, keepdim=True)}
    found, told = draw(adopted(), forward=forward, targets=targets)
    assert found.keys() == {"depth", "light"}
    assert told == []


class Opaque:
    """A batch of a class of its own, as of graphs."""

    def __init__(self, rows):
        self.image, self.depth = (torch.stack([row[name] for row in rows]) for name in ("image", "depth"))


@pytest.mark.parametrize("image", [lambda batch: batch.image, None])
def test_a_batch_may_be_anything(image):
    class OfOpaque(OwnLosses):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch.image, batch.depth.nan_to_num()), batch_idx)

        def validation_step(self, batch, batch_idx):
            super().validation_step((batch.image, batch.depth.nan_to_num()), batch_idx)

    loader = DataLoader([scene(number) for number in range(4)], batch_size=2, collate_fn=Opaque)
    options = {"forward": lambda module, batch: {"depth": module.depth(batch.image)}}
    options["targets"] = {"depth": lambda batch: batch.depth}
    found, told = draw(OfOpaque(), loader, loader, image=image, **options)
    if image is None:  # nobody knows which are its rows
        assert found == {}
        assert [message.partition(": found")[0] for message in told] == [
            "PredictionImages should show 2 images of validation loader 0"
        ]
    else:
        assert panel(found["depth"], 1, 1).shape == (HEIGHT, WIDTH, 3)
        assert told == []


@pytest.mark.parametrize(
    "change",
    [
        lambda image: (255 * image.clamp(0, 1)).round().to(torch.uint8),
        lambda image: (255 * image.clamp(0, 1)).round().to(torch.uint8).movedim(0, -1),
        lambda image: (image.clamp(0, 1) - 0.4) / 0.2,
    ],
    ids=["uint8", "channels last", "normalised"],
)
def test_pictures_come_back_from_what_they_were_made_into(change):
    rows = [{**scene(number), "image": change(scene(number)["image"])} for number in range(2)]
    normal = rows[0]["image"].is_floating_point()
    options = {"mean": [0.4] * 3, "std": [0.2] * 3} if normal else {}
    loader = DataLoader(rows, batch_size=2)

    def forward(module, batch):
        return {"depth": torch.zeros(len(batch["depth"]), 2, HEIGHT, WIDTH)}

    class Constant(Shapes):
        def validation_step(self, batch, batch_idx):
            pass

    net = Constant()
    found, _ = draw(net, scenes(4), loader, forward=forward, tasks=["depth"], **options)
    pixels = np.round(255 * scene(0)["image"].clamp(0, 1).numpy()).transpose(1, 2, 0)
    assert np.abs(panel(found["depth"], 0, 0) - pixels).max() <= 1


def test_images_of_several_sizes_have_their_proportions():
    rows = [scene(number) for number in range(3)]
    rows[1] = {name: part[..., :16].clone() for name, part in rows[1].items()}
    rows[2] = {name: part.transpose(-1, -2).clone() for name, part in rows[2].items()}
    found, told = draw(None, scenes(4), DataLoader(rows, batch_size=1), images=3)
    assert told == []
    truth = panel(found["semantics"], 1, 1)
    left = (WIDTH - 16) // 2
    assert (truth[:, :left] == 255).all()
    kind = rows[1]["semantics"].numpy()
    assert (truth[:, left : left + 16][kind < 255] == class_colours(3)[kind[kind < 255]]).all()


def test_labels_of_another_size_than_the_picture_are_shown_in_its_cell():
    """As of a network whose outputs and labels are at a stride of 4."""
    rows = [scene(number) for number in range(2)]
    for row in rows:
        row["depth"] = row["depth"][:, ::4, ::4]
    output = torch.zeros(1, 2, HEIGHT // 4, WIDTH // 4)
    net = Shapes()
    net.validation_step = lambda batch, batch_idx: None
    loader = DataLoader(rows, batch_size=2)
    found, told = draw(net, scenes(4), loader, forward=fixed({"depth": output}), tasks=["depth"])
    assert told == []
    truth = panel(found["depth"], 0, 1)
    assert (truth == truth[::4, ::4].repeat(4, 0).repeat(4, 1)).all()


def test_labels_that_are_all_missing_are_grey():
    rows = [scene(number) for number in range(2)]
    for row in rows:
        row["depth"], row["semantics"] = row["depth"] * torch.nan, torch.full_like(row["semantics"], 255)
        row["offsets"] = row["offsets"] * torch.nan
    found, told = draw(None, scenes(4), DataLoader(rows, batch_size=2))
    assert told == []
    for name in ("depth", "semantics", "offsets"):
        assert (panel(found[name], 0, 1) == GREY).all()
        assert (panel(found[name], 0, 3) == GREY).all()


def test_a_task_without_any_labels_in_a_batch_is_shown_all_the_same():
    class Unlabelled(Shapes):
        def validation_step(self, batch, batch_idx):
            super().validation_step({**batch, "depth": None}, batch_idx)

    found, told = draw(Unlabelled())
    assert (panel(found["depth"], 0, 1) == GREY).all()
    assert told == []


# -- where -------------------------------------------------------------------------------------------------------------


def test_wandb_has_every_picture_and_masks_with_the_names_of_classes(tmp_path):
    logger = WandbLogger(project="scenes", save_dir=tmp_path, offline=True)
    found, _ = draw(max_epochs=2, classes=NAMES, trainer_options={"logger": logger})
    logger.experiment.finish()
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    rows = [row for row in _wandb_reader.history(folder) if "pictures/depth._type" in row]
    assert [row["trainer/global_step"] for row in rows] == [1, 3]
    last = rows[-1]
    for name in ("depth", "offsets", "semantics"):
        logged = np.asarray(Image.open(folder / "files" / last[f"pictures/{name}.path"]))
        assert (logged == found[name]).all()
    assert last["pictures/mask_overlay.count"] == 2
    masks = last["pictures/mask_overlay.all_masks"][1]
    assert masks.keys() == {"semantics prediction", "semantics truth"}
    truth = np.asarray(Image.open(folder / "files" / masks["semantics truth"]["path"]))[::3, ::3]
    kind = scene(101)["semantics"].numpy()
    assert (truth == np.where(kind == 255, 3, kind)).all()
    input_shown = Image.open(folder / "files" / last["pictures/mask_overlay.filenames"][1])
    assert (np.asarray(input_shown)[::3, ::3] == panel(found["depth"], 1, 0)).all()
    configs = [record["config"]["update"] for record in _wandb_reader.records(folder) if record["type"] == "config"]
    labels = {
        key: entry["value"] for one in configs for key, entry in one["_wandb"].get("mask/class_labels", {}).items()
    }
    (named,) = (value for key, value in labels.items() if key.endswith("semantics truth"))
    assert named == {"0": "ground", "1": "box", "2": "ball", "3": "no label"}


def test_tensorboard_has_every_picture_below_its_prefix(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="run")
    found, _ = draw(trainer_options={"logger": logger}, prefix="looks/")
    events = EventAccumulator(logger.log_dir, size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == [f"run-looks/{name}" for name in ("semantics", "offsets", "depth")]
    path = Path("read.png")
    path.write_bytes(events.Images("run-looks/depth")[-1].encoded_image_string)
    assert (np.asarray(Image.open(path)) == found["depth"]).all()


def test_where_no_logger_takes_pictures_they_are_beside_its_files(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(Shapes(), max_epochs=1, logger=logger, callbacks=[PredictionImages(2)])
    assert pictures(Path(logger.log_dir, "pictures")).keys() == {"depth", "offsets", "semantics"}
    fit(Shapes(), max_epochs=1, default_root_dir=tmp_path / "root", callbacks=[PredictionImages(2)])
    assert pictures(tmp_path / "root" / "pictures").keys() == {"depth", "offsets", "semantics"}


def test_a_folder_that_cannot_be_written_is_told_once():
    Path("taken").write_text("a file")
    _, told = fit(Shapes(), max_epochs=2, callbacks=[PredictionImages(2, folder="taken")])
    (message,) = told
    assert message.startswith("PredictionImages should show pictures in taken: found that it cannot be written")


def test_pictures_are_no_larger_than_was_said():
    found, _ = draw(max_size=32)
    assert found["depth"].shape[1] == 5 * (32 + 8) + 8
    big = DataLoader([{**scene(0), "image": torch.rand(3, 400, 600)}] * 2, batch_size=2)

    def forward(module, batch):
        return {"depth": torch.zeros(len(batch["depth"]), 2, HEIGHT, WIDTH)}

    class Constant(Shapes):
        def validation_step(self, batch, batch_idx):
            pass

    found, _ = draw(Constant(), scenes(4), big, forward=forward, folder="big")
    assert found["depth"].shape[1] == 4 * (192 + 8) + 8


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "images should be a number above 0"),
        ({"images": [-1]}, "images should be a number above 0"),
        ({"every_n_epochs": 0}, "every_n_epochs should be a whole number, at least 1: found 0"),
        ({"samples": 1.5}, "samples should be a whole number, at least 1: found 1.5"),
        ({"max_size": 8}, "max_size should be a whole number, at least 16: found 8"),
        ({"mean": [0.5], "to_image": lambda x: x}, "pictures should be made by to_image, or of mean and std"),
        ({"classes": ["road"]}, "classes should be given by task name"),
    ],
)
def test_what_cannot_be_is_told_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        PredictionImages(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": {"semantic": CLASSES}}, "tasks should be among semantics, offsets, depth: found semantic"),
        ({"tasks": ["deep"]}, "tasks should be among semantics, offsets, depth: found deep"),
        (
            {"classes": {"semantics": CLASSES[:2]}},
            "classes of task 'semantics' should be one for each of its 3 outputs",
        ),
        ({"colours": {"semantics": [(0, 0, 300)] * 3}}, "a colour should be three whole numbers from 0 to 255"),
        ({"colours": {"depth": ["red"]}}, "colours should be of tasks with classes: found 'depth'"),
        ({"targets": {"depth": "deep"}}, "labels of task 'depth' should be under 'deep' in the batch"),
        ({"image": lambda batch: 3}, "pictures should be a tensor \\[B, C, H, W\\]: found a int"),
        ({"forward": lambda module, batch: None}, "of forward= it returns a NoneType"),
    ],
)
def test_what_does_not_fit_the_module_is_told_before_a_step(options, message):
    class Still(Shapes):
        def training_step(self, batch, batch_idx):
            raise KeyError("too late")

    with pytest.raises(ValueError, match=message):
        draw(Still(), **options)


def test_several_with_a_prefix_each_are_no_trouble():
    both = [PredictionImages(2, folder="one"), PredictionImages([3], folder="other", prefix="more/")]
    fit(Shapes(), max_epochs=1, callbacks=[*both, UncertaintyMonitor(table=False)])
    assert pictures("one").keys() == pictures("other").keys()


def test_a_fit_without_validation_is_told():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(max_epochs=1, callbacks=[PredictionImages()]).fit(Shapes(), scenes(2))
    assert "PredictionImages should show images of validation: found a fit without" in " ".join(
        str(one.message) for one in caught
    )


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ModuleNotFoundError, match="PredictionImages needs matplotlib: pip install 'lightning-unc"):
        fit(Shapes(), callbacks=[PredictionImages()])


def test_it_is_written_in_yaml_and_sent_to_other_processes(tmp_path):
    options = {"classes": {"kind": ["a", "b"]}, "colours": {"kind": [[1, 2, 3], "#804080"]}, "image": "x", "images": 2}
    path = tmp_path / "config.yaml"
    callback = {"class_path": "lightning_uncertainty.PredictionImages", "init_args": options}
    path.write_text(json.dumps({"trainer": {"accelerator": "cpu", "logger": False, "callbacks": [callback]}}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cli = LightningCLI(BoringModel, BoringDataModule, run=False, args=["--config", str(path)])
    (made,) = (one for one in cli.trainer.callbacks if isinstance(one, PredictionImages))
    for one in (made, pickle.loads(pickle.dumps(made))):
        assert one.images == [0, 1]
        assert one.image == "x"
        assert {name: getattr(one, name) for name in ("classes", "colours")} == {
            name: options[name] for name in ("classes", "colours")
        }


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True}])
def test_a_run_for_development_is_drawn_and_one_for_speed_is_not(options):
    given = {"max_epochs": 1, "accelerator": "cpu", "callbacks": [PredictionImages(2, folder="pictures")]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Trainer(**given, **options).fit(Shapes(), scenes(2), scenes(2))
    assert Path("pictures").exists() == ("fast_dev_run" in options)


def test_the_other_package_of_lightning_draws_as_well():
    class Other(MultiTaskMixin, lightning.pytorch.LightningModule):
        def __init__(self):
            super().__init__()
            self.trunk = nn.Conv2d(3, 16, 3, padding=1)
            self.register_tasks(tasks())

        training_step = Shapes.training_step
        validation_step = Shapes.validation_step

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameter_groups(lr=1e-2))

    fitted = trainer(lightning.pytorch, max_epochs=1, callbacks=[PredictionImages(2, folder="pictures")])
    fitted.fit(Other(), scenes(2), scenes(2))
    assert pictures("pictures").keys() == {"depth", "offsets", "semantics"}
