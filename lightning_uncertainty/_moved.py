"""Where modules and names went: whoever imports one by its old path, or loads a pickle that does, reads the new one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import NoReturn

__all__ = ["MOVED", "MovedFinder", "install", "moved_name"]

_PACKAGE = "lightning_uncertainty"

MOVED = {
    "compare": "trials",
    "comparison": "trials",
    "corrections": "tasks",
    "epistemic": "predictions",
    "global_batch": "_tensors",
    "heads": "tasks",
    "heteroscedastic": "likelihoods",
    "kpis": "_step",
    "loss_vectors": "_step",
    "optimizers": "_step",
    "precision": "_tensors",
    "report": "dashboards",
    "search": "trials",
    "step_window": "_step",
    "trainers": "_step",
    "weight_search": "trials",
    **dict.fromkeys(
        (
            *("weightings.gradient_balancing", "weightings.gradnorm", "weightings.gramian", "weightings.mgda"),
            *("weightings.imtl_g", "weightings.pcgrad", "weightings.torchjd_solver", "weightings.FrankWolfe"),
            *("weightings.GradNorm", "weightings.GradientBalancing", "weightings.GramianSolver", "weightings.IMTLG"),
            *("weightings.MGDA", "weightings.PCGrad", "weightings.TorchJDSolver"),
        ),
        "balancing",
    ),
}
"""The new home of what had an old path, both within the package."""


def _sentence(path: str) -> str:
    """Return where something went."""
    new = MOVED[path.removeprefix(f"{_PACKAGE}.")]
    if new.startswith("_"):
        return f"{path} is no door any more: load what was pickled with it where it was, and save its `state_dict()`"
    return f"{path} has moved to {_PACKAGE}.{new}: name that in the import or the class path"


def moved_name(module: str, name: str) -> NoReturn:
    """Stand as the `__getattr__` of a module whose names have moved.

    Raises:
        AttributeError: always; an import of the name then asks the finder, which raises ImportError.
    """
    moved = f"{module}.{name}".removeprefix(f"{_PACKAGE}.") in MOVED
    raise AttributeError(_sentence(f"{module}.{name}") if moved else f"module {module!r} has no attribute {name!r}")


class MovedFinder(MetaPathFinder):
    """Finds no module; it is asked last, and says where a module went."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None for what has not moved.

        Raises:
            ImportError: it has.
        """
        if fullname.startswith(f"{_PACKAGE}.") and fullname.removeprefix(f"{_PACKAGE}.") in MOVED:
            raise ImportError(_sentence(fullname), name=fullname)
        return None


def install() -> None:
    """Have imports ask a `MovedFinder` where all else found nothing; once is enough."""
    if not any(type(finder) is MovedFinder for finder in sys.meta_path):
        sys.meta_path.append(MovedFinder())
