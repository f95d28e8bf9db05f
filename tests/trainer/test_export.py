"""What was trained is exported without its weighting, and computes what the module does."""

from io import BytesIO

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from lightning_uncertainty import MultiTaskModule, Task
from tests._nets import Plain, dicts, trainer, tuples
from tests._tiers import FEW
from tests.trainer._weightings import BALANCING, WEIGHTINGS


class Computing(Plain):
    """Depth 1, with a forward of its own."""

    def forward(self, x):
        return {"depth": self.depth(x)[:, 0], "kind": self.kind(x).softmax(1)}


def ready(weighting):
    tasks = {
        "depth": Task("gaussian", head=nn.Linear(8, 1)),
        "kind": Task("categorical", head=nn.Linear(8, 3)),
    }
    backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
    return MultiTaskModule(backbone, tasks, weighting, inputs="x")


MODULES = {"depth 1": (Computing, tuples), "MultiTaskModule": (ready, dicts)}
BATCHES = [torch.linspace(-2, 2, 4 * rows).reshape(rows, 4) for rows in (6, 3)]

EXPORTED = (*FEW, "FixedWeighting")  # in every run
UNUSED = {"backbone.1.num_batches_tracked"}  # in evaluation

each_module = pytest.mark.parametrize("module", MODULES)


def trained(module, weighting):
    make, loader = MODULES[module]
    net = make(WEIGHTINGS[weighting]())
    trainer(max_epochs=1).fit(net, loader())
    return net.eval()


@pytest.mark.parametrize(
    ("module", "weighting"),
    [
        pytest.param(module, name, marks=() if name in EXPORTED else pytest.mark.matrix)
        for module in MODULES
        for name in WEIGHTINGS
        if module != "depth 1" or name not in BALANCING
    ],
)
def test_an_exported_program_computes_the_outputs_without_the_weighting(module, weighting):
    """torch.export keeps all that a module has: the vectors of the weighting go along, unused."""
    net, file = trained(module, weighting), BytesIO()
    torch.export.save(torch.export.export(net, (BATCHES[0],), dynamic_shapes=({0: torch.export.Dim.AUTO},)), file)
    file.seek(0)
    program = torch.export.load(file)
    names = program.graph_signature.inputs_to_parameters | program.graph_signature.inputs_to_buffers
    used = {names[node.name] for node in program.graph.nodes if node.name in names and node.users}
    ours = ("task_weighting.", "task_metrics.", "task_calibration.")
    assert used == {name for name in names.values() if not name.startswith(ours)} - UNUSED
    for x in BATCHES:
        torch.testing.assert_close(program.module()(x), net(x))


@each_module
def test_an_onnx_file_computes_the_outputs_and_has_no_weighting(module, tmp_path):
    net = trained(module, "UncertaintyWeighting")
    file = tmp_path / "net.onnx"
    options = {"dynamo": True, "verbose": False, "dynamic_shapes": ({0: "batch"},), "output_names": ["depth", "kind"]}
    net.to_onnx(file, BATCHES[0], **options)
    assert not [each.name for each in onnx.load(file).graph.initializer if each.name.startswith("task_weighting")]
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    for x in BATCHES:
        found = session.run(["depth", "kind"], {session.get_inputs()[0].name: x.numpy()})
        for output, expected in zip(found, net(x).values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(output), expected.detach(), rtol=1e-5, atol=1e-6)
