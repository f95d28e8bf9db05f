"""Instances by votes: offsets to centroids as labels, instances from offsets, and moves of pictures that keep both."""

from lightning_uncertainty.instances.offsets import centroid_offsets, majority_classes
from lightning_uncertainty.instances.transforms import DenseTransforms
from lightning_uncertainty.instances.votes import instances_from_votes

__all__ = ["DenseTransforms", "centroid_offsets", "instances_from_votes", "majority_classes"]
