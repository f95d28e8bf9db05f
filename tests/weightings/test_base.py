import io
import math

import pytest
import torch
from torch import nn

from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    FixedWeighting,
    UncertaintyWeighting,
    Weighted,
    Weighting,
)
from lightning_uncertainty.weightings._base import named_vector
from tests.weightings._properties import assert_same, everywhere, train_step, vectors

KINDS = {
    "depth": "laplace",
    "semantics": "categorical",
    "normals": "gaussian",
    "counts": "poisson",
    "edges": "bernoulli",
}
TASK_IDS = {"depth": -2390530514267407338, "semantics": -8049304875501222275}
WITH_STATE = [
    UncertaintyWeighting,
    BoundedUncertaintyWeighting,
    ConstrainedUncertaintyWeighting,
    AnalyticUncertaintyWeighting,
]
UNCOUPLED = [kind for kind in WITH_STATE if kind is not ConstrainedUncertaintyWeighting]  # each task for itself


def bind(kind, *names):
    return kind().bind({name: as_likelihood(KINDS[name]) for name in names})


def trained(kind, *names):
    """A weighting whose every vector tells the tasks apart."""
    weighting = bind(kind, *names)
    for step in range(3):
        train_step(weighting, torch.arange(1.0, 1 + len(names)) * (2 + step), everywhere(len(names)))
    return weighting


def saved(weighting):
    """Its checkpoint, as `torch.load` gives it back by default."""
    file = io.BytesIO()
    torch.save(weighting.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def by_task(weighting, *names):
    """What a weighting knows of some tasks: state and settings, by vector and name; not `task_ids`."""
    return {
        (vector, name): values[weighting.tasks.index(name)]
        for vector, values in vectors(weighting).items()
        for name in names
        if vector != "task_ids"
    }


# -- binding and calling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*WITH_STATE, FixedWeighting])
def test_bind_returns_itself_once(kind):
    weighting = kind()
    tasks = {"depth": as_likelihood("laplace")}
    assert weighting.bind(tasks) is weighting
    assert weighting.tasks == ("depth",)
    with pytest.raises(ValueError, match="belongs to one module: found one bound to depth; build a new one"):
        weighting.bind(tasks)


def test_numbers_of_the_likelihoods_are_vectors():
    weighting = bind(UncertaintyWeighting, *KINDS)
    for i, kind in enumerate(as_likelihood(kind) for kind in KINDS.values()):
        numbers = [vector[i].item() for vector in (weighting.log_factor, weighting.exponent, weighting.base_penalty)]
        assert numbers == pytest.approx([math.log(kind.factor), kind.exponent, kind.penalty])


@pytest.mark.parametrize("kind", [*WITH_STATE, FixedWeighting])
def test_forward_before_bind(kind):
    for losses in (torch.ones(2), torch.ones(0)):
        with pytest.raises(ValueError, match=r"0 tasks: found shape \[\d\]; bind it to tasks first"):
            kind()(losses, torch.ones_like(losses, dtype=torch.bool))


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 1), ()])
def test_one_loss_for_each_task(shape):
    with pytest.raises(ValueError, match="one loss for each of its 2 tasks: found shape"):
        bind(UncertaintyWeighting, "depth", "edges")(torch.ones(shape), everywhere(2))


def test_weighting_is_abstract():
    with pytest.raises(TypeError, match="abstract"):
        Weighting()


def test_a_weighting_of_ones_own_needs_one_method():
    class Halves(Weighting):
        def weigh(self, losses, present):
            weights = torch.where(present, 0.5, 0.0)
            return Weighted((weights * losses).sum(), weights, None)

    weighting = Halves().bind({"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")})
    assert weighting(torch.tensor([3.0, 5.0]), torch.tensor([True, False])).total == 1.5
    assert weighting.log_variance is None
    assert weighting.optimum(torch.ones(2)) is None
    fresh = Halves().bind({"edges": as_likelihood("bernoulli"), "depth": as_likelihood("laplace")})
    fresh.load_state_dict(saved(weighting))
    assert fresh.remapped


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weigh_is_given_float32_and_no_autocast(dtype):
    class Product(Weighting):
        def weigh(self, losses, present):
            assert losses.dtype is torch.float32
            weights = torch.where(present, 1 / 3, 0.0)
            return Weighted((weights[None] @ losses[:, None]).sum(), weights, None)

    weighting = Product().bind({"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")})
    with torch.autocast("cpu", dtype=dtype):  # a product is the first thing that it would round
        total = weighting(torch.tensor([1.0, 2.0], dtype=dtype), everywhere(2)).total
        assert torch.is_autocast_enabled("cpu")
    assert total.dtype is torch.float32
    assert total.item() == pytest.approx(1.0, rel=1e-6)


def test_optimum_is_that_of_each_likelihood():
    weighting = bind(UncertaintyWeighting, *KINDS)
    losses = torch.tensor([0.3, 1.0, 2.0, 30.0, 1e-3])
    expected = [as_likelihood(kind).optimum(x) for kind, x in zip(KINDS.values(), losses.tolist(), strict=True)]
    torch.testing.assert_close(weighting.optimum(losses), torch.tensor(expected))


# -- numbers by task name ----------------------------------------------------------------------------------------------


def test_named_vector():
    assert named_vector({"b": 2}, ("a", "b"), 1.0, "weights") == (1.0, 2.0)


def test_named_vector_of_unknown_tasks():
    with pytest.raises(ValueError, match=r"weights should name registered tasks \(a, b\): found c, d"):
        named_vector({"c": 1.0, "a": 1.0, "d": 1.0}, ("a", "b"), 1.0, "weights")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -0.1])
def test_named_vector_of_numbers_that_make_no_sense(value):
    with pytest.raises(ValueError, match=r"weights should be finite numbers, at least 0: found .* for task 'b'"):
        named_vector({"b": value}, ("a", "b"), 1.0, "weights", minimum=0.0)


@pytest.mark.parametrize("kind", UNCOUPLED)
def test_base_weights_scale_the_whole_term(kind):
    tasks = {"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")}
    plain, weighed = kind().bind(tasks), kind(base_weights={"depth": 3.0, "edges": 0.5}).bind(tasks)
    losses, base = torch.tensor([4.0, 0.2]), torch.tensor([3.0, 0.5])
    one, other = plain(losses, everywhere(2)), weighed(losses, everywhere(2))
    torch.testing.assert_close(other.weights, base * one.weights)
    assert_same(other.log_variances, one.log_variances)
    alone = [plain(losses, torch.tensor(present)).total for present in ([True, False], [False, True])]
    torch.testing.assert_close(other.total, 3.0 * alone[0] + 0.5 * alone[1])


@pytest.mark.parametrize("kind", WITH_STATE)
def test_base_weight_zero_switches_a_task_off(kind):
    tasks = {"depth": as_likelihood("laplace"), "edges": as_likelihood("bernoulli")}
    weighting = kind(base_weights={"depth": 0.0}).bind(tasks)
    alone = kind().bind({"edges": tasks["edges"]})
    before = by_task(weighting, "depth")
    for step in range(3):
        losses = torch.tensor([4.0, 0.2 + step])
        weighted = train_step(weighting, losses, everywhere(2))
        assert_same(weighted.total, train_step(alone, losses[1:], everywhere(1)).total)
        assert weighted.weights[0] == 0
        assert weighted.log_variances[0].isnan()
    assert_same(by_task(weighting, "depth"), before)


@pytest.mark.parametrize("kind", WITH_STATE)
def test_base_weights_are_checked(kind):
    tasks = {"depth": as_likelihood("laplace")}
    with pytest.raises(ValueError, match=r"base_weights should name registered tasks \(depth\): found dept"):
        kind(base_weights={"dept": 1.0}).bind(tasks)
    with pytest.raises(ValueError, match=r"base_weights should be finite numbers, at least 0: found -1.0"):
        kind(base_weights={"depth": -1.0}).bind(tasks)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_STATE)
def test_reordered_tasks_load_by_name_in_silence(kind):
    old = trained(kind, "depth", "semantics", "normals")
    new = bind(kind, "normals", "depth", "semantics")
    new.load_state_dict(saved(old))  # a warning would be an error here
    assert new.remapped
    assert_same(by_task(new, *new.tasks), by_task(old, *new.tasks))
    new.check_tasks()
    order = [old.tasks.index(name) for name in new.tasks]
    losses = torch.tensor([3.0, 0.5, 7.0])
    expected, weighted = train_step(old, losses, everywhere(3)), train_step(new, losses[order], everywhere(3))
    assert_same(weighted.weights, expected.weights[order], rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", UNCOUPLED)
def test_added_tasks_start_anew(kind):
    old = trained(kind, "depth", "semantics")
    new = bind(kind, "edges", "semantics", "counts", "depth")
    fresh = by_task(new, "edges", "counts")
    with pytest.warns(UserWarning, match="^the checkpoint knows the tasks depth, semantics: edges, counts start anew$"):
        new.load_state_dict(saved(old))
    assert new.remapped
    assert_same(by_task(new, "depth", "semantics"), by_task(old, "depth", "semantics"))
    assert_same(by_task(new, "edges", "counts"), fresh)
    losses = torch.tensor([2.0, 3.0, 4.0, 5.0])
    s = train_step(new, losses, everywhere(4)).log_variances
    assert_same(s[[0, 2]], new.optimum(losses)[[0, 2]], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", WITH_STATE)
def test_removed_tasks_are_dropped(kind):
    old = trained(kind, "depth", "semantics", "normals")
    new = bind(kind, "normals", "depth")
    with pytest.warns(UserWarning, match="depth, semantics, normals: semantics are dropped$"):
        new.load_state_dict(saved(old))
    assert new.remapped
    assert_same(by_task(new, "normals", "depth"), by_task(old, "normals", "depth"))


@pytest.mark.parametrize("kind", WITH_STATE)
def test_a_renamed_task_is_one_removed_and_one_added_in_one_warning(kind):
    old = trained(kind, "depth", "semantics")
    new = bind(kind, "depth", "edges")
    with pytest.warns(UserWarning, match="edges start anew; semantics are dropped$") as caught:
        new.load_state_dict(saved(old))
    assert len(caught) == 1


@pytest.mark.parametrize("kind", WITH_STATE)
@pytest.mark.parametrize("names", [("depth", "edges"), ("edges", "depth")])
def test_a_task_renamed_on_purpose_keeps_all_it_has(kind, names):
    old = trained(kind, "depth", "semantics")
    new = bind(kind, *names)
    new.renamed = {"semantics": "edges", "never": "edges"}
    new.load_state_dict(saved(old))  # a warning would be an error here
    assert new.remapped is (names != ("depth", "edges"))  # in place, the optimizer's state fits
    new.check_tasks()
    assert_same([*by_task(new, "depth", "edges").values()], [*by_task(old, "depth", "semantics").values()])
    again = bind(kind, *names)
    again.renamed = new.renamed
    again.load_state_dict(saved(new))  # a checkpoint of today
    assert not again.remapped


def test_two_tasks_are_not_renamed_to_one():
    new = bind(UncertaintyWeighting, "depth", "edges")
    new.renamed = {"semantics": "depth"}
    before = vectors(new)
    with pytest.raises(
        ValueError, match="renamed should give every task of a checkpoint a name of its own: found depth"
    ):
        new.load_state_dict(saved(trained(UncertaintyWeighting, "depth", "semantics")))
    assert_same(vectors(new), before)


@pytest.mark.parametrize("kind", WITH_STATE)
def test_settings_are_ours_not_the_checkpoints(kind):
    tasks = {name: as_likelihood(KINDS[name]) for name in ("depth", "edges")}
    old, new = kind(base_weights={"depth": 5.0}).bind(tasks), kind(base_weights={"depth": 2.0}).bind(tasks)
    new.load_state_dict(saved(old))
    assert new.base_weight.tolist() == [2.0, 1.0]


def test_remapped_is_cleared_when_the_names_agree():
    old = trained(UncertaintyWeighting, "depth", "semantics")
    new = bind(UncertaintyWeighting, "semantics", "depth")
    assert not new.remapped
    new.load_state_dict(saved(old))
    assert new.remapped
    new.load_state_dict(saved(new))
    assert not new.remapped


def test_loading_leaves_the_checkpoint_alone():
    checkpoint = saved(trained(UncertaintyWeighting, "depth", "semantics"))
    kept = {name: value.clone() for name, value in checkpoint.items() if isinstance(value, torch.Tensor)}
    bind(UncertaintyWeighting, "semantics", "depth").load_state_dict(checkpoint)
    assert_same({name: checkpoint[name] for name in kept}, kept)
    assert checkpoint["_extra_state"]["tasks"] == ["depth", "semantics"]


def test_names_travel_inside_a_larger_module():
    old = nn.ModuleDict(
        {"weighting": trained(AnalyticUncertaintyWeighting, "depth", "semantics"), "net": nn.Linear(1, 1)}
    )
    new = nn.ModuleDict({"weighting": bind(AnalyticUncertaintyWeighting, "semantics", "depth"), "net": nn.Linear(1, 1)})
    new.load_state_dict(saved(old))
    tasks = ("depth", "semantics")
    assert_same(by_task(new["weighting"], *tasks), by_task(old["weighting"], *tasks))
    assert new["net"].weight.equal(old["net"].weight)


@pytest.mark.parametrize("double", ["ours", "theirs"])
def test_remapping_keeps_our_precision(double):
    old = trained(UncertaintyWeighting, "depth", "semantics")
    new = bind(UncertaintyWeighting, "semantics", "depth", "edges")
    (new if double == "ours" else old).double()
    with pytest.warns(UserWarning, match="edges start anew"):
        new.load_state_dict(saved(old))
    assert new.dtypes() == {torch.float64 if double == "ours" else torch.float32}


@pytest.mark.parametrize("extra", [None, torch.zeros(1), "missing"], ids=["None", "placeholder", "missing"])
@pytest.mark.parametrize("kind", WITH_STATE)
def test_without_names_the_vectors_load_as_they_are(kind, extra):
    old = trained(kind, "depth", "semantics")
    checkpoint = saved(old)
    if isinstance(extra, str):
        del checkpoint["_extra_state"]
    else:
        checkpoint["_extra_state"] = extra
    same = bind(kind, "depth", "semantics")
    assert same.load_state_dict(dict(checkpoint)) == ([], [])
    assert_same(by_task(same, *same.tasks), by_task(old, *same.tasks))
    same.check_tasks()
    other = bind(kind, "semantics", "depth")
    other.load_state_dict(dict(checkpoint))
    with pytest.raises(RuntimeError, match="another order than semantics, depth, and its task names are lost"):
        other.check_tasks()


def test_task_ids_are_stable():
    """They stand in checkpoints: another hash would make every old one look wrong."""
    ids = bind(UncertaintyWeighting, "depth", "semantics").task_ids
    assert ids.dtype is torch.int64
    assert len(set(bind(UncertaintyWeighting, *KINDS).task_ids.tolist())) == len(KINDS)
    assert ids.tolist() == [TASK_IDS["depth"], TASK_IDS["semantics"]]


def test_extra_state_is_made_of_builtins():
    extra = trained(UncertaintyWeighting, "depth", "semantics").get_extra_state()
    assert extra == {"version": 1, "tasks": ["depth", "semantics"]}


def test_only_what_changes_is_saved():
    weighting = bind(UncertaintyWeighting, "depth")
    assert set(weighting.state_dict()) == {"offset", "start", "started", "log_variance", "task_ids", "_extra_state"}
