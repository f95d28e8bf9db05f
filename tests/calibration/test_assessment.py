"""How calibrated a model is: numbers against those of the metrics themselves, a table and a plot."""

import matplotlib
import pytest
import torch

from lightning_uncertainty import FixedWeighting, MultiTaskModule, Task, UncertaintyWeighting
from lightning_uncertainty.calibration import assess
from lightning_uncertainty.metrics import CRPS
from tests._nets import columns, dicts, trainer

matplotlib.use("Agg")


def fitted(weighting=None, **options):
    torch.manual_seed(0)
    tasks = {
        "depth": Task("gaussian", head=torch.nn.Linear(8, 1)),
        "kind": Task("categorical", head=torch.nn.Linear(8, 3)),
    }
    backbone = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5))
    net = MultiTaskModule(backbone, tasks, weighting or UncertaintyWeighting(), inputs="x", **options)
    trainer().fit(net, dicts())
    return net


def test_numbers_are_those_of_predict_tasks_over_the_observed_labels():
    net, table = fitted(), columns(missing=True)
    rows = assess(net, [{name: part[i : i + 8] for name, part in table.items()} for i in range(0, 32, 8)]).rows()
    prediction = net.predict_tasks(table["x"])
    seen = ~table["depth"].isnan()
    error = (prediction["depth"].mean[:, 0] - table["depth"])[seen]
    crps = CRPS()
    crps.update(prediction["depth"].mean[:, 0][seen], prediction["depth"].total[:, 0][seen], table["depth"][seen])
    assert rows["depth"]["crps"] == pytest.approx(crps.compute().item(), rel=1e-5)
    assert rows["depth"]["sharpness"] == pytest.approx(net.sigma()["depth"])
    assert rows["depth"]["coverage_90"] == pytest.approx((error.abs() <= 1.6449 * net.sigma()["depth"]).float().mean())
    assert rows["depth"]["labels"] == int(seen.sum())
    assert rows["kind"]["labels"] == int((table["kind"] >= 0).sum())


def test_samples_pass_through_and_widen_the_intervals():
    net, batches = fitted(), list(dicts())
    one, many = (assess(net, batches, samples=samples).rows()["depth"]["sharpness"] for samples in (1, 8))
    assert many > one


def test_the_table_and_the_plot_have_every_task():
    found = assess(fitted(), dicts())
    assert all(word in str(found) for word in ("depth", "kind", "coverage_90", "crps", "ece", "labels"))
    assert "coverage_10" not in str(found)
    assert [panel.get_title() for panel in found.plot().axes] == ["depth", "kind"]


def test_tasks_without_sigma_are_left_out():
    net = fitted(FixedWeighting())
    with pytest.warns(UserWarning, match="the aleatoric uncertainty of depth is NaN, as no σ is known"):
        assert assess(net, dicts()).rows().keys() == {"kind"}
