"""Any backbone as a list of features, from the finest to the coarsest."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from lightning_uncertainty.architectures._blocks import shape

__all__ = ["Backbone", "as_backbone", "check_channels", "check_feature", "feature_list", "features_of"]

Backbone = nn.Module | Sequence[nn.Module]


def as_backbone(backbone: Backbone) -> nn.Module:
    """Return a backbone as a module that registers its parts; a sequence of stages becomes an `nn.ModuleList`.

    Raises:
        ValueError: there are no stages, or one is no module.
    """
    if isinstance(backbone, nn.Module) and not isinstance(backbone, nn.ModuleList):
        return backbone
    stages = list(backbone)
    wrong = [type(stage).__name__ for stage in stages if not isinstance(stage, nn.Module)]
    if wrong or not stages:
        found = ", ".join(wrong) if wrong else "none"
        raise ValueError(
            f"stages of a backbone should be modules, at least one: found {found}; give [stem, layer, ...]"
        )
    return nn.ModuleList(stages)


def features_of(backbone: nn.Module, inputs: Any) -> list[Tensor]:
    """Return the features of every stage, or those that the module returns; a sequence are the features themselves."""
    if isinstance(inputs, Sequence):
        return feature_list(inputs)
    if not isinstance(backbone, nn.ModuleList):
        return feature_list(backbone(inputs))
    features = []
    for stage in backbone:
        inputs = stage(inputs)
        features.append(inputs)
    return features


def feature_list(output: Any) -> list[Tensor]:
    """Return the features in whatever a backbone returned: a tensor, a sequence or a mapping of tensors.

    Lists are what timm's `features_only` models return. A mapping, or a named tuple, says by its names which of its
    values are features and in which order: `feature_maps` has them all, as in the output of a backbone of
    transformers; else there is one value, or names count up, as `layer1`, `layer2`, `layer3` of torchvision's feature
    extractors do. What has other names, as `pooler_output`, `aux` or `pool`, is not guessed at.

    Raises:
        ValueError: it is nothing of the kind.
    """
    if isinstance(output, Tensor):
        return [output]
    named = output._asdict() if isinstance(output, tuple) and hasattr(output, "_asdict") else output
    if isinstance(named, Mapping):
        names = list(named)
        if "feature_maps" in names:
            output = named["feature_maps"]
        elif _counts_up(names) or len(names) == 1:
            output = list(named.values())
        elif names:
            raise ValueError(
                "a backbone that returns features by name should have them under feature_maps, or under names that "
                "count up, as layer1, layer2, layer3, from the finest to the coarsest: found "
                f"{', '.join(map(str, names))}; take AutoBackbone of transformers, create_feature_extractor(net, "
                "{node: '0', ...}) of torchvision, or wrap it in a module whose forward returns a list of the features"
            )
    if isinstance(output, Sequence) and output and all(isinstance(feature, Tensor) for feature in output):
        return list(output)
    raise ValueError(
        "a backbone should return a tensor, or a sequence or mapping of tensors: found "
        f"{type(output).__name__}; wrap it in a module whose forward picks the features"
    )


def _counts_up(names: Sequence[Any]) -> bool:
    """Whether names differ in their numbers alone, and these grow: "0", "1" or "blocks.2.conv", "blocks.4.conv"."""
    texts = list(map(str, names))
    numbers = [tuple(map(int, re.findall(r"\d+", text))) for text in texts]
    stems = {re.sub(r"\d+", "#", text) for text in texts}
    return len(stems) == 1 and all(before < after for before, after in pairwise(numbers))


def check_channels(features: Sequence[Tensor], channels: Sequence[int], dimensions: int) -> None:
    """Look whether the features of a backbone are of as many stages as were declared, each with its channels.

    Raises:
        ValueError: their number, or the shape of one, differ.
    """
    if len(features) != len(channels):
        raise ValueError(
            f"the backbone should return features of {len(channels)} stages, one for each entry of channels "
            f"{list(channels)}: found {len(features)}; correct channels, or what the backbone returns"
        )
    for stage, (feature, expected) in enumerate(zip(features, channels, strict=True)):
        check_feature(feature, expected, dimensions, f"the feature of stage {stage}")


def check_feature(feature: Tensor, channels: int, dimensions: int | None, what: str) -> None:
    """Look whether a feature is `[B, channels, ...]`, of so many dimensions; of any where None.

    Raises:
        ValueError: it is not. The sentence tells channels that stand last, a wrong number of dimensions, and wrong
            channels from each other.
    """
    found = list(feature.shape)
    right = len(found) >= 2 and found[1] == channels
    if right and dimensions in (None, len(found) - 2):
        return
    expected = f"[B, {channels}, ...]" if dimensions is None else shape(channels, dimensions)
    if not right and len(found) > 2 and found[-1] == channels:
        layout = {3: "tokens, [B, N, C]", 4: "NHWC", 5: "NDHWC"}.get(len(found), "[B, ..., C]")
        places = ".unflatten(2, (h, w))" if len(found) == 3 and dimensions == 2 else ""
        mend = f"channels stand last there ({layout}): have the backbone return x.movedim(-1, 1){places}"
    elif right and len(found) == 2:
        mend = "give features with places, or dimensions=0 where the architecture takes vectors"
    elif right and len(found) <= 5:
        mend = f"give dimensions={len(found) - 2}, as its places have, or other features"
    else:
        mend = "correct channels, or what the backbone returns"
    raise ValueError(f"{what} should be {expected}: found {found}; {mend}")
