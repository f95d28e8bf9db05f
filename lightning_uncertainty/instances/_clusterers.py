"""Clusterers of scikit-learn by name, set for votes in pixels."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["CLUSTERERS", "Clusterer", "means_of", "named_clusterer"]


class Clusterer(Protocol):
    """What says of points `[N, 2]` which cluster each belongs to, from 0 on; less for none."""

    def fit_predict(self, X: Any) -> Any:
        """Return the cluster of each point `[N]`."""


CLUSTERERS: dict[str, tuple[str, dict[str, Any]]] = {
    "optics": ("OPTICS", {"min_samples": 5, "max_eps": 12.0, "cluster_method": "dbscan", "eps": 3.0}),
    "dbscan": ("DBSCAN", {"min_samples": 5, "eps": 2.0}),
    "hdbscan": ("HDBSCAN", {"min_samples": 4, "min_cluster_size": 8, "allow_single_cluster": True, "copy": True}),
    "mean_shift": ("MeanShift", {"bandwidth": 6.0, "bin_seeding": True, "min_bin_freq": 1}),
}
"""By name the class of scikit-learn, and what it is given unless told otherwise, in pixels and votes."""


def named_clusterer(name: str, **options: Any) -> Clusterer:
    """Return the clusterer of a name.

    Raises:
        ModuleNotFoundError: scikit-learn is not installed.
        ValueError: it has no such option.
    """
    try:
        from sklearn import cluster
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"instances_from_votes(method={name!r}) needs scikit-learn: "
            "pip install 'lightning-uncertainty[instances]', or take method='peaks'"
        ) from error
    kind, usual = CLUSTERERS[name]
    known = inspect.signature(getattr(cluster, kind)).parameters
    unknown = [option for option in options if option not in known]
    if unknown:
        raise ValueError(f"options of {name} should be among {', '.join(known)}: found {', '.join(unknown)}")
    made: Clusterer = getattr(cluster, kind)(**{**usual, **options})
    return made


def means_of(clusterer: Clusterer, votes: Tensor, sizes: list[int]) -> Tensor:
    """Return the mean vote of each cluster `[P, 3]`, map, row and column, in the order of the maps.

    Args:
        clusterer: which is fitted to the votes of one map after the other.
        votes: `[N, 2]`, map after map.
        sizes: how many each map has.
    """
    needs = (getattr(clusterer, name, None) for name in ("min_samples", "min_cluster_size"))
    least = max([2, *(need for need in needs if isinstance(need, int))])
    found = [votes.new_zeros(0, 3)]
    for number, part in enumerate(torch.split(votes, sizes)):
        if len(part) < least:
            continue
        with warnings.catch_warnings():  # of votes that nowhere meet
            warnings.filterwarnings("ignore", message="All reachability values are inf", category=UserWarning)
            warnings.filterwarnings("ignore", message="Binning data failed", category=UserWarning)
            labels = torch.as_tensor(clusterer.fit_predict(part.cpu().double().numpy())).to(part.device)
        for one in torch.unique(labels[labels >= 0]):
            centre = part[labels == one].mean(0)
            found.append(torch.cat([centre.new_tensor([number]), centre])[None])
    return torch.cat(found)
