"""What knows tensors and processes alone, and nothing of tasks."""

from lightning_uncertainty._tensors.clamping import one_way_clamp
from lightning_uncertainty._tensors.foreign_state import changes, plain_state, restore, seeded, selected, torchjd
from lightning_uncertainty._tensors.global_batch import (
    SideGroup,
    exchange_device,
    mean_losses,
    rank,
    summed_over_ranks,
    world_size,
)
from lightning_uncertainty._tensors.hash import normal, uniform, uniform_on_host
from lightning_uncertainty._tensors.keeping import keep_for_backward
from lightning_uncertainty._tensors.loading import Loadable
from lightning_uncertainty._tensors.numbers import by_name, is_number
from lightning_uncertainty._tensors.precision import Float32Module, promote
from lightning_uncertainty._tensors.reading import reads_values
from lightning_uncertainty._tensors.text import packed, text_of, text_tensor, unpacked

__all__ = [
    "Float32Module",
    "Loadable",
    "SideGroup",
    "by_name",
    "changes",
    "exchange_device",
    "is_number",
    "keep_for_backward",
    "mean_losses",
    "normal",
    "one_way_clamp",
    "packed",
    "plain_state",
    "promote",
    "rank",
    "reads_values",
    "restore",
    "seeded",
    "selected",
    "summed_over_ranks",
    "text_of",
    "text_tensor",
    "torchjd",
    "uniform",
    "uniform_on_host",
    "unpacked",
    "world_size",
]
