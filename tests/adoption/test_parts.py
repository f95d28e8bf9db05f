import pytest

from lightning_uncertainty.adoption import Call, Function, HostWeight, Logged

MSE = "torch.nn.functional.mse_loss"
ALIAS = "torch.nn.functional.F.mse_loss"


@pytest.mark.parametrize(
    ("first", "second", "overlap"),
    [
        (Logged("a"), Logged("a"), True),
        (Logged("a"), HostWeight("a"), False),
        (HostWeight("a['b']"), HostWeight('a["b"]'), True),
        (HostWeight("a[0]"), HostWeight("a[1]"), False),
        (Call("a"), Call("a", 1), True),
        (Call("a", 0), Call("a", 1), False),
        (Call("a", 0, "['x']"), Call("a", 0, '["x"]'), True),
        (Call("a", 0, "['x']"), Call("a", 0, "['y']"), False),
        (Function(MSE), Function(MSE, 2), True),
        (Function(MSE, 1), Function(MSE, 2), False),
        (Function("torch.sum"), Function("torch.mean"), False),
    ],
)
def test_what_may_be_the_same(first, second, overlap):
    assert first.overlaps(second) is overlap
    assert second.overlaps(first) is overlap
    assert first.overlaps(first)


@pytest.mark.parametrize("n", [-1, "0", 1.0])
@pytest.mark.parametrize("kind", [Call, Function])
def test_a_number_of_a_call_counts(kind, n):
    with pytest.raises(ValueError, match=r"number of a call should be 0, 1, ... or None for all: found"):
        kind("torch.sum", n)


@pytest.mark.parametrize("name", ["", "torch", "mse_loss", "torch.nn.functional.no_loss", "no.module", "torch.float32"])
def test_a_function_is_one_that_can_be_imported(name):
    with pytest.raises(ValueError, match="a function should be given by its dotted name"):
        Function(name)


def test_a_function_is_found():
    from torch.nn import functional as F

    assert Function(MSE).found() is F.mse_loss
    assert Function("torch.Tensor.mean").found() is __import__("torch").Tensor.mean


def test_paths_are_read_at_once():
    for kind, args in ((HostWeight, ("a[",)), (Call, ("a..b",)), (Call, ("a", 0, "[x]"))):
        with pytest.raises(ValueError, match="should be names with dots and indices"):
            kind(*args)
