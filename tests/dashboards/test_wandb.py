"""Dashboards: what wandb's server and TensorBoard's plugin are handed, read back from the other side."""

import importlib
import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import pytest
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.loggers.logger import DummyLogger, Logger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2

from lightning_uncertainty.dashboards import save_wandb_workspace, tensorboard_layout, wandb_workspace
from lightning_uncertainty.dashboards.charts import KINDS
from lightning_uncertainty.dashboards.loggers import log_config
from lightning_uncertainty.dashboards.tensorboard import log_tensorboard_layout, sigma_optima
from lightning_uncertainty.dashboards.wandb import log_task_table

TASKS = {"depth": ["MeanAbsoluteError", "MeanSquaredError"], "kind": []}
CONFIG = {"uncertainty": {"weighting": "UncertaintyWeighting()", "sigma_is": {"depth": "RMSE [label]"}}}


def specification(workspace):
    """What `save` sends, as the server reads it."""
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels(section):
    (own,) = section["panelBankConfig"]["sections"][:1]
    return {panel["config"]["chartTitle"]: panel["config"] for panel in own["panels"]}


# -- wandb -------------------------------------------------------------------------------------------------------------


def test_the_workspace_holds_every_key_in_a_chart_of_all_tasks():
    section = specification(wandb_workspace("me", "scenes", TASKS, prefix="u/", name="Birds"))
    own = section["panelBankConfig"]["sections"][0]
    assert (own["name"], own["isOpen"], own["pinned"]) == ("Birds", True, True)
    assert {panel["viewType"] for panel in own["panels"]} == {"Run History Line Plot"}
    charts = panels(section)
    expected = {f"u/{kind}/{task}" for kind in KINDS for task in TASKS} | {f"val/{task}/loss" for task in TASKS}
    metrics = {f"val/depth/{metric}" for metric in TASKS["depth"]}
    shown = [key for chart in charts.values() for key in chart["metrics"]]
    assert sorted(shown) == sorted(expected | metrics | {"val/balanced_loss"})  # each once
    assert all(len(chart["metrics"]) == 2 for title, chart in charts.items() if "balanced" not in title)
    assert {chart["xAxis"] for chart in charts.values()} == {section["settings"]["xAxis"]} == {"trainer/global_step"}
    logarithmic = {title for title, chart in charts.items() if chart.get("yLogScale")}
    assert logarithmic == {"σ", "effective weight", "loss", "held-out loss"}
    assert {title for title, chart in charts.items() if chart.get("plotType") == "pct-area"} == {"share of the weight"}
    assert section["settings"]["shouldAutoGeneratePanels"]


def test_a_list_of_tasks_gives_a_workspace_without_metrics():
    assert len(panels(specification(wandb_workspace("me", "scenes", ["depth", "kind"])))) == len(KINDS) + 2


@pytest.mark.parametrize("build", [lambda tasks: wandb_workspace("me", "scenes", tasks), tensorboard_layout])
@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "tasks should be at least one: found none"),
        ({}, "tasks should be at least one: found none"),
        ("depth", r"tasks should be a list of names: found the text 'depth'; write \['depth'\]"),
        (["depth", "kind", "depth"], "tasks should be named once each: found 'depth' twice"),
        (["depth", ""], "a task should be given by its name: found ''"),
        ([3], "a task should be given by its name: found 3"),
        ({"depth": "Error"}, "the metrics of task 'depth' should be a list of names: found the text 'Error'"),
    ],
)
def test_task_names_are_checked(build, tasks, message):
    with pytest.raises(ValueError, match=message):
        build(tasks)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(ModuleNotFoundError, match=r"needs wandb-workspaces: pip install .*\[workspace\]"):
        save_wandb_workspace("me", "scenes", TASKS)


@contextmanager
def wandb_server():
    """A wandb that knows the entity `me` alone, on this machine; yields its address and what it was asked to save."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = {"data": {"viewer": {"id": "1", "entity": "me", "username": "me", "teams": {"edges": []}}}}
            if "upsertView" in request["query"]:
                asked.append(request)
                view = {"id": "Vmlldzox", "name": request["variables"]["name"]}
                answer = {"data": {"upsertView": {"view": view, "inserted": True}}}
                if request["variables"]["entityName"] != "me":
                    answer = {"data": {"upsertView": None}, "errors": [{"message": "could not find entity"}]}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


SAVE = """
import os
from lightning_uncertainty.dashboards import save_wandb_workspace

for entity, key in [("me", ""), ("me", "a" * 40), ("nobody", "a" * 40)]:
    os.environ.update({"WANDB_API_KEY": key} if key else {})
    try:
        print(save_wandb_workspace(entity, "scenes", {"depth": ["MeanAbsoluteError"], "kind": []}, prefix="u/"))
    except RuntimeError as error:
        print(type(error.__cause__).__name__, error, sep="|")
"""


def save(address, home):
    """Run SAVE as a user with this home would; return what it prints, by line."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}  # WANDB_SERVICE too
    own = {"WANDB_BASE_URL": address, "WANDB_ERROR_REPORTING": "false", "HOME": str(home), "NETRC": str(home / "netrc")}
    environment = {**clean, **own, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    told = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": True, "timeout": 250}
    return subprocess.run([sys.executable, "-c", SAVE], env=environment, **told).stdout.splitlines()


@pytest.mark.slow
def test_saving_sends_the_view_to_the_server_and_says_what_a_refusal_means(tmp_path):
    with wandb_server() as (address, asked):
        anonymous, saved, refused = save(address, tmp_path)
    request, other = asked
    variables = request["variables"]
    assert "upsertView(" in request["query"]
    assert (variables["entityName"], variables["projectName"], variables["type"]) == ("me", "scenes", "project-view")
    assert variables["displayName"] == "Uncertainty weighting"
    assert other["variables"]["entityName"] == "nobody"
    sent = panels(json.loads(variables["spec"])["section"])
    assert sent["σ"]["metrics"] == ["u/sigma/depth", "u/sigma/kind"]
    assert sent["held-out depth"]["metrics"] == ["val/depth/MeanAbsoluteError"]
    assert saved == f"{address}/me/scenes?nw={variables['name'].removeprefix('nw-').removesuffix('-v')}"
    cause, sentence = refused.split("|")
    assert cause.endswith("Error")
    assert "wandb should take the workspace for nobody/scenes: found a refusal" in sentence
    assert "could not find entity" in sentence
    cause, sentence = anonymous.split("|")
    assert cause == "UsageError"
    assert sentence.startswith("saving a wandb workspace needs an account: found none")
    assert sentence.endswith("run `wandb login` or set WANDB_API_KEY")


@pytest.mark.parametrize("experiment", [None, SimpleNamespace(log=print), "no attribute"])
def test_only_a_wandb_run_gets_a_table(experiment):
    importlib.import_module("wandb")  # before it is imported no logger is asked at all
    given = []
    logger = SimpleNamespace(log_table=lambda *args, **kwargs: given.append(args))
    if experiment != "no attribute":
        logger.experiment = experiment
    log_task_table(logger, "tasks", ["task"], [["depth"]])
    assert given == []


# -- TensorBoard -------------------------------------------------------------------------------------------------------


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
        "Uncertainty weighting": [KINDS["weight"], KINDS["weight_share"], KINDS["loss"]]
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


# -- any logger --------------------------------------------------------------------------------------------------------


class Flat(Logger):
    """Takes parameters as MLflow does: flat, short, and never another value under a key."""

    name, version = "flat", 0

    def __init__(self):
        super().__init__()
        self.parameters = {}

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params):
        stack = [((key,), value) for key, value in params.items()]
        while stack:
            path, value = stack.pop()
            if isinstance(value, dict):
                stack += [((*path, key), inner) for key, inner in value.items()]
                continue
            key = "/".join(path)
            assert re.fullmatch(r"[\w. /-]+", key)
            assert self.parameters.setdefault(key, str(value)) == str(value)


def test_config_goes_to_loggers_that_flatten_and_hold_fast():
    logger = Flat()
    for _ in range(2):
        log_config(logger, CONFIG)
    assert logger.parameters == {
        "uncertainty/weighting": "UncertaintyWeighting()",
        "uncertainty/sigma_is/depth": "RMSE [label]",
    }


def test_config_stands_beside_what_is_there_and_tensorboard_gets_no_scalar(tmp_path):
    board = TensorBoardLogger(tmp_path)
    board.log_hyperparams({"width": 3}, metrics={})
    log_config(board, CONFIG)
    board.log_hyperparams({"depth": 2}, metrics={})
    assert board.hparams == {"width": 3, **CONFIG, "depth": 2}
    board.log_metrics({"loss": 1.0}, step=0)
    board.finalize("success")
    events = EventAccumulator(board.log_dir)
    events.Reload()
    assert events.Tags()["scalars"] == ["loss"]
