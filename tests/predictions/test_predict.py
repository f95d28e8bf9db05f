"""Samples are looked at as they come: memory is that of one pass, and numbers those of all samples together."""

import weakref

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_uncertainty import MultiTaskMixin
from lightning_uncertainty.likelihoods import HeteroscedasticCategorical
from lightning_uncertainty.predictions import DeepEnsemble, Sampling, sample

CLASSES, SIDE = 5, 16


class Net(MultiTaskMixin, LightningModule):
    """Classes, a yes or no and a depth of every pixel, behind dropout."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Dropout(0.3), nn.Conv2d(3, CLASSES + 2, 1))
        self.register_tasks({"kind": "categorical", "edge": "bernoulli", "depth": "gaussian"})
        self.task_weighting.log_variance.fill_(0.5)
        self.rows = []

    def forward(self, x):
        self.rows.append(len(x))
        kind, edge, depth = self.net(x).split([CLASSES, 1, 1], 1)
        return {"kind": kind, "edge": edge, "depth": depth}


class Living(TorchDispatchMode):
    """Counts the bytes of what lives at once, among what is made within."""

    def __init__(self):
        super().__init__()
        self.now = self.most = 0
        self._known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self._known:
                storage = leaf.untyped_storage()
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return made

    def _gone(self, key, size):
        self._known.discard(key)
        self.now -= size


def memory(net, samples, **options):
    with Living() as living:
        net.predict_tasks(torch.ones(1, 3, SIDE, SIDE), samples=samples, **options)
    return living.most


@pytest.mark.parametrize("kind", ["samples", "ensemble"])
def test_memory_does_not_grow_with_samples(kind, monkeypatch):
    monkeypatch.setattr("lightning_uncertainty.predictions.predict._TOGETHER", 1)
    net = Net()
    if kind == "samples":
        few, many = (memory(net, samples, max_rows=1) for samples in (4, 40))
    else:
        few, many = (memory(net, 1, ensemble=DeepEnsemble([Net() for _ in range(count)])) for count in (4, 40))
    assert many < 1.2 * few


@pytest.mark.parametrize("max_rows", [None, 1, 6, 100])
@pytest.mark.parametrize("together", [1, 1 << 20])
def test_numbers_are_those_of_all_samples_together(max_rows, together, monkeypatch):
    monkeypatch.setattr("lightning_uncertainty.predictions.predict._TOGETHER", together)
    net, x = Net(), torch.randn(2, 3, SIDE, SIDE)
    found = net.predict_tasks(x, samples=7, seed=3, max_rows=max_rows)
    outputs = sample(net, x, 7, module=net, seed=3, max_rows=max_rows)
    scales = net.task_scales()
    for name, likelihood in net.task_likelihoods().items():
        expected = likelihood.predicted(outputs[name], scales.log_variances[name], scales.corrections[name])
        for part, other in zip(found[name], expected, strict=True):
            torch.testing.assert_close(part, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "rows"), [((2, 3, 4, 4), [60]), ((2, 3, 512, 512), [2] * 3), ((1, 3, 256, 512), [2, 1])]
)
def test_large_rows_go_through_the_network_one_at_a_time(shape, rows):
    net = Net()
    net.net = nn.Sequential(nn.Dropout(0.3), nn.AdaptiveAvgPool2d(1), nn.Conv2d(3, CLASSES + 2, 1))
    net.predict_tasks(torch.ones(shape), samples=30 if rows == [60] else 3)
    assert net.rows == rows


def test_a_seed_fixes_the_noise_of_likelihoods_too():
    class Noisy(MultiTaskMixin, LightningModule):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)
            self.register_tasks({"kind": HeteroscedasticCategorical()})

        def forward(self, x):
            return {"kind": self.drop(x)}

    net, x = Noisy(), torch.randn(5, 6)
    for samples in (1, 8):
        first, second = (net.predict_tasks(x, samples=samples, seed=1)["kind"] for _ in range(2))
        assert torch.equal(first.mean, second.mean)
        assert not torch.equal(first.mean, net.predict_tasks(x, samples=samples, seed=2)["kind"].mean)


def test_options_are_those_of_sampling():
    net, x = Net(), torch.ones(1, 3, 2, 2)
    with pytest.raises(TypeError, match="smples"):
        net.predict_tasks(x, smples=3)
    with pytest.raises(ValueError, match="max_rows should be at least 1: found 0"):
        net.predict_tasks(x, samples=3, max_rows=0)
    assert Sampling(seed=3).of_batch(4) == Sampling(seed=7)
    assert Sampling().of_batch(4) == Sampling()
    assert Sampling(also=[nn.ReLU]).also == (nn.ReLU,)
