"""PAD-Net: tasks distil each other's features through gates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from lightning_uncertainty.architectures._architecture import check_tasks
from lightning_uncertainty.architectures._backbone import Backbone
from lightning_uncertainty.architectures._blocks import check_dimensions, check_made, convolution
from lightning_uncertainty.architectures._two_stage import TwoStageArchitecture

__all__ = ["Distillation", "PADNet", "distil"]


def distil(target: Tensor, gates: Sequence[Tensor], messages: Sequence[Tensor]) -> Tensor:
    """Return `F + Σ_l σ(g_l) · m_l`, all of one shape: features, gates before the sigmoid, messages."""
    result = target
    for gate, message in zip(gates, messages, strict=True):
        result = result + gate.sigmoid() * message
    return result


class Distillation(nn.Module):
    """What one task takes from the features of the others; three wirings are in circulation.

    ========== ============ ==================================================
    gate       message_conv features of task k
    ========== ============ ==================================================
    `"target"` True         `F_k + Σ_{l≠k} σ(W_k * F_k) · (V_{k,l} * F_l)`
    `"source"` False        `F_k + Σ_{l≠k} σ(W_{k,l} * F_l) · F_l`
    `"source"` True         `F_k + Σ_{l≠k} σ(W_{k,l} * F_l) · (V_{k,l} * F_l)`
    ========== ============ ==================================================

    `*` is a convolution without bias, `·` the product of elements. The first row, the default, is the paper's, whose
    gate looks at the target; the second is what surveys print, and the third what common implementations compute.

    Source: Xu et al., "PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for Simultaneous Depth
    Estimation and Scene Parsing", CVPR 2018.

    Args:
        width: channels of all features.
        target: the task that takes.
        sources: the tasks that give.
        gate: whether gates look at the features of the source or of the target.
        message_conv: whether features pass a convolution V on their way.
        kernel: size of the convolutions, odd.
        dimensions: of the features: 0 for vectors `[B, width]`, 1 for sequences, 2 for images, 3 for volumes.

    Raises:
        ValueError: there is no source, the target is one, or an option is none of these.

    Shape:
        A mapping with `[B, width, h, w]` of the target and of each source, to `[B, width, h, w]`.

    Example:
        >>> import torch
        >>> take = Distillation(8, "depth", ["semantics", "edges"])
        >>> list(take({task: torch.ones(2, 8, 5, 7) for task in ("depth", "semantics", "edges")}).shape)
        [2, 8, 5, 7]
    """

    def __init__(
        self,
        width: int,
        target: str,
        sources: Sequence[str],
        *,
        gate: Literal["source", "target"] = "target",
        message_conv: bool = True,
        kernel: int = 3,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        if not sources or target in sources:
            raise ValueError(
                f"sources of {target} should be other tasks, at least one: found {', '.join(sources) or 'none'}"
            )
        if gate not in ("source", "target"):
            raise ValueError(f'gate should be "source" or "target": found {gate!r}')
        if kernel % 2 == 0:
            raise ValueError(f"kernel should be odd: found {kernel}; an even one changes the size of features")
        layer = partial(convolution, dimensions, width, width, kernel, bias=False)
        self.target = target
        self.gate = gate
        self.gates = nn.ModuleDict({task: layer() for task in (sources if gate == "source" else [target])})
        self.messages = nn.ModuleDict({source: layer() if message_conv else nn.Identity() for source in sources})

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        gates = {task: gate(features[task]) for task, gate in self.gates.items()}
        return distil(
            features[self.target],
            [gates[source if self.gate == "source" else self.target] for source in self.messages],
            [message(features[source]) for source, message in self.messages.items()],
        )


class PADNet(TwoStageArchitecture):
    """Every task predicts from features of its own; each then distils those of the others, and predicts again.

    The wiring::

        backbone -> F_k -> <task>_initial              F_k: two bottlenecks; initial: a 1x1 convolution
                     |
                     +-> F_k + Σ_{l≠k} σ(W_k * F_k) · (V_{k,l} * F_l) -> head_k -> <task>

    Auxiliary tasks, say edges or normals, give features and predict once, under their own name: `edges`. Every task
    has a convolution for each of the others, so parameters grow with the square of their number.

    Tasks that are not dense exchange features with the others all the same, place by place; both of their predictions
    are made from the mean over all places. The paper has dense ones alone.

    Source: Xu et al., "PAD-Net: Multi-Tasks Guided Prediction-and-Distillation Network for Simultaneous Depth
    Estimation and Scene Parsing", CVPR 2018.

    Args:
        backbone: a module, or stages.
        channels: of its last features `[B, channels, h, w]`.
        outputs: channels of the predictions by task.
        auxiliary: channels of the predictions by auxiliary task.
        width: channels of the features F of every task.
        heads: by task, from `[B, width, h, w]`; the others get a 3x3 convolution with BatchNorm and ReLU, then a 1x1
            convolution, of the mean over all places where the task is not dense.
        distillation: makes the distillation of a task from width, target and sources; the paper's `Distillation` where
            None. `partial(Distillation, gate="source", message_conv=False)` is the lightest.
        dense: names of the dense tasks, auxiliary ones too (see `Architecture`); all where None.
        dimensions: of the features: 0 for vectors `[B, channels]`, where no task is dense, 1 for sequences, 2 for
            images, 3 for volumes.

    Raises:
        ValueError: there are fewer than two tasks, auxiliary ones counted, predictions would share a name, a head is
            for no task, a dense task is none of the tasks, dimensions are others than those; or, in the forward pass,
            the backbone returns other channels or dimensions.

    Example:
        >>> import torch
        >>> net = PADNet(nn.Conv2d(3, 8, 3, stride=4), 8, {"depth": 1}, auxiliary={"edges": 2}, width=8)
        >>> {name: list(prediction.shape) for name, prediction in net(torch.ones(2, 3, 33, 47)).items()}
        {'depth': [2, 1, 33, 47], 'edges': [2, 2, 33, 47], 'depth_initial': [2, 1, 33, 47]}
    """

    def __init__(
        self,
        backbone: Backbone,
        channels: int,
        outputs: Mapping[str, int],
        *,
        auxiliary: Mapping[str, int] | None = None,
        width: int = 256,
        heads: Mapping[str, nn.Module] | None = None,
        distillation: Callable[[int, str, Sequence[str]], nn.Module] | None = None,
        dense: Collection[str] | None = None,
        dimensions: int = 2,
    ) -> None:
        everyone = check_tasks({**outputs, **(auxiliary or {})}, "PADNet, auxiliary tasks counted,", at_least=2)
        check_dimensions(dimensions, "PADNet")
        super().__init__(backbone, channels, outputs, auxiliary or {}, width, dense, dimensions)
        make = partial(Distillation, dimensions=dimensions) if distillation is None else distillation
        self.distillation = nn.ModuleDict(
            {task: make(width, task, [other for other in everyone if other != task]) for task in outputs}
        )
        check_made(self.distillation, dimensions, "distillation of PADNet")
        self.heads = self.final_heads(outputs, width, heads)

    def exchange(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {task: distillation(features) for task, distillation in self.distillation.items()}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the backbone, and of features from which several tasks predict.

        Those are the features of all tasks; where one task alone is not auxiliary, its own features serve only itself.
        """
        alone = self.tasks if len(self.tasks) == 1 else ()
        shared = [self.backbone, *(block for task, block in self.task_features.items() if task not in alone)]
        return [parameter for module in shared for parameter in module.parameters()]
