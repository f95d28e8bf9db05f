"""What architectures of a backbone for every task are tried on."""

import torch
from torch import nn

FEATURES = [
    [[[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]],
    [[[[1.0, 0.5], [0.0, -0.5]], [[-1.0, -1.5], [-2.0, -2.5]]]],
]
NAMES = ["depth", "semantics", "normals"]


def stages(widths=(4, 6), stride=2):
    channels = zip((3, *widths), widths, strict=False)
    return [nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.Tanh()) for i, o in channels]


def run_beside(net, separate):
    """Run a network and those of its tasks apart, backward too, and look that they predict the same."""
    images = torch.randn(2, 3, 9, 11)
    outputs = net.predict(images)
    for task, network in separate.items():
        expected = network(images)
        torch.testing.assert_close(outputs[task], expected)
        expected.square().sum().backward()
    sum(output.square().sum() for output in outputs.values()).backward()


def heads(tasks=2, width=6):
    return {task: nn.Conv2d(width, 1 + k, 1) for k, task in enumerate(NAMES[:tasks])}
