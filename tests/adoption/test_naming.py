from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lightning_uncertainty.adoption import Call, Function, HostWeight, Logged
from lightning_uncertainty.adoption._naming import as_part, as_parts

MSE = "torch.nn.functional.mse_loss"
PARTS = [
    Logged("train/a:b@0"),
    HostWeight("outputs[0].weights['a:b']"),
    Call("criterion"),
    Call("losses[0].of", 2),
    Call("criterion", None, "['a']"),
    Call("criterion", 1, ".found['a'].b[0]"),
    Function(MSE),
    Function(MSE, 12),
]


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_a_part_is_what_its_string_says(part):
    assert as_part(str(part)) == part
    assert as_part(part) is part


@pytest.mark.parametrize(
    "given", ["depth_loss", "", "log:", "key:a", ":a", 3, None, "call:a@", "call:a@x", f"function:{MSE}@0['a']"]
)
def test_what_names_no_part_is_told(given):
    with pytest.raises(ValueError, match=r"(a part should be named by its kind|after @ a part should have).*: found"):
        as_part(given)


def test_weights_for_all_are_one_for_each():
    expected = {"a": HostWeight("w[0]"), "b": HostWeight("w[1]")}
    assert as_parts("weight:w", ["a", "b"], None) == as_parts(HostWeight("w"), ["a", "b"], None) == expected
    assert as_parts("weight:w", ["a", "rest", "b"], "rest") == expected


def test_the_weight_of_one_task_alone_may_be_a_number():
    host = SimpleNamespace(w=0.5, one=torch.tensor(2.0), several=[0.5], row=torch.ones(1), count=np.float32(2))
    for path in ("w", "one", "count", "several[0]"):
        assert as_parts(f"weight:{path}", ["a", "b"], "b", host) == {"a": HostWeight(path)}
    for path in ("several", "row", "late"):
        assert as_parts(f"weight:{path}", ["a"], None, host) == {"a": HostWeight(f"{path}[0]")}
    assert as_parts("weight:w", ["a", "b"], None, host) == {"a": HostWeight("w[0]"), "b": HostWeight("w[1]")}


@pytest.mark.parametrize("weights", [[0.5, 0.5, 1.0], (0.5,), torch.ones(1, 3)])
def test_weights_for_all_are_as_many_as_the_tasks(weights):
    host = SimpleNamespace(w=weights)
    with pytest.raises(
        ValueError, match=r"a weight for each \(a, b\): found [13] there; name those .* \{'a': 'weight:w\[0\]'\}"
    ):
        as_parts("weight:w", ["a", "b"], None, host)
    assert as_parts({"a": "weight:w[0]"}, ["a", "b"], "b", host) == {"a": HostWeight("w[0]")}


def test_two_weights_are_not_one_tasks():
    with pytest.raises(ValueError, match=r"should have a weight for each \(a\): found 2 there"):
        as_parts("weight:w", ["a"], None, SimpleNamespace(w=torch.ones(2)))


@pytest.mark.parametrize("given", [{}, {"a": "log:a"}, {"a": "log:a", "b": "log:b", "c": "log:c"}, None, ["log:a"]])
def test_every_task_has_a_part(given):
    with pytest.raises(ValueError, match=r"every task should have a part \(a, b\): found .*; give parts by task"):
        as_parts(given, ["a", "b"], None)


def test_the_rest_has_none():
    assert as_parts({"a": "log:a"}, ["a", "b"], "b") == {"a": Logged("a")}
    with pytest.raises(ValueError, match=r"every task should have a part \(a, as 'b' is the rest\): found a, b"):
        as_parts({"a": "log:a", "b": "log:b"}, ["a", "b"], "b")


def test_a_part_is_one_tasks():
    with pytest.raises(ValueError, match="a part should be one task's: found 'call:c' for 'a' and 'call:c@1' for 'b'"):
        as_parts({"a": "call:c", "b": "call:c@1"}, ["a", "b"], None)
    with pytest.raises(ValueError, match="one part for all tasks should be a tensor or list of weights"):
        as_parts("log:a", ["a", "b"], None)
