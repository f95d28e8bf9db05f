"""wandb's saved view and table."""

import importlib
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest
import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.loggers import WandbLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_uncertainty import GradientConflictMonitor, PredictionImages, UncertaintyMonitor, adopt
from lightning_uncertainty.dashboards import save_wandb_workspace, tensorboard_layout, wandb_workspace
from lightning_uncertainty.dashboards.charts import KINDS
from lightning_uncertainty.dashboards.wandb import log_comparison, log_task_table
from tests._nets import Owning, dicts, trainer
from tests._wandb_reader import history
from tests.callbacks._shapes import Shapes, scenes

TASKS = {"depth": ["MeanAbsoluteError", "MeanSquaredError"], "kind": []}


def specification(workspace):
    """What `save` sends, as the server reads it."""
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels(section):
    (own,) = section["panelBankConfig"]["sections"][:1]
    return {panel["config"]["chartTitle"]: panel["config"] for panel in own["panels"]}


def test_the_workspace_holds_every_key_in_a_chart_of_all_tasks():
    section = specification(wandb_workspace("me", "scenes", TASKS, prefix="u/", name="Birds"))
    own, *folded = section["panelBankConfig"]["sections"][:4]
    assert (own["name"], own["isOpen"], own["pinned"]) == ("Birds", True, True)
    assert [(other["isOpen"], other["pinned"]) for other in folded] == [(False, False)] * 3
    assert {panel["viewType"] for panel in own["panels"]} == {"Run History Line Plot"}
    charts = panels(section)
    expected = {f"u/{kind}/{task}" for kind in KINDS for task in TASKS} | {f"val/{task}/loss" for task in TASKS}
    metrics = {f"val/depth/{metric}" for metric in TASKS["depth"]}
    shown = [key for chart in charts.values() for key in chart["metrics"]]
    assert sorted(shown) == sorted(expected | metrics | {"val/balanced_loss"})  # each once
    assert all(len(chart["metrics"]) == 2 for title, chart in charts.items() if "balanced" not in title)
    assert {chart["xAxis"] for chart in charts.values()} == {section["settings"]["xAxis"]} == {"trainer/global_step"}
    logarithmic = {title for title, chart in charts.items() if chart.get("yLogScale")}
    assert logarithmic == {"σ", "effective weight"}  # a loss may be negative, and wandb would leave it out
    every = specification(wandb_workspace("me", "scenes", TASKS, log=["loss"]))
    logarithmic = {title for title, chart in panels(every).items() if chart.get("yLogScale")}
    assert logarithmic == {"loss", "held-out loss"}
    with pytest.raises(ValueError, match="log should be of sigma, weight, loss: found sigma_gap"):
        wandb_workspace("me", "scenes", TASKS, log=["sigma_gap"])
    assert {title for title, chart in charts.items() if chart.get("plotType") == "pct-area"} == {
        "share of the weighted loss"
    }
    assert section["settings"]["shouldAutoGeneratePanels"]


class Scenes(Owning):
    """A net with conflicts, which logs a loss of its own."""

    def training_step(self, batch, batch_idx):
        total = super().training_step(batch, batch_idx)
        self.log("train_loss", total)
        return total


class Host(LightningModule):
    """A net without tasks; its two losses are logged by its own keys."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 2)

    def _step(self, batch, stage):
        depth, kind = (self.net(batch[0]) - batch[1]).square().mean(0)
        self.log_dict({f"{stage}/depth_loss": depth, f"{stage}/kind_loss": kind, f"{stage}_loss": depth + kind})
        return depth + kind

    def training_step(self, batch, batch_idx):
        return self._step(batch, "train")

    def validation_step(self, batch, batch_idx):
        self._step(batch, "valid")

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


def keys_of(workspace):
    """The keys that each panel reads, by title."""
    found = {}
    for panel in (panel for section in workspace.sections for panel in section.panels):
        own = getattr(panel, "y", None) or getattr(panel, "media_keys", None) or [getattr(panel, "table_name", None)]
        found[getattr(panel, "title", None) or panel.table_name] = list(own)
    return found


def logged_keys(folder):
    """The keys of history rows in the only offline run under a folder."""
    (run,) = folder.glob("wandb/offline-run-*")
    return {key.removesuffix("._type") for row in history(run) for key in row}  # of a table or picture


def test_every_panel_shows_what_an_offline_run_has(tmp_path):
    logger = WandbLogger(project="scenes", save_dir=tmp_path, offline=True)
    data = dicts()
    fit = trainer(
        max_epochs=2,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[
            *(UncertaintyMonitor(table=False, prefix="u/"), GradientConflictMonitor(prefix="u/")),
            PredictionImages(prefix="u/pictures/"),
        ],
    )
    fit.fit(Scenes(), data, data)
    figure = plt.figure()
    log_comparison(logger, ["weighting"], [["equal"]], figure, {"gain/equal": 0.0})
    plt.close(figure)
    logger.experiment.finish()
    tasks = {"depth": ["MeanAbsoluteError"], "kind": ["MulticlassAccuracy"]}
    options = {"prefix": "u/", "more": {"host": ["train_loss"]}, "pictures": "u/pictures/"}
    shown = keys_of(wandb_workspace("me", "scenes", tasks, **options))
    maps = {title: shown.pop(title) for title in ("predictions", "classes over images")}  # which a table has not
    assert maps["predictions"] == ["u/pictures/depth", "u/pictures/kind"]
    logged = logged_keys(tmp_path)
    assert {title: keys for title, keys in shown.items() if not logged.issuperset(keys)} == {}
    assert shown["host"] == ["train_loss"]
    assert len(shown) == len(KINDS) + 2 + 2 + 1 + 4 + 3 + 1


def test_every_panel_of_pictures_shows_what_an_offline_run_has(tmp_path):
    logger = WandbLogger(project="scenes", save_dir=tmp_path, offline=True)
    data = scenes(2)
    trainer(max_epochs=1, logger=logger, callbacks=[PredictionImages(1)]).fit(Shapes(), data, data)
    logger.experiment.finish()
    shown = keys_of(wandb_workspace("me", "scenes", ["semantics", "offsets", "depth"]))
    logged = logged_keys(tmp_path)
    assert logged.issuperset(shown["predictions"])
    assert {key.partition(".")[0] for key in logged}.issuperset(shown["classes over images"])


def test_every_open_panel_shows_what_an_adopted_module_has(tmp_path):
    logger = WandbLogger(project="scenes", save_dir=tmp_path, offline=True)
    tasks = dict.fromkeys(("depth", "kind"), "gaussian")
    parts, held_out = ({task: f"log:{stage}/{task}_loss" for task in tasks} for stage in ("train", "valid"))
    data = DataLoader(TensorDataset(torch.randn(32, 4), torch.randn(32, 2)), batch_size=8)
    fit = trainer(max_epochs=2, logger=logger, log_every_n_steps=1, callbacks=[UncertaintyMonitor(table=False)])
    fit.fit(adopt(Host(), tasks, parts, validation=held_out), data, data)
    logger.experiment.finish()
    workspace = wandb_workspace("me", "scenes", list(tasks), more={"host": ["train_loss", "valid_loss"]})
    workspace.sections = [section for section in workspace.sections if section.is_open]
    logged = logged_keys(tmp_path)
    assert {title: keys for title, keys in keys_of(workspace).items() if not logged.issuperset(keys)} == {}


def test_pairs_of_many_tasks_have_no_chart():
    titles = keys_of(wandb_workspace("me", "scenes", [f"t{place}" for place in range(7)]))
    assert "cosine of two tasks' gradients" not in titles
    assert "cosine, lowest and mean" in titles
    assert len(keys_of(wandb_workspace("me", "scenes", ["a", "b", "c", "d"]))["cosine of two tasks' gradients"]) == 6


def test_more_charts_have_lists_of_keys():
    with pytest.raises(
        ValueError, match=r"the keys of chart 'host' should be a list: found the text 'loss'; write \['"
    ):
        wandb_workspace("me", "scenes", TASKS, more={"host": "loss"})


@pytest.mark.parametrize("more", [["train_loss"], "train_loss", [], 3])
def test_more_charts_have_titles(more):
    with pytest.raises(ValueError, match=r"by the title of their chart: found .*; write \{'host': \['train_loss'\]\}"):
        wandb_workspace("me", "scenes", TASKS, more=more)


@pytest.mark.parametrize("keys", [None, 3, [1], [["train_loss"]]])
def test_keys_of_more_charts_are_texts(keys):
    with pytest.raises(ValueError, match="the keys of chart 'host' should be a list of what is logged: found"):
        wandb_workspace("me", "scenes", TASKS, more={"host": keys})


def test_metrics_that_are_no_list_are_refused():
    with pytest.raises(ValueError, match=r"metrics of task 'depth' should be a list of names: found None; write \[\]"):
        wandb_workspace("me", "scenes", {"depth": None})


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
    own = variables["name"].replace("nw-", "").removesuffix("-v")  # as the library writes it, whose ids are random
    assert saved == f"{address}/me/scenes?nw={own}"
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
