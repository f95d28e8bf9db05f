"""Architectures of multi-task networks, on any backbone.

Images or features go in, a prediction for every task comes out by name, intermediate ones beside it: see
`Architecture`.
"""

from lightning_uncertainty.architectures._architecture import Architecture, BranchingArchitecture
from lightning_uncertainty.architectures._berhu import berhu
from lightning_uncertainty.architectures._blocks import Bottleneck
from lightning_uncertainty.architectures._mtan_attention import MTANAttention
from lightning_uncertainty.architectures._task_attention import TaskAttention
from lightning_uncertainty.architectures._with_heads import with_heads
from lightning_uncertainty.architectures.cross_stitch import CrossStitch, CrossStitchUnit
from lightning_uncertainty.architectures.hard_sharing import HardSharing
from lightning_uncertainty.architectures.jtrl import JTRL
from lightning_uncertainty.architectures.mtan import MTAN
from lightning_uncertainty.architectures.nddr import NDDR, NDDRLayer
from lightning_uncertainty.architectures.pad_net import Distillation, PADNet
from lightning_uncertainty.architectures.pap_net import PAPNet, Propagation

__all__ = [
    "JTRL",
    "MTAN",
    "NDDR",
    "Architecture",
    "Bottleneck",
    "BranchingArchitecture",
    "CrossStitch",
    "CrossStitchUnit",
    "Distillation",
    "HardSharing",
    "MTANAttention",
    "NDDRLayer",
    "PADNet",
    "PAPNet",
    "Propagation",
    "TaskAttention",
    "berhu",
    "with_heads",
]
