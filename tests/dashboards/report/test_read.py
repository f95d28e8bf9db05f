"""A run reads the same whichever logger kept it, whole or half-written; what is no run is refused."""

import math
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.loggers import CSVLogger
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_uncertainty.dashboards import read_run
from lightning_uncertainty.dashboards.report._read import _read_columns, _read_csv


def test_three_loggers_of_one_fit_give_the_same_rows(fitted):
    runs, monitor = fitted
    exact, rounded, cloud = (read_run(runs[kind]) for kind in ("table", "board", "cloud"))
    assert list(exact.rows) == list(cloud.rows)
    assert len(exact.rows) == 16
    for row, other in zip(exact.rows, rounded.rows, strict=True):
        assert row.keys() == other.keys()
        assert all(math.isclose(row[key], other[key], rel_tol=1e-6, abs_tol=1e-7) for key in row)
    ours = [{key: row[key] for key in kept} for row, kept in zip(exact.rows, monitor.history.rows, strict=True)]
    assert ours == monitor.history.rows
    for run in (exact, rounded, cloud):
        assert sorted(run.tasks) == ["depth", "kind"]
        assert run.prefix == "uw/"
        assert run.likelihoods == {"depth": "gaussian", "kind": "categorical"}
        assert run.sigma_is["depth"] == "RMSE [label]"
        assert run.weighting.startswith("UncertaintyWeighting(")
        assert run.config["sizes"] == [4, 8]
        assert len(run.balanced["val"].values) == 4
        assert ("val", "kind", "MulticlassAccuracy") in run.held_out
    assert (exact.title, rounded.title, cloud.title) == ("table/version_0", "board/version_0", "birds")


@pytest.mark.parametrize("kind", ["table", "board", "cloud"])
def test_a_run_is_found_by_its_file_its_folder_and_the_folder_above(fitted, kind):
    folder = fitted[0][kind]
    run = read_run(str(folder))
    for file in {"table": "metrics.csv", "cloud": "*.wandb"}.get(kind, "events*"), "":
        path = next(folder.glob(file)) if file else folder.parent
        assert read_run(path).tasks == run.tasks
        assert read_run(path).title == run.title


def test_a_folder_above_several_runs_names_them(fitted):
    above = fitted[0]["table"].parents[1]
    with pytest.raises(ValueError, match=r"one run: found 3 in [^:]*: .*board/version_0, .*; give one of them"):
        read_run(above)


def test_of_two_loggers_in_one_folder_the_exact_one_is_read(fitted, tmp_path):
    for kind in ("board", "table"):
        shutil.copytree(fitted[0][kind], tmp_path / "both", dirs_exist_ok=True)
    assert list(read_run(tmp_path / "both").rows) == list(read_run(fitted[0]["table"]).rows)


def test_a_csv_that_is_being_written_is_read_to_its_last_whole_line(fitted, tmp_path):
    text = (fitted[0]["table"] / "metrics.csv").read_text()
    rows = list(read_run(fitted[0]["table"]).rows)
    (tmp_path / "metrics.csv").write_text(text[: text.rindex(",")][:-1])
    run = read_run(tmp_path)
    assert list(run.rows)[:-1] == rows[:-1]
    assert run.config == {}
    assert sorted(run.tasks) == ["depth", "kind"]


def test_a_number_that_may_not_be_whole_is_not_read(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,weight/a\n0,0.125\n1,0.1")
    assert list(read_run(tmp_path).rows) == [{"step": 0, "weight/a": 0.125}]


def test_what_lies_below_a_run_is_no_other_run(tmp_path):
    for folder, value in ((tmp_path, 1), (tmp_path / "below", 2)):
        folder.mkdir(exist_ok=True)
        (folder / "metrics.csv").write_text(f"step,weight/a\n0,{value}\n")
    assert read_run(tmp_path).rows[0]["weight/a"] == 1


@pytest.mark.parametrize("cut", [3, 200, 1000])
def test_a_crashed_tensorboard_or_wandb_run_is_read_as_far_as_it_goes(fitted, tmp_path, cut):
    for kind, name in (("board", "events.out.tfevents.*"), ("cloud", "*.wandb")):
        file = next(fitted[0][kind].glob(name))
        (tmp_path / file.name).write_bytes(file.read_bytes()[:-cut])
        whole, run = read_run(file), read_run(tmp_path / file.name)
        for key, curve in run.curves.items():
            assert whole.curves[key].values[: len(curve.values)] == curve.values
        assert len(run.rows) >= 12


def test_hyper_parameters_of_any_kind_are_read_as_plain_values(tmp_path):
    logger = CSVLogger(tmp_path, name="odd")
    logger.log_hyperparams({"shape": (3, 4), "where": Path("a/b"), "layer": nn.ReLU, "uncertainty": {"prefix": ""}})
    logger.log_metrics({"weight/depth": 1.0}, step=0)
    logger.save()
    assert "!!python" in (Path(logger.log_dir) / "hparams.yaml").read_text()
    config = read_run(logger.log_dir).config
    assert config["shape"] == [3, 4]
    assert "torch.nn" in config["layer"]
    assert config["where"] == ["a", "b"]
    assert config["uncertainty"] == {"prefix": ""}
    yaml.safe_dump(dict(config))  # plain all through
    (Path(logger.log_dir) / "hparams.yaml").write_text("lr: [1, 2")  # being written
    assert read_run(logger.log_dir).config == {}


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there should be a run at .*nowhere: found nothing; give the folder"):
        read_run(tmp_path / "nowhere")
    known = r"CSVLogger \(metrics.csv\), TensorBoardLogger \(events.out.tfevents.*\) or offline wandb"
    with pytest.raises(ValueError, match=rf"a run should be of {known}.*: found none in"):
        read_run(tmp_path)
    (tmp_path / "version_0").mkdir()
    (tmp_path / "version_0/hparams.yaml").touch()
    with pytest.raises(ValueError, match=r"a run should have rows: found none in .*version_0, whose fit has"):
        read_run(tmp_path)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match=rf"a run should be of {known}.*: found the file .*notes.txt"):
        read_run(tmp_path / "notes.txt")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a run with logged rows: found none"),
        ("step,weight/depth\r\n", "needs a run with logged rows: found none"),
        ("name,size\r\na,1\r\n", "needs a run with logged rows: found none"),
        ("step,lr,train_loss\r\n1,0.1,0.5\r\n", "UncertaintyMonitor, .* found lr, train_loss in"),
    ],
)
def test_a_run_that_is_empty_or_not_ours_is_refused(tmp_path, text, message):
    (tmp_path / "metrics.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_run(tmp_path)


def test_placeholders_of_tensorboard_are_left_out_and_nan_is_kept(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        for tag in ("hp_metric", "sigma_optimum/depth", "weight/depth"):
            writer.add_scalar(tag, float("nan"), 3)
    (row,) = read_run(tmp_path).rows
    assert row.keys() == {"step", "weight/depth"}
    assert math.isnan(row["weight/depth"])


def test_a_missing_tensorboard_names_the_extra(fitted, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(ModuleNotFoundError, match=r"event files needs tensorboard: pip install .*\[demo\]"):
        read_run(fitted[0]["board"])


CELLS = st.sampled_from(["", "nan", "inf", "-inf", "0", "-0.0", "1e-300", "3", "2.5"])


@given(st.lists(st.tuples(st.sampled_from(["", "0", "1", "7"]), CELLS, CELLS, CELLS), min_size=1, max_size=8))
def test_a_file_read_at_once_is_that_read_cell_by_cell(cells):
    with TemporaryDirectory() as folder:
        path = Path(folder) / "metrics.csv"
        for end in ("\r\n", "\n"):
            text = end.join(",".join((first, step, *rest)) for step, first, *rest in cells)
            path.write_text(f"a,step,weight/b,c{end}{text}{end}9,9,9", newline="")  # the last line is being written
            at_once, one_by_one = _read_columns(path), {}
            for step, values in _read_csv(path):
                one_by_one.setdefault(step, {}).update(values)
            expected = [{"step": step, **one_by_one[step]} for step in sorted(one_by_one) if one_by_one[step]]
            assert [repr(sorted(row.items())) for row in at_once] == [repr(sorted(row.items())) for row in expected]


@pytest.mark.parametrize(
    "text", ["step,a\n1,word\n2,3\n", "a\n1\n", "step,a\n1,2,3\n", 'step,"a"\n1,2\n', "step,a,a\n1,2,3\n"]
)
def test_a_file_of_more_than_numbers_is_read_cell_by_cell(text, tmp_path):
    (tmp_path / "metrics.csv").write_text(text)
    assert _read_columns(tmp_path / "metrics.csv") is None
