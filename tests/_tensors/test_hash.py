import math

import numpy as np
import pytest
import torch

from lightning_uncertainty._tensors import normal, uniform, uniform_on_host
from lightning_uncertainty._tensors.hash import _hashed


def splitmix64(state):
    """The generator as its paper has it, in Python's own integers; returns state and number."""
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    z = state
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return state, z ^ (z >> 31)


def test_one_key_is_the_first_number_of_splitmix64():
    assert _hashed(torch.tensor(0)).item() % 2**64 == 0xE220A8397B1DCDAF  # as published implementations print it
    seeds = torch.randint(-(2**63), 2**63 - 1, (1000,), generator=torch.Generator().manual_seed(0))
    assert [x % 2**64 for x in _hashed(seeds).tolist()] == [splitmix64(seed % 2**64)[1] for seed in seeds.tolist()]


def test_further_keys_are_added_to_what_the_first_became():
    first = splitmix64(5)[1]
    assert _hashed(5, torch.tensor(-9)).item() % 2**64 == splitmix64((first - 9) % 2**64)[1]


KEYS = {
    "a counter": lambda n: (0, torch.arange(n)),
    "a first key": lambda n: (torch.arange(n), 0),
    "high bits": lambda n: (3, torch.arange(n) << 44),
    "negative ones": lambda n: (torch.full((n,), -(2**63)), -torch.arange(n)),
    "two": lambda n: (torch.arange(n // 100)[:, None], torch.arange(100)),
}


def deviation(probabilities):
    """Kolmogorov's statistic times √n; above 1.95 in one of a thousand samples."""
    count = len(probabilities)
    steps = torch.arange(count + 1) / count
    ordered = probabilities.sort().values
    return max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()).item() * math.sqrt(count)


@pytest.mark.parametrize("keys", KEYS)
def test_numbers_have_their_distribution_and_no_memory(keys):
    numbers = uniform(*KEYS[keys](20000)).flatten().double()
    assert deviation(numbers) < 1.95
    normals = normal(*KEYS[keys](20000)).flatten().double()
    assert deviation(torch.special.ndtr(normals)) < 1.95
    for x in (numbers, normals):
        assert abs(torch.corrcoef(torch.stack([x[1:], x[:-1]]))[0, 1]) < 4 / math.sqrt(20000)


def test_keys_in_another_place_are_other_keys():
    one, two = torch.arange(500), torch.arange(500) + 500
    assert len(set(torch.cat([uniform(one, two), uniform(two, one), uniform(one), uniform(0, one)]).tolist())) > 1990
    assert (uniform(1, one) != uniform(2, one)).all()


def test_the_ends_are_open(monkeypatch):
    for bits in (0, -1):
        monkeypatch.setattr("lightning_uncertainty._tensors.hash._hashed", lambda *keys, b=bits: torch.tensor(b))
        for dtype in (torch.float32, torch.float64):
            assert 0 < uniform(0, dtype=dtype).item() < 1
            assert normal(0, dtype=dtype).isfinite()


def test_float64_has_the_same_numbers():
    keys = torch.arange(1000)
    assert torch.equal(uniform(keys).double(), uniform(keys, dtype=torch.float64))
    torch.testing.assert_close(normal(keys).double(), normal(keys, dtype=torch.float64), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # inductor's own
def test_compiled_numbers_are_the_same(backend):
    keys = torch.arange(1000)
    compiled = torch.compile(lambda keys: (_hashed(7, keys), uniform(7, keys)), backend=backend, fullgraph=True)
    for found, expected in zip(compiled(keys), (_hashed(7, keys), uniform(7, keys)), strict=True):
        assert torch.equal(found, expected)


def test_numbers_on_the_host_are_the_same():
    rng = np.random.default_rng(0)
    rows, columns = rng.integers(-(2**63), 2**63 - 1, (50, 1)), rng.integers(-(2**63), 2**63 - 1, 40)
    for keys in ((7, rows), (rows, columns), (-(2**63), rows, columns), (rows, 2**63 - 1)):
        expected = uniform(
            *(key if isinstance(key, int) else torch.from_numpy(key) for key in keys), dtype=torch.float64
        )
        assert np.array_equal(uniform_on_host(*keys), expected.numpy())
