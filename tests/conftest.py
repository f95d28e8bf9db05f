import os

os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("WANDB_SILENT", "true")
os.environ.setdefault("MPLBACKEND", "agg")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded(tmp_path, monkeypatch):
    """Every test starts from one seed, in an empty folder."""
    torch.manual_seed(0)
    monkeypatch.chdir(tmp_path)
