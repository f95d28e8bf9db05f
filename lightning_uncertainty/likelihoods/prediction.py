"""What a model predicts and how sure it is: its samples, split into what data and what the model leave open."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Prediction", "binary", "classification", "divergence", "regression"]


class Prediction(NamedTuple):
    """A prediction with its uncertainties, all in at least float32.

    For regression the uncertainties are standard deviations in units of the label, and
    `total² = aleatoric² + epistemic²`. For classes they are entropies in nats, and `total = aleatoric + epistemic`.

    Attributes:
        mean: in units of the label, or probabilities of the classes `[B, C, ...]`.
        aleatoric: what more training data would leave: the noise of labels.
        epistemic: what more training data would remove: how far the samples of the model disagree.
        total: both together.
    """

    mean: Tensor
    aleatoric: Tensor
    epistemic: Tensor
    total: Tensor


def regression(means: Tensor, variances: Tensor) -> Prediction:
    """Split the variance of a label by the law of total variance.

    `total² = aleatoric² + epistemic² = mean_s σ²_s + var_s μ_s`, with the population variance over the samples.

    Source: Kendall & Gal, "What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?", NeurIPS
    2017, equation 9.

    Args:
        means: predictions of the samples `[S, ...]`, in units of the label.
        variances: variances σ² of the label `[S, ...]`, or what broadcasts to it, such as one number for a task.

    Returns:
        Tensors `[...]`: the mean and three standard deviations.

    Raises:
        ValueError: there is no sample.

    Example:
        >>> prediction = regression(means=torch.tensor([[1.0], [7.0]]), variances=torch.tensor([[15.0], [17.0]]))
        >>> prediction.mean, prediction.aleatoric, prediction.epistemic, prediction.total
        (tensor([4.]), tensor([4.]), tensor([3.]), tensor([5.]))
    """
    _check_samples(means, "means", "[S, ...]", least=1)
    means, variances = _widened(means), _widened(variances)
    mean = _mean(means)
    aleatoric = _mean(variances.broadcast_to(means.shape)).sqrt()
    epistemic = _spread(means)
    return Prediction(mean, aleatoric, epistemic, torch.hypot(aleatoric, epistemic))


def classification(probabilities: Tensor) -> Prediction:
    """Split the entropy of a class into expected entropy and mutual information.

    `total = H[mean_s p_s]`, `aleatoric = mean_s H[p_s]`, `epistemic = total - aleatoric = mean_s KL(p_s || mean_s p_s)`

    Source: Houlsby et al., "Bayesian Active Learning for Classification and Preference Learning", arXiv 2011.

    Args:
        probabilities: of the classes, of the samples `[S, B, C, ...]`.

    Returns:
        The mean probabilities `[B, C, ...]` and three entropies `[B, ...]` in nats.

    Raises:
        ValueError: there is no sample, or no dimension of classes.

    Example:
        >>> prediction = classification(torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]))  # two samples, sure and opposed
        >>> prediction.mean, prediction.aleatoric, prediction.epistemic
        (tensor([[0.5000, 0.5000]]), tensor([0.]), tensor([0.6931]))
    """
    _check_samples(probabilities, "probabilities", "[S, B, C, ...]", least=3)
    return _entropies(_widened(probabilities), dim=2)


def binary(probabilities: Tensor) -> Prediction:
    """Split the entropy of a yes or no, as `classification` does, for each element on its own.

    Args:
        probabilities: of a yes, of the samples `[S, ...]`.

    Returns:
        The mean probability of a yes and three entropies in nats, all `[...]`.

    Raises:
        ValueError: there is no sample.

    Example:
        >>> prediction = binary(torch.tensor([[0.5, 0.0], [0.5, 1.0]]))
        >>> prediction.mean, prediction.aleatoric, prediction.epistemic
        (tensor([0.5000, 0.5000]), tensor([0.6931, 0.0000]), tensor([0.0000, 0.6931]))
    """
    _check_samples(probabilities, "probabilities", "[S, ...]", least=1)
    probabilities = _widened(probabilities)
    both = _entropies(torch.stack([probabilities, 1 - probabilities], dim=1), dim=1)
    return both._replace(mean=both.mean[0])


def _entropies(probabilities: Tensor, dim: int) -> Prediction:
    """Split entropies of classes that lie along `dim` of the samples `[S, ...]`."""
    mean = _mean(probabilities)
    aleatoric = _mean(torch.special.entr(probabilities).sum(dim))
    if len(probabilities) == 1:
        return Prediction(mean, aleatoric, torch.zeros_like(aleatoric), aleatoric)
    epistemic = _mean(divergence(probabilities, mean, dim)).clamp_min(0)  # its rounded sum may be below zero
    return Prediction(mean, aleatoric, epistemic, aleatoric + epistemic)


def divergence(probabilities: Tensor, others: Tensor, dim: int) -> Tensor:
    """Return `KL(p || q) = Σ p log(p / q)` of classes along `dim`, in nats; no digit of a small one is lost.

    Example:
        >>> divergence(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5]), dim=0)  # log 2
        tensor(0.6931)
    """
    distance = probabilities - others  # adds up to nothing over classes, but takes the rounding of the mean with it
    divisor = others.clamp_min(torch.finfo(others.dtype).tiny)  # never 0 / 0
    excess, ratio = distance / divisor, probabilities / divisor
    near = torch.special.xlog1py(probabilities, excess.clamp_min(-0.5))
    far = torch.special.xlogy(probabilities, ratio)  # far below, 1 + excess would be rounded to 0, its log -inf
    return (torch.where(excess < -0.5, far, near) - distance).sum(dim)


def _spread(samples: Tensor) -> Tensor:
    """Return the standard deviation over samples `[S, ...]`, whose square need not fit the type."""
    if len(samples) == 1:
        return torch.zeros_like(samples[0])
    distance = samples - samples[0]  # first, or large means would swallow a small spread
    most = distance.abs().amax(0).clamp_min(torch.finfo(samples.dtype).tiny)
    return (distance / most).var(0, correction=0).sqrt() * most


def _mean(samples: Tensor) -> Tensor:
    """Return the mean over samples `[S, ...]`; of equal samples it is exactly that sample."""
    return samples[0] if len(samples) == 1 else samples[0] + (samples - samples[0]).mean(0)


def _widened(samples: Tensor) -> Tensor:
    return samples.float() if torch.finfo(samples.dtype).bits < 32 else samples


def _check_samples(samples: Tensor, name: str, shape: str, least: int) -> None:
    if samples.dim() < least or samples.shape[0] == 0:
        raise ValueError(
            f"{name} should be {shape} with one sample at least: found {list(samples.shape)}; stack the samples"
        )
