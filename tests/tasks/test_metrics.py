import torch
from torchmetrics import MeanAbsoluteError

from lightning_uncertainty.tasks import Task
from lightning_uncertainty.tasks.metrics import TaskMetrics


def test_what_metrics_start_from_survives_memory_that_is_not_filled():
    mine = MeanAbsoluteError()
    with torch.device("meta"):
        metrics = TaskMetrics({"depth": Task("gaussian", metrics=mine)}, [0.5])
    metrics._apply(lambda tensor: torch.full_like(tensor, 7, device="cpu"))  # as to_empty may leave it
    for key, values in [("loss", (torch.tensor(6.0), torch.tensor(2.0))), ("MeanAbsoluteError", (torch.ones(2),) * 2)]:
        metric = metrics[f"val/depth/{key}"]
        metric.reset()
        metric.update(*values)
    assert metrics["val/depth/loss"].compute() == 3.0
    assert metrics["val/depth/MeanAbsoluteError"].compute() == 0.0
    assert metrics["val/depth/MeanAbsoluteError"].labels == 2
