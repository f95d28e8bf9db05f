"""Models whose code is not yours."""

from lightning_uncertainty.adoption.adopt_losses import AdoptLosses
from lightning_uncertainty.adoption.adopting import adopt, unadopt
from lightning_uncertainty.adoption.describing import describe
from lightning_uncertainty.adoption.description import Candidate, Description
from lightning_uncertainty.adoption.parts import Call, Function, HostWeight, Logged, Part

__all__ = [
    "AdoptLosses",
    "Call",
    "Candidate",
    "Description",
    "Function",
    "HostWeight",
    "Logged",
    "Part",
    "adopt",
    "describe",
    "unadopt",
]
