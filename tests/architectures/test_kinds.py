"""The guide's table of architectures, kinds of tasks and dimensions: every cell trains, or is refused in a sentence."""

import re
from itertools import pairwise, product
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_uncertainty import MultiTaskModule, Task, deep_supervision
from lightning_uncertainty.architectures import (
    JTRL,
    MTAN,
    NDDR,
    BranchingArchitecture,
    CrossStitch,
    HardSharing,
    PADNet,
    PAPNet,
)
from lightning_uncertainty.balancing import GradientBalancing
from tests._nets import trainer

DIMENSIONS = ("vectors", "sequences", "images", "volumes")
KINDS = ("dense", "whole", "beside")
SIZES = ((), (33,), (17, 22), (9, 11, 13))
CONVOLUTIONS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHANNELS = [6, 8]
OUTPUTS = {"depth": 1, "kind": 3}
GUIDE = Path(__file__).parents[2] / "docs" / "architectures.md"


class Mean(nn.Module):
    """The mean over all places."""

    def forward(self, x):
        return x.flatten(2).mean(2) if x.dim() > 2 else x


def stage(inputs: int, outputs: int, places: int) -> nn.Sequential:
    convolution = nn.Linear(inputs, outputs) if not places else CONVOLUTIONS[places](inputs, outputs, 3, 2, 1)
    return nn.Sequential(convolution, NORMS[places](outputs), nn.ReLU())


def stages(places: int) -> list[nn.Module]:
    return [stage(i, o, places) for i, o in pairwise([3, *CHANNELS])]


def head(count: int, places: int, dense: bool) -> nn.Module:
    if dense:
        return CONVOLUTIONS[places](CHANNELS[-1], count, 1)
    return nn.Sequential(Mean(), nn.Linear(CHANNELS[-1], count))


def heads(places: int, dense) -> dict[str, nn.Module]:
    return {task: head(count, places, task in dense) for task, count in OUTPUTS.items()}


MAKE = {
    "HardSharing": lambda n, dense: HardSharing(stages(n), heads(n, dense), dense=dense),
    "CrossStitch": lambda n, dense: CrossStitch(stages(n), heads(n, dense), CHANNELS, dense=dense),
    "NDDR": lambda n, dense: NDDR(stages(n), heads(n, dense), CHANNELS, shortcut=True, dense=dense, dimensions=n),
    "MTAN": lambda n, dense: MTAN(stages(n), heads(n, dense), CHANNELS, dense=dense, dimensions=n),
    "PADNet": lambda n, dense: PADNet(stages(n), 8, OUTPUTS, width=8, dense=dense, dimensions=n),
    "PAPNet": lambda n, dense: PAPNet(stages(n), 8, OUTPUTS, width=8, dense=dense, dimensions=n),
    "JTRL": lambda n, dense: JTRL(stages(n), CHANNELS, OUTPUTS, width=8, dense=dense, dimensions=n),
}


def table() -> dict[tuple[str, str], set[str]]:
    """Return the kinds of tasks that the guide says an architecture takes, by its name and what inputs are."""
    lines = GUIDE.read_text().split("## Which kinds of tasks")[1].split("\n## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    columns = [cell.split()[0] for cell in rows[0][1:]]
    return {
        (row[0].strip("`"), column): set(re.findall(r"\w+", cell))
        for row in rows[2:]
        for column, cell in zip(columns, row[1:], strict=True)
    }


TABLE = table()
DIAGONAL = {(name, DIMENSIONS[(k + 1) % 4], KINDS[k % 3]) for k, name in enumerate(MAKE)}
UNTOLD = {("HardSharing", "vectors", "dense"), ("CrossStitch", "vectors", "dense")}  # what inputs are
CELLS = [
    pytest.param(*cell, marks=() if cell in DIAGONAL else pytest.mark.matrix)
    for cell in product(MAKE, DIMENSIONS, KINDS)
    if cell not in UNTOLD
]


def build(name, inputs, kind, weighting=None):
    """Return a ready module, and its batch; of "whole" one task is, and the other is dense where there are places."""
    torch.manual_seed(0)
    places = DIMENSIONS.index(inputs)
    size = SIZES[places]
    dense = [task for task in OUTPUTS if places and (kind != "whole" or task == "depth")]
    if kind == "dense" and not places:
        dense = list(OUTPUTS)
    net = MAKE[name](places, dense)
    tasks = {"depth": Task("laplace"), "kind": Task("categorical")}
    if kind == "beside":
        tasks["age"] = Task("gaussian", head=head(1, places, dense=False))
    rows = 4
    batch = {
        "x": torch.randn(rows, 3, *size),
        "depth": torch.randn(rows, 1, *(size if "depth" in dense else ())),
        "kind": torch.randint(3, (rows, *(size if "kind" in dense else ()))),
        "age": torch.randn(rows, 1),
    }
    return MultiTaskModule(net, deep_supervision(tasks, net.predictions), weighting, inputs="x"), net, batch


def test_the_table_has_every_architecture_and_what_inputs_may_be():
    assert set(TABLE) == set(product(MAKE, DIMENSIONS))
    assert set().union(*TABLE.values()) == set(KINDS)
    assert {cell[k] for cell in DIAGONAL for k in range(3)} == {*MAKE, *DIMENSIONS, *KINDS}


@pytest.mark.parametrize(("name", "inputs", "kind"), CELLS)
def test_a_cell_of_the_table_trains_or_is_refused_in_a_sentence(name, inputs, kind):
    if kind not in TABLE[name, inputs]:
        refused = {
            "dense": r"dense should be empty for vectors.*: found depth, kind|dimensions of \w+ should be one of",
            "whole": r"every task of \w+ should be dense, as .*: found kind|dimensions of \w+ should be one of",
            "beside": r"features that all its tasks share: found none|dimensions of \w+ should be one of",
        }
        with pytest.raises(ValueError, match=refused[kind]):
            build(name, inputs, kind)
        return
    module, net, batch = build(name, inputs, kind)
    fit = trainer(max_epochs=1)
    before = {key: weight.clone() for key, weight in module.backbone.named_parameters()}
    fit.fit(module, DataLoader([batch] * 3, batch_size=None))
    still = [key for key, weight in module.backbone.named_parameters() if torch.equal(weight, before[key])]
    assert not still
    assert all(weight.isfinite().all() for weight in module.parameters())
    predictions = module(batch["x"])
    assert list(predictions) == list(module.sigma())
    for prediction, output in predictions.items():
        label = batch[net.predictions.get(prediction, prediction)]
        assert output.shape[2:] == (label.shape[1:] if not label.is_floating_point() else label.shape[2:])


@pytest.mark.matrix
@pytest.mark.parametrize("inputs", DIMENSIONS)
@pytest.mark.parametrize("name", MAKE)
def test_a_cell_compiles_into_one_graph_and_runs_in_bfloat16(name, inputs):
    for kind in [kind for kind in ("whole", "beside") if kind in TABLE[name, inputs]][:1]:
        module, _, batch = build(name, inputs, kind)
        net, x = module.backbone, batch["x"]
        expected = net(x)
        torch.compiler.reset()
        for prediction, output in torch.compile(net, fullgraph=True, backend="eager")(x).items():
            torch.testing.assert_close(output, expected[prediction])
        for prediction, output in net.bfloat16()(x.bfloat16()).items():
            assert (output.float() - expected[prediction]).norm() < 0.06 * expected[prediction].norm(), prediction


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("inputs", DIMENSIONS)
def test_every_kind_exports_to_onnx_by_the_dynamo_exporter(inputs, tmp_path):
    """One file for each: dense predictions and those of the whole input, or a head beside where there are none."""
    for name in MAKE:
        kinds = [kind for kind in ("whole", "beside") if kind in TABLE[name, inputs]]
        for kind in kinds if name == "HardSharing" else kinds[:1]:
            module, _, batch = build(name, inputs, kind)
            net, x, file = module.backbone.eval(), batch["x"], tmp_path / "net.onnx"
            torch.onnx.export(net, (x,), file, dynamo=True, verbose=False, output_names=list(net.predictions))
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            found = session.run(list(net.predictions), {session.get_inputs()[0].name: x.numpy()})
            for output, expected in zip(found, net(x).values(), strict=True):
                torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MAKE)
def test_gradients_are_balanced_where_the_architecture_says(name):
    """At the features where tasks do not meet again, and over the shared parameters elsewhere; a head beside, too."""
    branching = issubclass(globals()[name], BranchingArchitecture)
    kind = "beside" if "beside" in TABLE[name, "images"] else "whole"
    weighting = GradientBalancing("mgda") if branching else GradientBalancing("mgda", on="parameters")
    module, net, batch = build(name, "images", kind, weighting)
    assert isinstance(module.backbone, BranchingArchitecture) == branching
    assert set(map(id, module.shared_parameters())) == set(map(id, net.shared_parameters()))
    before = [weight.clone() for weight in net.parameters()]
    trainer(max_epochs=1).fit(module, DataLoader([batch] * 2, batch_size=None))
    assert all(not torch.equal(one, two) for one, two in zip(before, net.parameters(), strict=True))
