"""What holds for every architecture."""

import copy
import pickle

import onnxruntime
import pytest
import torch

from lightning_uncertainty.architectures import BranchingArchitecture
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.weightings import FixedWeighting, UncertaintyWeighting
from tests._nets import trainer
from tests.architectures._architectures import (
    ARCHITECTURES,
    BRANCHING,
    CELLS,
    OUTPUTS,
    SIZE,
    THREE,
    TWO,
    Scenes,
    batch_of,
    check_shared,
    make,
)
from tests.architectures._ddp import fit
from tests.balancing._solvers import Returns

each = pytest.mark.parametrize("name", ARCHITECTURES)
each_cell = pytest.mark.parametrize(
    ("name", "tasks"), [pytest.param(*cell, id=f"{cell[0]}-{len(cell[1])}") for cell in CELLS]
)
IMAGES = batch_of()["image"]


def everything(net, images=IMAGES):
    """A scalar in which every prediction counts."""
    weights = ((prediction, torch.linspace(-1, 1, prediction.numel())) for prediction in net(images).values())
    return sum((prediction.flatten() * weight).sum() for prediction, weight in weights)


def close(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, prediction in one.items():
        torch.testing.assert_close(prediction, other[name], **tolerance)


# -- the contract ------------------------------------------------------------------------------------------------------


@each_cell
@pytest.mark.parametrize("size", [SIZE, (33, 47)])
def test_every_prediction_has_its_name_channels_and_the_size_of_the_images(name, tasks, size):
    net = make(name, tasks)
    predictions = net(torch.randn(2, 3, *size))
    assert list(predictions) == list(net.predictions)
    assert set(tasks) <= set(predictions)
    for prediction, task in net.predictions.items():
        assert prediction.startswith(task)
        assert predictions[prediction].shape == (2, OUTPUTS[task], *size)


@each
def test_a_size_may_be_asked_for(name):
    assert all(prediction.shape[-2:] == (5, 7) for prediction in make(name)(IMAGES, size=(5, 7)).values())


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if entry.takes_features])
def test_features_may_stand_in_for_images(name):
    net, x, features = make(name).eval(), IMAGES, []
    parts = net.backbone if isinstance(net.backbone, torch.nn.ModuleList) else net.backbone.stages
    for stage in parts:
        halves = [stage] if name != "MTAN" else stage
        for half in halves:
            x = half(x)
            features.append(x)
    close(net(features, size=SIZE), net(IMAGES), rtol=0, atol=0)
    assert all(prediction.shape[-1] < SIZE[1] for prediction in net(tuple(features)).values())


@each_cell
def test_the_order_of_tasks_is_that_in_which_they_were_given(name, tasks):
    finals = [prediction for prediction in make(name, tasks[::-1]).predictions if prediction in tasks]
    assert finals == list(tasks[::-1])


# -- parameters --------------------------------------------------------------------------------------------------------


@each_cell
def test_every_parameter_gets_a_gradient(name, tasks):
    net = make(name, tasks)
    everything(net).backward()
    idle = [key for key, parameter in net.named_parameters() if parameter.grad is None or not parameter.grad.any()]
    assert not idle


@each_cell
def test_shared_parameters_are_those_that_several_final_predictions_reach(name, tasks):
    net = make(name, tasks)
    predictions = net(IMAGES)
    assert check_shared([predictions[task] for task in tasks], net)


@each_cell
def test_a_state_dict_restores_the_predictions(name, tasks):
    net, other = make(name, tasks), make(name, tasks, seed=1)
    everything(net)  # moves running statistics
    other.load_state_dict(net.state_dict())
    close(other.eval()(IMAGES), net.eval()(IMAGES), rtol=0, atol=0)


@each
def test_copies_and_pickles_predict_the_same(name):
    net = make(name).eval()
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        close(twin(IMAGES), net(IMAGES), rtol=0, atol=0)


# -- precision, compilation, export ------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_bfloat16_is_close_to_float32_and_trains(name, how):
    net = make(name)
    expected = net(IMAGES)
    twin = copy.deepcopy(make(name))
    if how == "bfloat16":
        found = twin.bfloat16()(IMAGES.bfloat16())
    else:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = twin(IMAGES)
    for key, prediction in found.items():
        error = (prediction.float() - expected[key]).norm() / expected[key].norm()
        assert error < 0.06, key
    sum(prediction.float().square().mean() for prediction in found.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in twin.parameters())


@each
def test_the_forward_compiles_into_one_graph(name):
    torch.compiler.reset()
    net = make(name)
    compiled = torch.compile(copy.deepcopy(net), fullgraph=True, backend="eager")
    close(compiled(IMAGES), net(IMAGES))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_architecture_exports_to_onnx(tmp_path):
    x = torch.randn(2, 3, 33, 47)
    for name in ARCHITECTURES:
        net, file = make(name).eval(), tmp_path / "net.onnx"
        torch.onnx.export(net, (x,), file, dynamo=True, verbose=False, output_names=list(net.predictions))
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        found = session.run(list(net.predictions), {session.get_inputs()[0].name: x.numpy()})
        for output, expected in zip(found, net(x).values(), strict=True):
            torch.testing.assert_close(torch.from_numpy(output), expected, rtol=1e-3, atol=1e-4)


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_eight_samples_are_learnt_by_heart_under_uncertainty_weighting(name):
    """Every task, at every stage, falls below a tenth of its first loss."""
    tasks = THREE[: ARCHITECTURES[name].most]
    batch, rows = batch_of(), []
    net = Scenes(make(name, tasks), tasks, batches=[batch] * 100)
    for _ in range(2):
        net.train()
        with torch.no_grad():
            found = net.task_losses(net.net(batch["image"]), batch)
        rows.append({key: (total / count).item() for key, (total, count) in found.items()})
        if len(rows) == 1:
            trainer(max_epochs=1).fit(net)
    assert list(rows[0]) == list(net.sigma()) == list(net.net.predictions)
    shares = {key: rows[1][key] / rows[0][key] for key in rows[0]}
    assert all(share < 0.1 for share in shares.values()), shares


@each
def test_predictions_of_a_task_may_share_their_sigma(name):
    net = make(name)
    module = Scenes(net, TWO, UncertaintyWeighting(shared=net.by_task()), batches=[batch_of()] * 3)
    trainer(max_epochs=1).fit(module)
    sigma = module.sigma()
    for task in TWO:
        assert len({sigma[prediction] for prediction, of in net.predictions.items() if of == task}) == 1
    assert sigma[TWO[0]] != sigma[TWO[1]]


@each
def test_gradients_are_balanced_over_the_shared_parameters(name):
    module = Scenes(make(name), TWO, GradientBalancing("mgda", on="parameters"), batches=[batch_of()] * 2)
    before = [parameter.clone() for parameter in module.net.parameters()]
    trainer(max_epochs=1).fit(module)
    assert all(not torch.equal(a, b) for a, b in zip(before, module.net.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in BRANCHING])
def test_without_a_cut_balancing_at_features_says_which_mode_to_use(name):
    module = Scenes(make(name), TWO, GradientBalancing("mgda"))
    with pytest.raises(RuntimeError, match=r'there is no such place, use GradientBalancing\(on="parameters"\)'):
        trainer(max_epochs=1).fit(module)


class Cut(Scenes):
    """Balances the gradients where the tasks part."""

    def training_step(self, batch, batch_idx):
        assert isinstance(self.net, BranchingArchitecture)
        features = self.split_features(self.net.features(batch["image"]))
        return self.task_step(self.net.decode(features, size=SIZE), batch, "train")


@pytest.mark.parametrize("name", BRANCHING)
def test_gradients_are_balanced_where_the_tasks_part(name):
    """A solver of ones gives the gradient of the plain sum, another one does not."""

    def gradients(kind, weighting):
        module = kind(make(name), TWO, weighting)
        module.training_step(batch_of(), 0).backward()
        return [parameter.grad for parameter in module.net.backbone.parameters()]

    plain = gradients(Scenes, FixedWeighting())
    ones, unequal = (gradients(Cut, GradientBalancing(Returns(weights))) for weights in ((1.0, 1.0), (0.5, 2.0)))
    for one, two in zip(plain, ones, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-3, atol=1e-5)
    assert all(not torch.allclose(two, one, rtol=1e-2) for one, two in zip(plain, unequal, strict=True))


@pytest.mark.parametrize("name", BRANCHING)
def test_decoding_branches_is_the_forward(name):
    net = make(name).eval()
    features = net.features(IMAGES)
    close(net.decode(dict.fromkeys(TWO, features), size=SIZE), net(IMAGES), rtol=0, atol=0)


# -- several processes -------------------------------------------------------------------------------------------------


@pytest.mark.cells("tests.architectures._ddp", "{name}, {tasks}")
@each_cell
def test_two_processes_equal_one_and_need_not_look_for_unused_parameters(name, tasks, found):
    one, two = fit(name, tasks, devices=1), found(f"{name}, {tasks}")
    assert one.keys() == two.keys()
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-8, msg=lambda text, key=key: f"{key}: {text}")
