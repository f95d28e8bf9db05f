"""Architectures of multi-task networks, on any backbone.

Images or features go in, a prediction for every task comes out by name: see `Architecture`.
"""

from lightning_uncertainty.architectures._architecture import Architecture, BranchingArchitecture
from lightning_uncertainty.architectures.hard_sharing import HardSharing

__all__ = ["Architecture", "BranchingArchitecture", "HardSharing"]
