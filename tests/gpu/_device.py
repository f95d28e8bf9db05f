"""Where the tests for a GPU run: on one, or, with GPU_TESTS_DEVICE=cpu, rehearsed on the CPU by the ways of a GPU."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
REHEARSED = DEVICE == "cpu"
ACCELERATOR = "cpu" if REHEARSED else "gpu"
WAYS = {"reads_values": False, "waits": True}  # what the package asks of a device, and the answers of a GPU

THERE = torch.cuda.is_available()
for_gpu = [pytest.mark.gpu, pytest.mark.skipif(not (REHEARSED or THERE), reason="there is no GPU")]
only_gpu = [pytest.mark.gpu, pytest.mark.skipif(not THERE, reason="there is no GPU")]  # not to be rehearsed


@contextmanager
def ways_of_a_gpu() -> Iterator[None]:
    """Have the package take any device for a GPU."""
    modules = [module for name, module in sys.modules.items() if name.startswith("lightning_uncertainty")]
    with ExitStack() as patches:
        for module in modules:
            for name, answer in WAYS.items():
                if hasattr(module, name):
                    patches.enter_context(patch.object(module, name, lambda device, answer=answer: answer))
        yield


@contextmanager
def on_device() -> Iterator[None]:
    """What stands within runs on the device, or as if it did."""
    with ExitStack() as rehearsal:
        if REHEARSED:
            rehearsal.enter_context(ways_of_a_gpu())
        yield


def moved(values, device=DEVICE):
    """Return the tensors of a mapping or a sequence on the device."""
    if isinstance(values, dict):
        return {name: moved(value, device) for name, value in values.items()}
    if isinstance(values, list | tuple):
        return [moved(value, device) for value in values]
    return values.to(device)


# -- waiting -----------------------------------------------------------------------------------------------------------

ways_of_waiting = pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=only_gpu)])


@contextmanager
def on(device: str) -> Iterator[None]:
    """Have the package take meta, whose tensors have no values that could be read, for a GPU."""
    with ExitStack() as stack:
        if device == "meta":
            stack.enter_context(ways_of_a_gpu())
            stack.enter_context(patch.object(torch, "is_autocast_enabled", lambda device: False))  # knows no meta
            stack.enter_context(patch.object(torch, "autocast", lambda device, enabled: nullcontext()))
        yield


@contextmanager
def without_waiting(device: str) -> Iterator[None]:
    """Within, the host may neither read from the device nor copy to it.

    On "cuda" torch finds it out, and on "meta" we do, so that a machine without a GPU knows of most of it.
    """
    if device == "meta":
        with on(device), _NoTensorOfTheHost(), _NoTensorOfNumbers():
            yield
        return
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Synchronization debug mode is a prototype", category=UserWarning)
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _NoTensorOfTheHost(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs, found)) if isinstance(leaf, Tensor)]
        assert all(tensor.device.type != "cpu" for tensor in tensors), f"{func} has to do with the CPU: {tensors}"
        return found


class _NoTensorOfNumbers(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.tensor, Tensor.new_tensor), f"{args} is copied from the host"
        return func(*args, **(kwargs or {}))
