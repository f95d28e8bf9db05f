import os

os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests._launch import found, launches  # noqa: F401 - fixtures

torch.set_num_threads(1)
_BUSY = [HealthCheck.too_slow]  # which tells of the machine's other work
settings.register_profile("fast", max_examples=100, suppress_health_check=_BUSY)
settings.register_profile("whole", max_examples=500, suppress_health_check=_BUSY)
settings.load_profile("whole")

COSTLIEST = (  # first, so that no worker is left alone with one of them
    "test_ddp.py",
    "test_compile.py",
    "test_docs.py",
    "test_notebooks.py",
    "test_resume.py",
    "test_fsdp2.py",
    "test_fuzz.py",
    "test_commands.py",
    "test_properties.py",
    "test_warm_up.py",
    "test_gradient_conflict.py",
    "test_toy.py",
)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.pluginmanager.hasplugin("timeout") and config.option.timeout is None:
        config.option.timeout = 300


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Put the costliest files first, and mark what starts processes."""
    for item in items:
        if item.get_closest_marker("cells"):
            item.add_marker(pytest.mark.multiprocess)
            item.add_marker(pytest.mark.timeout(1500))  # a launch has its own limit, once it is its turn
    items.sort(key=lambda item: COSTLIEST.index(item.path.name) if item.path.name in COSTLIEST else len(COSTLIEST))


@pytest.fixture(autouse=True)
def _seeded(tmp_path, monkeypatch):
    """Every test starts from one seed, in an empty folder."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
