"""Any backbone as a list of features, from the finest to the coarsest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = ["Backbone", "as_backbone", "check_channels", "feature_list", "features_of"]

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

    Lists are what timm's `features_only` models return, mappings what torchvision's feature extractors do; the output
    of a backbone of transformers is a mapping that has them under `feature_maps`.

    Raises:
        ValueError: it is nothing of the kind.
    """
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = output["feature_maps"] if "feature_maps" in output else list(output.values())
    if isinstance(output, Sequence) and output and all(isinstance(feature, Tensor) for feature in output):
        return list(output)
    raise ValueError(
        "a backbone should return a tensor, or a sequence or mapping of tensors: found "
        f"{type(output).__name__}; wrap it in a module whose forward picks the features"
    )


def check_channels(features: Sequence[Tensor], channels: Sequence[int], what: str = "the backbone") -> None:
    """Look whether features `[B, C, ...]` have the channels that were declared.

    Raises:
        ValueError: their number or a stage's channels differ.
    """
    if len(features) != len(channels):
        raise ValueError(
            f"{what} should return features of {len(channels)} stages, one for each entry of channels "
            f"{list(channels)}: found {len(features)}; correct channels, or what the backbone returns"
        )
    for stage, (feature, expected) in enumerate(zip(features, channels, strict=True)):
        if feature.dim() < 2 or feature.shape[1] != expected:
            raise ValueError(
                f"stage {stage} of {what} should have {expected} channels, as in [B, {expected}, ...]: found "
                f"{list(feature.shape)}; correct channels"
            )
