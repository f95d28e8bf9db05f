"""What the command line answers to mistakes."""

import re

import pytest
import yaml
from pytorch_lightning import LightningDataModule

from tests.cli._run import EXAMPLE, run


class Broken(LightningDataModule):
    def __init__(self) -> None:
        raise ValueError("a bug of the user's own")


UNCERTAINTY = "lightning_uncertainty.UncertaintyWeighting"
MISTAKES = {
    "model.optimiser": (
        "SGD",
        "does not accept option 'model.optimiser'.*model has: backbone, tasks, weighting, inputs",
    ),
    "monitor.tabel": (True, "does not accept option 'monitor.tabel'.*monitor has: prefix, progress_bar, table"),
    "trainer.max_epoch": (1, "does not accept option 'trainer.max_epoch'"),
    "data": (None, "required: fit.data"),
    "data.init_args.sed": (1, "Option 'sed' is not accepted"),
    "model.backbone": (None, "required: fit.model.backbone"),
    "model.backbone.class_path": (
        "tests.cli.test_mistakes.Net",
        "model.backbone.*'tests.cli.test_mistakes' has no attribute 'Net'",
    ),
    "data.class_path": (
        "data_of_mine.Own",
        "No module named 'data_of_mine'.*a module data_of_mine should be in the current folder, /.*, on PYTHON",
    ),
    "model.inputs": (3, "model.inputs.*- Expected a <class 'str'>"),
    "model.optimizer.init_args.rate": (1, "model.optimizer.*Option 'rate' is not accepted"),
    "model.weighting": (
        "sigma",
        "model.weighting.*Given value: sigma.*weightings: .*, FixedWeighting, GeometricL.*, GradNorm, ",
    ),
    "model.weighting.class_path": (
        "torch.nn.Linear",
        "torch.nn.Linear does not .* subclass of Weighting.*weightings: ",
    ),
    "model.weighting.init_args.base_weights": ({"mass": 1}, r"base_weights should name .* \(species, .*found mass"),
    "model.tasks": (None, "required: fit.model.tasks.*a task has: likelihood, head, target, mask, metrics"),
    "model.tasks.sex": ("bernoulli", "model.tasks.*bernoulli.*a task has: likelihood, head"),
    "model.tasks.sex.heads": (1, "model.tasks.*Option 'heads' is not accepted.*a task has: likelihood, head"),
    "model.tasks.sex.likelihood": ("bernuli", "should be one of gaussian, laplace.*, bernoulli.*: found 'bernuli'"),
    "model.tasks.sex.head": (None, "every task should have a head: found none for sex"),
    "model.tasks.sex.head.init_args.in_feature": (6, "Option 'in_feature' is not accepted"),
    "model.tasks.sex.metrics": ("accuracy", "model.tasks.*metrics.*Given value: accuracy"),
    "model.tasks.train": ({"likelihood": "gaussian"}, "a task's name should be .*: found 'train'; rename it"),
    "model.tasks.body_mass_g.likelihood.class_path": (
        "lightning_uncertainty.likelihoods.Gausian",
        "likelihood.*has no attribute 'Gausian'",
    ),
    "model.tasks.body_mass_g.head.init_args.std": (0, "mean should be finite and std positive"),
    "monitor.max_rows": (1, "max_rows should be at least 2: found 1"),
}


@pytest.mark.parametrize("key", MISTAKES)
def test_a_mistake_in_the_file_is_named(key, tmp_path, capsys):
    value, expected = MISTAKES[key]
    config = yaml.safe_load(EXAMPLE)
    *groups, last = key.split(".")
    place = config
    for group in groups:
        place = place.setdefault(group, {})
    if value is None:
        del place[last]
    else:
        place[last] = value
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    with pytest.raises(SystemExit) as stopped:
        run("fit", "--config", tmp_path / "x.yaml")
    sentence = stopped.value.code if isinstance(stopped.value.code, str) else ""
    told = sentence or capsys.readouterr().err
    assert stopped.value.code == sentence or stopped.value.code == 2
    assert re.search(expected, told, re.DOTALL), told
    assert told.count("a configuration that works") == (not sentence)
    assert "Union" not in told
    assert len(told.splitlines()) < 15, told


def test_batches_that_lack_what_the_tasks_need_are_told_in_a_sentence(fitted):
    with pytest.raises(SystemExit, match="inputs should be under 'image' in the batch: found keys features, species"):
        run("fit", "--config", fitted / "penguins.yaml", "--model.inputs", "image", "--trainer.logger", "false")


def test_errors_of_others_keep_their_traceback(fitted):
    with pytest.raises(ValueError, match="a bug of the user's own"):
        run("fit", "--config", fitted / "penguins.yaml", "--data", "tests.cli.test_mistakes.Broken")


@pytest.mark.parametrize("named", ["MGDA", "mgda", "lightning_uncertainty.balancing.MGDA", "{class_path: MGDA}"])
def test_a_solver_in_the_place_of_a_weighting_is_told_from_them(named, fitted, capsys):
    with pytest.raises(SystemExit):
        run("fit", "--config", fitted / "penguins.yaml", "--model.weighting", named)
    told = capsys.readouterr().err
    of = "{class_path: lightning_uncertainty.GradientBalancing, init_args: {solver: mgda}}"
    assert f"{named.strip('}').split('.')[-1].split()[-1]} is a solver, of the weighting {of}" in told
    (listed,) = re.findall(r"^weightings: (.*)$", told, re.MULTILINE)
    assert {"GradNorm", "GradientBalancing", "UncertaintyWeighting"} <= set(listed.split(", "))
    assert "MGDA" not in listed


def test_an_unknown_weighting_of_a_comparison_is_told_with_those_that_there_are(fitted, capsys):
    with pytest.raises(SystemExit):
        run("compare", "--config", fitted / "penguins.yaml", "--weightings", "{a: PCGrad}")
    told = capsys.readouterr().err
    assert "PCGrad is a solver" in told
    assert re.search(r"^weightings: .*UncertaintyWeighting", told, re.MULTILINE)


def test_an_unknown_argument_of_the_users_own_class_is_told_with_those_that_there_are(fitted, capsys):
    config = yaml.safe_load((fitted / "penguins.yaml").read_text())
    config["model"] = {"class_path": "tests.cli._nets.Own", "init_args": {"depth": 12}}
    (fitted / "own.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit):
        run("fit", "--config", fitted / "own.yaml")
    assert "backbone" not in (told := capsys.readouterr().err)
    assert re.search("depth.*model has: width, weighting", told, re.DOTALL)


def test_a_module_that_imports_what_is_not_there_is_not_looked_for_itself(tmp_path, monkeypatch, capsys):
    (tmp_path / "imports_more.py").write_text("import nowhere_to_be_found")
    (tmp_path / "x.yaml").write_text(EXAMPLE)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit):
        run("fit", "--config", tmp_path / "x.yaml", "--data", "imports_more.Data")
    told = capsys.readouterr().err
    assert "No module named 'nowhere_to_be_found'" in told
    assert "should be in the current folder" not in told
