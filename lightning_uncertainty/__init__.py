"""Any Lightning model becomes uncertainty-weighted.

A name is imported with its first use, so that weightings, likelihoods and networks can be had without Lightning.
"""

from typing import TYPE_CHECKING

from lightning_uncertainty._moved import install, moved_name

if TYPE_CHECKING:
    from lightning_uncertainty import adoption as adoption
    from lightning_uncertainty import architectures as architectures
    from lightning_uncertainty import calibration as calibration
    from lightning_uncertainty import cli as cli
    from lightning_uncertainty import dashboards as dashboards
    from lightning_uncertainty import examples as examples
    from lightning_uncertainty import instances as instances
    from lightning_uncertainty import metrics as metrics
    from lightning_uncertainty import predictions as predictions
    from lightning_uncertainty import trials as trials
    from lightning_uncertainty._step import own_group
    from lightning_uncertainty.adoption import AdoptLosses, adopt
    from lightning_uncertainty.balancing import GradientBalancing
    from lightning_uncertainty.callbacks import (
        GradientConflictMonitor,
        PredictionImages,
        PredictionWriter,
        UncertaintyMonitor,
        UncertaintyWarmUp,
    )
    from lightning_uncertainty.likelihoods import masked_sum
    from lightning_uncertainty.mixin import MultiTaskMixin
    from lightning_uncertainty.module import MultiTaskModule, MultiTaskSteps
    from lightning_uncertainty.tasks import Task, deep_supervision
    from lightning_uncertainty.weightings import AnalyticUncertaintyWeighting, FixedWeighting, UncertaintyWeighting
else:
    from importlib import import_module

    _HOMES = {
        "_step": ("own_group",),
        "adoption": ("AdoptLosses", "adopt"),
        "balancing": ("GradientBalancing",),
        "callbacks": (
            "GradientConflictMonitor",
            "PredictionImages",
            "PredictionWriter",
            "UncertaintyMonitor",
            "UncertaintyWarmUp",
        ),
        "likelihoods": ("masked_sum",),
        "mixin": ("MultiTaskMixin",),
        "module": ("MultiTaskModule", "MultiTaskSteps"),
        "tasks": ("Task", "deep_supervision"),
        "weightings": ("AnalyticUncertaintyWeighting", "FixedWeighting", "UncertaintyWeighting"),
    }
    _DOORS = tuple(room for room in _HOMES if not room.startswith("_"))
    _OTHERS = ("calibration", "cli", "dashboards", "examples", "instances", "metrics", "predictions", "trials")
    _ROOMS = (*_DOORS, "architectures", *_OTHERS)
    _HOME_OF = {name: room for room, names in _HOMES.items() for name in names}

    def __getattr__(name):
        if name in _HOME_OF:
            found = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
            return found
        if name in _ROOMS:
            return import_module(f"{__name__}.{name}")
        return moved_name(__name__, name)

    def __dir__():
        return sorted({*globals(), *_HOME_OF, *_ROOMS})


__all__ = [
    "AdoptLosses",
    "AnalyticUncertaintyWeighting",
    "FixedWeighting",
    "GradientBalancing",
    "GradientConflictMonitor",
    "MultiTaskMixin",
    "MultiTaskModule",
    "MultiTaskSteps",
    "PredictionImages",
    "PredictionWriter",
    "Task",
    "UncertaintyMonitor",
    "UncertaintyWarmUp",
    "UncertaintyWeighting",
    "adopt",
    "deep_supervision",
    "masked_sum",
    "own_group",
]

install()
