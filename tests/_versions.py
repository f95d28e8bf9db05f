"""What a test needs of a library, where the package runs on an older one too: with the newest none is left out."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from packaging.version import Version

__all__ = ["averages", "exact_resume", "has", "needs"]


def has(library: str, first: str) -> bool:
    """Whether a library is of this version at least."""
    return Version(version(library)) >= Version(first)


def needs(library: str, first: str, reason: str) -> pytest.MarkDecorator:
    """Return the mark of a test that is left out below a version, and why: what the library does there."""
    return pytest.mark.skipif(not has(library, first), reason=f"{library} below {first} {reason}")


averages = needs("pytorch-lightning", "2.6", "has no WeightAveraging")
exact_resume = needs("pytorch-lightning", "2.5", "trains a batch twice after a checkpoint in the middle of an epoch")
