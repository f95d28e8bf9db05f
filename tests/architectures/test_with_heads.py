"""Heads beside an architecture, on the features that its tasks share."""

import pytest
import torch
from torch import nn

from lightning_uncertainty import MultiTaskModule, Task, deep_supervision
from lightning_uncertainty.architectures import BranchingArchitecture, with_heads
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.trials._alone import train_alone
from tests.architectures._architectures import ARCHITECTURES, BRANCHING, CHANNELS, TWO, batch_of, check_shared, make

SHARING = [name for name, entry in ARCHITECTURES.items() if entry.takes_features]
APART = [name for name in ARCHITECTURES if name not in SHARING]
IMAGES = batch_of()["image"]


def age(count=1):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1], count))


@pytest.mark.parametrize("name", SHARING)
def test_a_head_takes_the_last_shared_features_and_changes_nothing_else(name):
    net, head = make(name).eval(), age()
    both = with_heads(net, {"age": head}).eval()
    expected, found = net(IMAGES), both(IMAGES)
    assert list(found) == list(both.predictions) == [*net.predictions, "age"]
    for prediction, output in expected.items():
        torch.testing.assert_close(found[prediction], output, rtol=0, atol=0)
    torch.testing.assert_close(found["age"], head(net.features(IMAGES)[-1]))
    assert isinstance(both, BranchingArchitecture) == (name in BRANCHING)
    assert both.by_task() == net.by_task()


@pytest.mark.parametrize("name", SHARING)
def test_shared_parameters_are_those_that_several_final_predictions_reach(name):
    both = with_heads(make(name), {"age": age()})
    outputs = both(IMAGES)
    assert check_shared([outputs[task] for task in (*TWO, "age")], both)


@pytest.mark.parametrize("name", SHARING)
def test_what_a_head_returns_is_left_as_it_is(name):
    class Rotation(nn.Module):
        def forward(self, x):
            return x.mean((2, 3))[:, :9].reshape(-1, 1, 3, 3)

    both = with_heads(make(name), {"rotation": Rotation(), "coarse": nn.Conv2d(CHANNELS[-1], 1, 1)})
    outputs = both(IMAGES, size=(5, 7))
    assert outputs["rotation"].shape[1:] == (1, 3, 3)
    assert outputs["coarse"].shape[2:] == (3, 4)
    assert outputs["depth"].shape[2:] == (5, 7)


@pytest.mark.parametrize("name", APART)
def test_without_shared_features_it_is_refused(name):
    with pytest.raises(
        ValueError, match=r"beside (CrossStitch|NDDR) should have features that all its tasks share: fo"
    ):
        with_heads(make(name), {"age": age()})


@pytest.mark.parametrize(("heads", "found"), [({"depth": age()}, "depth"), ({"depth": age(), "age": age()}, "depth;")])
def test_a_task_of_the_architecture_has_no_other_head(heads, found):
    with pytest.raises(
        ValueError, match=f"heads beside HardSharing should be of other tasks than its own: found {found}"
    ):
        with_heads(make("HardSharing"), heads)


@pytest.mark.parametrize("name", BRANCHING)
def test_tasks_beside_are_balanced_at_the_features_like_the_others(name):
    """And the gradient of the backbone is that of the weighted losses."""
    tasks = {"depth": "gaussian", "semantics": "categorical", "age": Task("gaussian", head=age())}
    net = make(name)
    weighting = GradientBalancing("mgda")
    module = MultiTaskModule(net, deep_supervision(tasks, net.predictions), weighting, inputs="image")
    batch = batch_of() | {"age": torch.randn(8, 1)}
    module.training_step(batch, 0).backward()
    weights = module.take_row()["weight"]
    assert set(weights) == {*TWO, "age"}
    assert all(weight > 0 for weight in weights.values())
    found = [weight.grad.clone() for weight in net.backbone.parameters()]
    losses = module.task_losses(module.backbone(batch["image"]), batch)
    total = sum(weights[task] * loss / count for task, (loss, count) in losses.items())
    expected = torch.autograd.grad(total, list(net.backbone.parameters()))
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("task", ["depth", "age"])
def test_a_task_trained_alone_runs_its_branch_alone(task):
    net, ran = make("HardSharing"), []
    module = MultiTaskModule(
        net,
        deep_supervision(
            {"depth": "gaussian", "semantics": "categorical", "age": Task("gaussian", head=age())}, net.predictions
        ),
        inputs="image",
    )
    for name, head in (*net.heads.items(), *module.backbone.heads.items()):
        head.register_forward_hook(lambda *_, name=name: ran.append(name))
    train_alone(module, task)
    module.training_step(batch_of() | {"age": torch.randn(8, 1)}, 0).backward()
    assert ran == [task]
