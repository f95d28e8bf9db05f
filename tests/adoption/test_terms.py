import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_uncertainty.adoption._naming import as_part
from lightning_uncertainty.adoption._terms import losses_alone, terms_of
from lightning_uncertainty.adoption._watch import Plan, Watch

KINDS = {"log": ("log:a", "log:b"), "weight": ("weight:w[0]", "weight:w[1]"), "mixed": ("log:a", "weight:w[1]")}
NUMBERS = st.floats(0.1, 10)


class Host(nn.Module):
    def __init__(self, first=1.0, second=1.0):
        super().__init__()
        self.w = [first, second]
        self.a, self.b = nn.Parameter(torch.tensor(3.0).double()), nn.Parameter(torch.tensor(5.0).double())
        self.learnt = nn.Parameter(torch.tensor(0.5).double())


def taken(host, kind, total, check=True):
    numbers = {}
    with Watch(host, Plan(dict(zip("ab", map(as_part, KINDS[kind]), strict=True)))) as watch:
        a, b = host.a * 2, host.b * 3
        watch.see_logged("a", a)
        watch.see_logged("b", b)
        made = total(host, a, b)
    terms = terms_of(
        made, watch, remainder=True, check=check, expected=lambda *found: numbers.update(enumerate(found)) is None
    )
    return terms, numbers, watch


@given(NUMBERS, NUMBERS, st.sampled_from(sorted(KINDS)))
def test_losses_and_weights_of_a_sum(first, second, kind):
    host = Host(first, second)
    terms, numbers, _ = taken(host, kind, lambda host, a, b: a * host.w[0] + host.w[1] * b)
    assert [terms.losses[name].item() for name in "ab"] == [6, 15]
    assert torch.allclose(
        torch.stack([terms.weights[name].detach() for name in "ab"]), torch.tensor([first, second]).double()
    )
    assert numbers[3] == 0
    assert abs(terms.rest.item()) < 1e-12
    for name, loss in terms.losses.items():
        parameter = getattr(host, name)
        assert torch.autograd.grad(loss, parameter, retain_graph=True)[0] == {"a": 2, "b": 3}[name]


NOT_SUMS = {
    "product": lambda host, a, b: a * host.w[0] * b * host.w[1],
    "geometric mean": lambda host, a, b: (a * host.w[0] * b * host.w[1]).sqrt(),
    "norm": lambda host, a, b: (a.square() * host.w[0] ** 2 + b.square() * host.w[1] ** 2).sqrt(),
    "logsumexp": lambda host, a, b: torch.stack([a * host.w[0], b * host.w[1]]).logsumexp(0),
    "square": lambda host, a, b: a * host.w[0] + (b * host.w[1]).square(),
    "ratio": lambda host, a, b: a * host.w[0] / (b * host.w[1]),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NOT_SUMS)
def test_what_is_no_sum_is_refused(name, kind):
    with pytest.raises(RuntimeError, match="should be a weighted sum of its parts: found a second derivative"):
        taken(Host(), kind, NOT_SUMS[name])
    terms, numbers, _ = taken(Host(), kind, NOT_SUMS[name], check=False)  # it reads nothing
    assert terms is not None
    assert numbers == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_maximum_has_a_weight_of_zero(kind):
    _, numbers, _ = taken(Host(), kind, lambda host, a, b: torch.maximum(a * host.w[0], b * host.w[1]))
    _, losses, weights, _ = numbers.values()
    assert weights.get("a") == 0 or losses["a"] == 0 or "a" not in losses


def test_the_rest_is_what_no_part_explains():
    _, numbers, _ = taken(Host(), "log", lambda host, a, b: a + 2 * b + 7)
    assert numbers[3] == pytest.approx(7)
    _, numbers, _ = taken(Host(), "log", lambda host, a, b: a + b + 1e-9 * host.learnt)  # a small one is one, too
    assert numbers[3] == pytest.approx(5e-10, rel=1e-3)
    _, numbers, _ = taken(Host(), "log", lambda host, a, b: 0.1 * a + 0.3 * b)
    assert numbers[3] == 0


def test_weights_that_the_host_trains_are_told():
    with pytest.raises(RuntimeError, match="should be constants: found that the host trains those of a"):
        taken(Host(), "log", lambda host, a, b: host.learnt.exp() * a + b - host.learnt)


def test_a_part_that_is_seen_several_times_is_their_mean_by_weight():
    host = Host()
    with Watch(host, Plan({"a": as_part("log:a")})) as watch:
        a = [host.a * factor for factor in (1.0, 2.0)]
        for each in a:
            watch.see_logged("a", each)
    assert losses_alone(watch) is None
    terms = terms_of(1.0 * a[0] + 3.0 * a[1], watch, remainder=False, check=True, expected=lambda *found: True)
    assert terms.losses["a"].item() == (1 * 3 + 3 * 6) / 4
    assert terms.weights["a"].item() == 4


def test_a_total_without_parts_or_graph_has_no_terms():
    host = Host()
    assert taken(host, "log", lambda host, a, b: host.learnt * 2)[0] is None
    assert taken(host, "log", lambda host, a, b: torch.tensor(2.0))[0] is None


@pytest.mark.parametrize("total", [lambda host, a, b: torch.stack([a, b]), lambda host, a, b: 3.0])
def test_a_total_is_one_number(total):
    with pytest.raises(RuntimeError, match=r"the loss of a host's step should be one number: found (shape|a float)"):
        taken(Host(), "log", total)


def test_checking_draws_no_random_number():
    before = torch.get_rng_state()
    taken(Host(), "weight", lambda host, a, b: a * host.w[0] + b * host.w[1])
    assert torch.equal(torch.get_rng_state(), before)
