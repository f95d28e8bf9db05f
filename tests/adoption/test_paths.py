import dataclasses
from collections import namedtuple
from contextlib import suppress

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_uncertainty.adoption._paths import fetch, keys_of, replaced, split_at_value

NAMES = st.from_regex(r"[A-Za-z_]\w{0,5}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_characters="'\"[]", codec="ascii"), max_size=5)
KEYS = st.tuples(st.just(True), st.integers(-9, 9) | TEXTS) | st.tuples(st.just(False), NAMES)


@given(NAMES, st.lists(KEYS, max_size=4))
def test_a_path_is_read_key_by_key(first, rest):
    path = first + "".join(f"[{key!r}]" if item else f".{key}" for item, key in rest)
    if "\\" not in path:
        assert keys_of(path, "it") == ((False, first), *rest)


@pytest.mark.parametrize("path", ["", ".", "a..b", "a[", "a[b]", "a[0", "a.[0]", "a b", "a['x']y", "a[0.5]", "[0]x"])
def test_what_is_no_path_is_refused(path):
    with pytest.raises(ValueError, match="it should be names with dots and indices"):
        keys_of(path, "it")


Pair = namedtuple("Pair", "near far")


@dataclasses.dataclass(frozen=True)
class Frozen:
    value: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: float = 1.0


class Typed:
    """As a configuration that looks at the type of what it is given."""

    def __init__(self):
        self.value = 1.0

    def __setattr__(self, name, value):
        if not isinstance(value, float):
            raise TypeError(f"{name} should be a float")
        super().__setattr__(name, value)


class Owner(nn.Module):
    by_class = 1.0

    def __init__(self):
        super().__init__()
        self.number, self.list, self.dict = 1.0, [0.0, [1.0]], {"a.b": 1.0}
        self.pair, self.triple = Pair(0.0, 1.0), (0.0, 0.0, 1.0)
        self.register_buffer("buffer", torch.ones(()))
        self.frozen_parameter = nn.Parameter(torch.ones(()), requires_grad=False)
        self.child = nn.ModuleList([nn.Identity()])
        self.child[0].number = 1.0
        self.frozen, self.slotted, self.typed = Frozen(), Slotted(), Typed()

    @property
    def computed(self):
        return 1.0


WAYS = [
    *("number", "list[1][0]", "list[-1][0]", "dict['a.b']", "pair.far", "pair[1]", "triple[2]", "by_class", "buffer"),
    *("frozen_parameter", "child[0].number", "child.0.number", "frozen.value", "typed.value"),
]


@pytest.mark.parametrize("path", WAYS)
def test_a_value_is_replaced_and_stands_there_again(path):
    owner = Owner()
    keys = keys_of(path, "it")
    before, names = fetch(owner, keys, "it"), set(vars(owner))
    value = torch.zeros(())
    with suppress(ZeroDivisionError), replaced(owner, keys, value, "it"):
        assert fetch(owner, keys, "it") is value
        1 / 0  # noqa: B018
    assert fetch(owner, keys, "it") is before
    assert set(vars(owner)) == names
    assert isinstance(owner.pair, Pair)


@pytest.mark.parametrize("path", ["slotted.value", "computed"])
def test_an_owner_that_cannot_be_written_into_is_told(path):
    with (
        pytest.raises(RuntimeError, match="it should have an owner that can be written into: found a "),
        replaced(Owner(), keys_of(path, "it"), torch.zeros(()), "it"),
    ):
        pass


@pytest.mark.parametrize("path", ["nothing", "list[7]", "dict['b']", "number[0]", "number.more"])
def test_a_path_that_leads_to_nothing_is_told(path):
    with pytest.raises(RuntimeError, match=r"it should lead to something in the host: found no .*describe"):
        fetch(Owner(), keys_of(path, "it"), "it")


def test_a_path_ends_at_a_tensor():
    owner = Owner()
    owner.vector = torch.ones(1, 2)
    keys = keys_of("vector[0][1]", "it")
    assert split_at_value(owner, keys, "it") == (keys[:1], keys[1:])
    assert split_at_value(owner, keys_of("number", "it"), "it") == (keys_of("number", "it"), ())


class Attributes(dict):
    """As Lightning's hyper-parameters: values that can be had as attributes, and are none."""

    __getattr__, __setattr__ = dict.__getitem__, dict.__setitem__


@dataclasses.dataclass(slots=True)
class Slots:
    value: float = 1.0


class Computed:
    def __init__(self):
        self.kept = 1.0

    @property
    def value(self):
        return self.kept

    @value.setter
    def value(self, value):
        self.kept = value


@pytest.mark.parametrize("kind", [lambda: Attributes(value=1.0), Slots, Computed])
def test_owners_that_keep_values_elsewhere_keep_them(kind):
    owner = kind()
    for _ in range(2):
        with replaced(owner, keys_of("value", "it"), torch.zeros(()), "it"):
            assert owner.value == 0
        assert owner.value == 1.0
        assert isinstance(owner.value, float)


def test_what_the_program_makes_of_a_value_meanwhile_stays():
    owner = Owner()
    buffer = torch.full((), 2.0).requires_grad_()
    for path, value in (("number", torch.ones(()).requires_grad_()), ("buffer", buffer)):
        keys = keys_of(path, "it")
        with replaced(owner, keys, value, "it"):
            setattr(owner, path, fetch(owner, keys, "it") * 0.5)
    assert owner.number == 0.5
    assert isinstance(owner.number, float)
    assert owner.buffer.item() == 1.0
    assert not owner.buffer.requires_grad
    with replaced(owner, keys_of("buffer", "it"), torch.ones(()).requires_grad_(), "it"), torch.no_grad():
        owner.buffer.mul_(0.25)
    assert owner.buffer.item() == 0.25
    with replaced(owner, keys_of("number", "it"), torch.ones(()), "it"):
        owner.number = 7.0
    assert owner.number == 7.0


def test_parameters_in_lists_are_replaced_and_stay_parameters():
    owner = nn.Module()
    owner.list = nn.ParameterList([nn.Parameter(torch.ones(()), requires_grad=False)])
    owner.dict = nn.ParameterDict({"a": nn.Parameter(torch.ones(()), requires_grad=False)})
    for path in ("list[0]", "list[-1]", "dict['a']"):
        keys = keys_of(path, "it")
        before = fetch(owner, keys, "it")
        with replaced(owner, keys, value := torch.zeros(()), "it"):
            assert fetch(owner, keys, "it") is value
        assert fetch(owner, keys, "it") is before


@pytest.mark.parametrize(
    ("path", "found"),
    [
        ("dict['a']", "no index 'a' in a dict that has 'a.b';"),
        ("many['a']", "that has 'k0', 'k1', 'k2', 'k3', 'k4', 'k5', 'k6', 'k7' and 4 more;"),
        ("none[0]", "no index 0 in a dict that is empty;"),
        ("list[2]", "no index 2 in a list of 2;"),
        ("child[3]", "no index 3 in a ModuleList of 1;"),
        ("buffer[1]", r"no index 1 in a Tensor of shape \[\];"),
        ("bufer", "no attribute 'bufer' in a Owner that has 'buffer'"),
        ("zzz", "no attribute 'zzz' in a Owner; `describe`"),
    ],
)
def test_where_a_key_leads_to_nothing_what_is_there_is_named(path, found):
    owner = Owner()
    owner.many, owner.none = {f"k{place}": 0.0 for place in range(12)}, {}
    with pytest.raises(RuntimeError, match=found):
        fetch(owner, keys_of(path, "it"), "it")
