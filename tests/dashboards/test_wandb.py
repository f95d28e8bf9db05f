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

import pytest

from lightning_uncertainty.dashboards import save_wandb_workspace, tensorboard_layout, wandb_workspace
from lightning_uncertainty.dashboards.charts import KINDS
from lightning_uncertainty.dashboards.wandb import log_task_table

TASKS = {"depth": ["MeanAbsoluteError", "MeanSquaredError"], "kind": []}


def specification(workspace):
    """What `save` sends, as the server reads it."""
    return json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels(section):
    (own,) = section["panelBankConfig"]["sections"][:1]
    return {panel["config"]["chartTitle"]: panel["config"] for panel in own["panels"]}


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
    assert {title for title, chart in charts.items() if chart.get("plotType") == "pct-area"} == {
        "share of the weighted loss"
    }
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
