"""Old paths say where to look."""

import importlib
import sys
import types

import pytest
import torch
import yaml

import lightning_uncertainty
from lightning_uncertainty import weightings
from lightning_uncertainty._moved import MOVED
from tests.cli._run import EXAMPLE, run


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_says_where_it_went_and_that_place_exists(old):
    home, _, name = f"lightning_uncertainty.{old}".rpartition(".")
    inside = MOVED[old].startswith("_")
    door = importlib.import_module(f"lightning_uncertainty.{MOVED[old]}")
    said = "is no door .*save its `state_dict" if inside else rf"has moved to lightning_uncertainty\.{MOVED[old]}:"
    with pytest.raises(ImportError, match=f"{old} {said}"):
        exec(f"from {home} import {name}", {})
    with pytest.raises(AttributeError, match=f"{old} {said}"):
        getattr(importlib.import_module(home), name)
    assert not name[0].isupper() or hasattr(door, name)


def test_what_never_was_there_is_told_as_ever():
    with pytest.raises(ImportError, match="cannot import name 'Nothing'"):
        exec("from lightning_uncertainty.weightings import Nothing", {})
    with pytest.raises(ModuleNotFoundError, match=r"No module named 'lightning_uncertainty\.nothing'"):
        importlib.import_module("lightning_uncertainty.nothing")
    assert not hasattr(weightings, "nothing")
    assert not hasattr(lightning_uncertainty, "nothing")


def test_a_checkpoint_that_names_an_old_path(tmp_path, monkeypatch):
    class Head(torch.nn.Linear):
        __module__ = "lightning_uncertainty.heads"
        __qualname__ = "Head"

    heads = types.ModuleType("lightning_uncertainty.heads")
    heads.Head = Head
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lightning_uncertainty.heads", heads)
        torch.save(Head(1, 1), tmp_path / "old.ckpt")
    with pytest.raises(ImportError, match=r"heads has moved to lightning_uncertainty\.tasks"):
        torch.load(tmp_path / "old.ckpt", weights_only=False)


@pytest.mark.parametrize("old", ["weightings.GradientBalancing", "weightings.gradnorm.GradNorm"])
def test_a_configuration_with_an_old_path(old, tmp_path, capsys):
    config = yaml.safe_load(EXAMPLE)
    config["model"]["weighting"] = {"class_path": f"lightning_uncertainty.{old}"}
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    with pytest.raises(SystemExit):
        run("fit", "--config", tmp_path / "old.yaml")
    said = capsys.readouterr().err
    assert "has moved to lightning_uncertainty.balancing: name that in the import or the class path" in said
    assert "GradNorm, GradientBalancing" in said
