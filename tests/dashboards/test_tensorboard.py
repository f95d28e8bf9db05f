"""TensorBoard's layout."""

import re
from types import SimpleNamespace

from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_uncertainty.dashboards import tensorboard_layout
from lightning_uncertainty.dashboards.charts import KINDS
from lightning_uncertainty.dashboards.loggers import log_config
from lightning_uncertainty.dashboards.tensorboard import log_tensorboard_layout, sigma_optima
from tests.dashboards._config import CONFIG


def test_the_layout_shows_all_tasks_in_one_chart_and_each_sigma_beside_its_optimum():
    layout = tensorboard_layout(["depth", "kind"], prefix="u.")
    assert list(layout) == ["Uncertainty weighting", "σ and its optimum"]
    charts = layout["Uncertainty weighting"]
    assert list(charts) == [*KINDS.values(), "held-out loss"]
    for kind, title in KINDS.items():
        form, patterns = charts[title]
        assert form == "Multiline"
        keys = [f"u.{other}/{task}" for other in KINDS for task in ("depth", "kind", "depth_2")]
        found = {key for key in [*keys, f"ux{kind}/depth"] if any(re.match(pattern, key) for pattern in patterns)}
        assert found == {f"u.{kind}/depth", f"u.{kind}/kind"}  # TensorBoard uses re.match, too
    assert charts["held-out loss"][1] == ["^val/depth/loss$", "^val/kind/loss$"]
    bands = [tags for _, tags in layout["σ and its optimum"].values()]
    assert bands == [[f"u.sigma/{t}", f"u.sigma/{t}", f"u.sigma_optimum/{t}"] for t in ("depth", "kind")]


def test_the_layout_leaves_out_what_a_run_does_not_have():
    layout = tensorboard_layout(["depth"], sigma=False, held_out=None)
    assert {name: list(charts) for name, charts in layout.items()} == {
        "Uncertainty weighting": [KINDS["weight"], KINDS["loss_share"], KINDS["loss"]]
    }


def test_the_layout_has_sigma_of_tasks_that_have_one():
    layout = tensorboard_layout(["depth", "mass"], sigma=["mass"])
    charts = layout["Uncertainty weighting"]
    assert charts[KINDS["sigma"]] == ["Multiline", ["^sigma/mass$"]]
    assert charts[KINDS["sigma_gap"]] == ["Multiline", ["^sigma_gap/mass$"]]
    assert charts[KINDS["weight"]] == ["Multiline", ["^weight/depth$", "^weight/mass$"]]
    assert [tags[0] for _, tags in layout["σ and its optimum"].values()] == ["sigma/mass"]
    assert tensorboard_layout(["depth"], sigma=[]) == tensorboard_layout(["depth"], sigma=False)


def test_the_layout_is_written_with_the_prefix_of_the_logger(tmp_path):
    logger = TensorBoardLogger(tmp_path, prefix="fold.0")
    assert log_tensorboard_layout(logger, ["depth"], prefix="u/", sigma=True, held_out=True)
    logger.log_metrics({"u/sigma/depth": 1.0, "val/depth/loss": 2.0}, step=0)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    layout = layout_pb2.Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    patterns = {chart.title: chart.multiline.tag for chart in layout.category[0].chart}
    for title in ("σ", "held-out loss"):
        assert [tag for tag in events.Tags()["scalars"] if re.match(patterns[title][0], tag)]
    assert layout.category[1].chart[0].margin.series[0].upper == "fold.0-u/sigma_optimum/depth"


def test_loggers_without_custom_scalars_get_no_layout(tmp_path, monkeypatch):
    options = {"prefix": "", "sigma": True, "held_out": True}
    assert not log_tensorboard_layout(CSVLogger(tmp_path), ["depth"], **options)
    assert not log_tensorboard_layout(SimpleNamespace(), ["depth"], **options)
    log_tensorboard_layout(DummyLogger(), ["depth"], **options)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    board = TensorBoardLogger(tmp_path / "rank1")
    log_tensorboard_layout(board, ["depth"], **options)
    log_config(board, CONFIG)
    assert not (tmp_path / "rank1").exists()


def test_the_optimum_follows_from_sigma_and_its_gap():
    assert sigma_optima({"a": 3.0, "b": 1.0}, {"a": 0.5, "b": -0.5}) == {"a": 2.0, "b": 2.0}
    assert sigma_optima({"vanished": 1e-40}, {"vanished": -1.0}) == {}  # the optimum is beyond all numbers
