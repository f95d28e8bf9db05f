"""Stages with two features each: u, before the last block, and p, after it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from lightning_uncertainty.architectures._backbone import check_feature

__all__ = ["Channels", "by_stage", "check_features", "check_stages", "run_stages", "stage_channels"]

Channels = tuple[int, ...]
"""Of one stage: `(C_u, C_p)`, or `(C,)` where one feature serves as both."""


def stage_channels(channels: Iterable[int | Sequence[int]]) -> list[Channels]:
    """Return the channels of every stage.

    Raises:
        ValueError: there is no stage, or an entry is neither a number nor a pair.
    """
    stages = [(entry,) if isinstance(entry, int) else tuple(entry) for entry in channels]
    if not stages or any(len(stage) not in (1, 2) for stage in stages):
        raise ValueError(
            f"channels should have an entry for each stage, a pair (C_u, C_p) or one number: found {list(channels)}"
        )
    return stages


def check_stages(backbone: nn.Module, decoder: nn.ModuleList, channels: Sequence[Channels]) -> None:
    """Look whether there is a stage for each entry of channels, the decoder's last, that gives as many features.

    Raises:
        ValueError: their numbers differ, or a stage of which a pair is expected cannot be split before its last block.
    """
    # A module says nothing of its number of stages: it is whatever channels leave it, at least one.
    rest = len(channels) - len(decoder)
    encoder = list(backbone) if isinstance(backbone, nn.ModuleList) else [None] * max(rest, 1)
    if len(encoder) != rest:
        raise ValueError(
            "channels should have an entry for each stage of the backbone, then of the decoder: found "
            f"{len(channels)} for {len(encoder)} + {len(decoder)}; correct channels"
        )
    for number, (stage, widths) in enumerate(zip([*encoder, *decoder], channels, strict=True)):
        if stage is not None and len(widths) == 2 and not _splits(stage):
            raise ValueError(
                f"stage {number} should be an nn.Sequential of at least two modules to give the pair {widths}: found "
                f"{_described(stage)}; give one number in channels for one feature as both u and p"
            )


def _splits(stage: nn.Module) -> bool:
    # A subclass with a forward of its own need not run its children in order.
    return isinstance(stage, nn.Sequential) and type(stage).forward is nn.Sequential.forward and len(stage) > 1


def _described(stage: nn.Module) -> str:
    name = type(stage).__name__
    return f"{name} of {len(stage)}" if isinstance(stage, nn.Sequential) else name


def run_stages(stages: Iterable[nn.Module], x: Tensor, channels: Sequence[Channels]) -> list[Tensor]:
    """Return the features of all stages, u_1, p_1, u_2, p_2, ..., or one where one is both; each stage takes p."""
    features = []
    for stage, widths in zip(stages, channels, strict=True):
        if len(widths) == 1:
            x = stage(x)
        else:
            *blocks, last = stage.children()
            for block in blocks:
                x = block(x)
            features.append(x)
            x = last(x)
        features.append(x)
    return features


def by_stage(features: Iterable[Tensor], channels: Iterable[Channels]) -> list[tuple[Tensor, Tensor]]:
    """Return u and p of each stage."""
    remaining = iter(features)
    stages = [[next(remaining) for _ in widths] for widths in channels]
    return [(stage[0], stage[-1]) for stage in stages]


def check_features(features: Sequence[Tensor], channels: Sequence[Channels], dimensions: int) -> None:
    """Look whether features are what channels say.

    Raises:
        ValueError: their number, channels or dimensions differ, or u and p of a stage have not one size.
    """
    expected = [
        (f"{name} of stage {stage}", width)
        for stage, widths in enumerate(channels)
        for name, width in zip(("u", "p") if len(widths) == 2 else ("the feature",), widths, strict=True)
    ]
    if len(features) != len(expected):
        raise ValueError(
            f"{len(channels)} stages should have {len(expected)} features, one for each number in channels "
            f"{list(channels)}: found {len(features)}; correct channels, or what the backbone returns"
        )
    for feature, (name, width) in zip(features, expected, strict=True):
        check_feature(feature, width, dimensions, name)
    for stage, (u, p) in enumerate(by_stage(features, channels)):
        if u.shape[2:] != p.shape[2:]:
            raise ValueError(
                f"u and p of stage {stage} should have one size: found {list(u.shape)} and {list(p.shape)}; let the "
                "last block of a stage keep the size"
            )
