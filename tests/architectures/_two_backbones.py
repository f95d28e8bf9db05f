"""What architectures of a backbone for every task are tried on."""

from torch import nn

FEATURES = [
    [[[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]]],
    [[[[1.0, 0.5], [0.0, -0.5]], [[-1.0, -1.5], [-2.0, -2.5]]]],
]
NAMES = ["depth", "semantics", "normals"]


def stages(widths=(4, 6), stride=2):
    channels = zip((3, *widths), widths, strict=False)
    return [nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.Tanh()) for i, o in channels]


def heads(tasks=2, width=6):
    return {task: nn.Conv2d(width, 1 + k, 1) for k, task in enumerate(NAMES[:tasks])}
