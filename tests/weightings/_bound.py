"""Weightings that have state, bound to tasks of some kinds."""

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    UncertaintyWeighting,
)
from tests.weightings._properties import vectors

KINDS = {
    "depth": "laplace",
    "semantics": "categorical",
    "normals": "gaussian",
    "counts": "poisson",
    "edges": "bernoulli",
}
WITH_STATE = [
    UncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    AnalyticUncertaintyWeighting,
]
UNCOUPLED = [kind for kind in WITH_STATE if kind is not ConstrainedUncertaintyWeighting]  # each task for itself


def bind(kind, *names):
    return kind().bind({name: as_likelihood(KINDS[name]) for name in names})


def by_task(weighting, *names):
    """What a weighting knows of some tasks: state and settings, by vector and name; not the names."""
    return {
        (vector, name): values[weighting.tasks.index(name)]
        for vector, values in vectors(weighting).items()
        for name in names
        if vector not in ("task_ids", "_extra_state")
    }
