"""The penguins: who is held out, and that the YAML file beside them describes the same net."""

from importlib.resources import files

import torch
import yaml

from lightning_uncertainty.examples.penguins import (
    PenguinData,
    PenguinNet,
    RegressionHead,
    Trunk,
    load_penguins,
    mean_and_std,
)


def birds_of(data):
    """All that is known of every bird, by part."""
    parts = {name: getattr(data, name)[:] for name in ("train", "val", "test")}
    rows = {
        name: torch.cat([column.reshape(len(column), -1) for column in part.values()], 1)
        for name, part in parts.items()
    }
    return {name: {tuple(row) for row in table.nan_to_num(-1).tolist()} for name, table in rows.items()}


def test_no_bird_is_in_two_parts():
    data = PenguinData(seed=3)
    assert (len(data.train), len(data.val), len(data.test)) == (206, 52, 86)
    parts = birds_of(data)
    assert [len(part) for part in parts.values()] == [206, 52, 86]  # no two alike
    assert not parts["train"] & parts["val"]
    assert not (parts["train"] | parts["val"]) & parts["test"]
    assert birds_of(PenguinData(seed=3)) == parts
    assert birds_of(PenguinData(seed=4)) != parts


def test_test_birds_are_those_of_the_demo():
    test = load_penguins(seed=3)[1]
    torch.testing.assert_close(PenguinData(seed=3).test[:], test[:], equal_nan=True)


def test_shares_are_those_asked_for():
    data = PenguinData(held_out=0.5, validation=0.5)
    assert (len(data.train), len(data.val), len(data.test)) == (86, 86, 172)


def test_batches_are_dicts_and_only_training_is_shuffled():
    data = PenguinData()
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    for loader, part in zip(loaders, (data.train, data.val, data.test, data.test), strict=True):
        batches = list(loader)
        assert set(batches[0]) == {"features", "species", "sex", "body_mass_g", "flipper_length_mm"}
        features = torch.cat([batch["features"] for batch in batches])
        assert features.shape == (len(part), 6)
        assert torch.equal(features, part[:]["features"]) == (part is not data.train)


def test_the_yaml_file_has_the_tasks_heads_and_scales_of_the_net():
    text = files("lightning_uncertainty.examples").joinpath("penguins.yaml").read_text(encoding="ascii")
    model = yaml.safe_load(text)["model"]
    data = PenguinData()
    net = PenguinNet(data.train)
    assert list(model["tasks"]) == list(net.task_heads)
    for name, task in model["tasks"].items():
        likelihood = task["likelihood"]
        found = likelihood if isinstance(likelihood, str) else likelihood["class_path"].split(".")[-1].lower()
        assert found == net.task_likelihoods()[name].name
        if "mean" in task["head"]["init_args"]:
            mean, std = mean_and_std(data.train.columns[name])
            scale = task["head"]["init_args"]
            assert abs(scale["mean"] - mean) < 0.01 * mean
            assert abs(scale["std"] - std) < 0.01 * std


def test_trunk_and_regression_head_are_those_of_the_net():
    net = PenguinNet(PenguinData().train)
    assert isinstance(net.trunk, Trunk)
    features = net.trunk(torch.zeros(2, 6))
    assert features.shape == (2, 32)
    head = RegressionHead(mean=4150, std=800)
    torch.testing.assert_close(head(features), 4150 + 800 * head[0](features))
