from functools import partial

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn

from lightning_uncertainty import MultiTaskModule, Task
from lightning_uncertainty.likelihoods import regression
from lightning_uncertainty.predictions import DeepEnsemble


class Net(nn.Module):
    """Predicts one task."""

    def __init__(self, task="depth", channels=1):
        super().__init__()
        self.layers, self.task = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, channels)), task

    def forward(self, inputs):
        return {self.task: self.layers(inputs)}


def test_samples_are_the_predictions_of_the_members():
    members, inputs = [Net() for _ in range(3)], torch.randn(2, 4)
    outputs = DeepEnsemble(members).sample(inputs)["depth"]
    assert torch.equal(outputs, torch.stack([member.eval()(inputs)["depth"] for member in members]))
    assert not outputs.requires_grad


def test_members_evaluate_and_get_their_modes_back():
    members = [Net().train(), Net().eval()]
    ensemble = DeepEnsemble(members)
    members[0].layers[0].eval()
    modes = [part.training for part in ensemble.modules()]
    before = members[0].layers[0].running_mean.clone()
    first, second = (ensemble.sample(torch.randn(2, 4) * 0 + 1) for _ in range(2))
    assert torch.equal(first["depth"], second["depth"])
    assert torch.equal(members[0].layers[0].running_mean, before)
    with pytest.raises(AttributeError):
        ensemble.sample(None)
    assert [part.training for part in ensemble.modules()] == modes


def test_works_in_inference_mode_and_moves_with_the_module():
    members, inputs = [Net(), Net()], torch.randn(2, 4).double()
    ensemble = DeepEnsemble(members).double()
    with torch.inference_mode():
        outputs = ensemble.sample(inputs)["depth"]
    assert outputs.dtype is torch.float64
    assert torch.equal(outputs, torch.stack([member.eval()(inputs)["depth"] for member in members]))
    assert set(ensemble.parameters()) == {parameter for member in members for parameter in member.parameters()}


def test_recovers_the_posterior_of_a_bayesian_linear_model():
    """Fits to perturbed labels from perturbed priors are draws from the posterior, whose variance is known."""
    noise, members = 0.5, 600
    rows, places = torch.randn(20, 3).double(), 2 * torch.randn(5, 3).double()
    labels = rows @ torch.randn(3).double() + noise * torch.randn(20).double()
    covariance = torch.linalg.inv(rows.T @ rows / noise**2 + torch.eye(3).double())

    class Linear(nn.Linear):
        def forward(self, inputs):
            return {"depth": super().forward(inputs)}

    def fit():
        perturbed, start = labels + noise * torch.randn(20).double(), torch.randn(3).double()
        stacked, aims = torch.cat([rows / noise, torch.eye(3).double()]), torch.cat([perturbed / noise, start])
        net = Linear(3, 1, bias=False).double()
        net.weight.data = torch.linalg.lstsq(stacked, aims[:, None]).solution.T
        return net

    outputs = DeepEnsemble([fit() for _ in range(members)]).sample(places)["depth"].squeeze(2)
    prediction = regression(outputs, torch.tensor(noise**2))
    epistemic = (places @ covariance * places).sum(1)
    error = 4 * (2 / members) ** 0.5
    torch.testing.assert_close(prediction.epistemic.square(), epistemic, rtol=error, atol=0)
    torch.testing.assert_close(prediction.total.square(), epistemic + noise**2, rtol=error, atol=0)
    mean = places @ covariance @ rows.T @ labels / noise**2
    assert ((prediction.mean - mean).abs() < 4 * (epistemic / members).sqrt()).all()


def module(backbone=None, tasks=None):
    return MultiTaskModule(
        backbone or nn.Linear(4, 8),
        tasks or {"depth": Task("gaussian", head=nn.Linear(8, 1)), "kind": Task("categorical", head=nn.Linear(8, 3))},
    )


def test_checkpoints_become_members_even_where_all_load_into_one_backbone():
    trained = [module(), module()]
    paths = [f"{index}.ckpt" for index in range(2)]
    for path, member in zip(paths, trained, strict=True):
        trainer = Trainer(barebones=True, accelerator="cpu")
        trainer.strategy.connect(member)
        trainer.save_checkpoint(path, weights_only=True)
    tasks = {"depth": Task("gaussian", head=nn.Linear(8, 1)), "kind": Task("categorical", head=nn.Linear(8, 3))}
    load = partial(MultiTaskModule.load_from_checkpoint, backbone=nn.Linear(4, 8), tasks=tasks)
    inputs = torch.randn(2, 4)
    outputs = DeepEnsemble.from_checkpoints(paths, load).sample(inputs)
    for index, member in enumerate(trained):
        for task, output in member(inputs).items():
            assert torch.equal(outputs[task][index], output)


TWICE = Net()


@pytest.mark.parametrize(
    ("members", "found"),
    [([], "found 0, 0"), ([Net()], "found 1, 1"), ([TWICE] * 3, "found 3, 1"), ([TWICE, Net(), TWICE], "found 3, 2")],
)
def test_members_are_two_networks_at_least(members, found):
    with pytest.raises(ValueError, match=f"two members or more, all different networks: {found}"):
        DeepEnsemble(members)


def test_members_predict_the_same_tasks():
    with pytest.raises(ValueError, match="found depth for member 0 and height for member 2"):
        DeepEnsemble([Net(), Net(), Net("height")]).sample(torch.ones(2, 4))


def test_members_predict_in_one_shape():
    with pytest.raises(ValueError, match=r"depth in one shape: found \[2, 1\] for member 0 and \[2, 3\] for member 1"):
        DeepEnsemble([Net(), Net(channels=3)]).sample(torch.ones(2, 4))


def test_members_return_outputs_by_task():
    with pytest.raises(ValueError, match="member 1 should return outputs by task: found Tensor"):
        DeepEnsemble([Net(), nn.Linear(4, 1)]).sample(torch.ones(2, 4))
