import pytest
import torch
from torch import nn

from lightning_uncertainty._tensors import text_of
from lightning_uncertainty.likelihoods import as_likelihood
from lightning_uncertainty.weightings import (
    AnalyticUncertaintyWeighting,
    FixedWeighting,
    SoftOptimalUncertaintyWeighting,
    UncertaintyWeighting,
)
from tests._numbers import saved
from tests.weightings._bound import KINDS, UNCOUPLED, WITH_STATE, bind, by_task
from tests.weightings._properties import assert_same, everywhere, train_step, vectors

TASK_IDS = {"depth": -2390530514267407338, "semantics": -8049304875501222275}


def trained(kind, *names):
    """A weighting whose every vector tells the tasks apart."""
    weighting = bind(kind, *names)
    for step in range(3):
        train_step(weighting, torch.arange(1.0, 1 + len(names)) * (2 + step), everywhere(len(names)))
    return weighting


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
    assert text_of(checkpoint["_extra_state"][0]) == "depth"


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


def of_before(weighting, extra=None):
    """The checkpoint of a weighting as it was when its names were a dict, beside their hashes."""
    checkpoint = {name: value for name, value in saved(weighting).items() if not name.startswith("foreign_")}
    extra = {"version": 1, "tasks": list(weighting.tasks)} if extra is None else extra
    return {**checkpoint, "task_ids": weighting.task_ids.clone(), "_extra_state": extra}


@pytest.mark.parametrize("kind", [*WITH_STATE, FixedWeighting])
def test_an_older_checkpoint_loads_strictly_and_by_name(kind):
    old, new = trained(kind, "depth", "semantics", "normals"), bind(kind, "normals", "depth", "semantics")
    assert new.load_state_dict({**of_before(old), "task_ids": torch.zeros(3)}) == (
        [],
        [],
    )  # a warning would be an error here
    assert new.remapped
    assert_same(by_task(new, *new.tasks), by_task(old, *new.tasks))
    new.check_tasks()
    assert_same(new.state_dict()["_extra_state"], bind(kind, *new.tasks).state_dict()["_extra_state"])


@pytest.mark.parametrize("extra", ["None", torch.zeros(1), "missing"], ids=["None", "placeholder", "missing"])
@pytest.mark.parametrize("kind", WITH_STATE)
def test_an_older_checkpoint_without_names_is_known_by_its_hashes(kind, extra):
    old = trained(kind, "depth", "semantics")
    checkpoint = of_before(old, extra)
    if isinstance(extra, str):
        checkpoint = {**checkpoint, "_extra_state": None}
        if extra == "missing":
            del checkpoint["_extra_state"]
    checkpoint["task_ids"] = (checkpoint["task_ids"].double() * (1 + 1e-4)).long()  # as an average rounds them
    other = bind(kind, "semantics", "depth")
    assert other.load_state_dict(checkpoint) == ([], [])
    assert_same(by_task(other, *other.tasks), by_task(old, *other.tasks))
    assert other.remapped
    renamed = bind(kind, "depth", "edges")
    renamed.rename({"semantics": "edges"})
    renamed.load_state_dict(checkpoint)
    assert_same([*by_task(renamed, "edges").values()], [*by_task(old, "semantics").values()])
    with pytest.warns(UserWarning, match="depth, unknown 2: edges start anew; unknown 2 are dropped"):
        bind(kind, "edges", "depth").load_state_dict(checkpoint)


def test_hashes_that_are_near_are_told_apart_though_averages_round_them():
    near = {name: as_likelihood("gaussian") for name in ("depth", "width")}  # 0.2 % apart
    old, new = (UncertaintyWeighting().bind(dict(names)) for names in (near.items(), reversed(near.items())))
    old.offset.data.copy_(torch.tensor([1.0, 2.0]))
    checkpoint = {**saved(old), "_extra_state": None, "task_ids": (old.task_ids.double() * (1 + 1e-4)).long()}
    new.load_state_dict(checkpoint)
    assert new.offset.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("kind", WITH_STATE)
def test_vectors_without_names_are_refused_or_left(kind):
    checkpoint, new = saved(trained(kind, "depth", "semantics")), trained(kind, "depth", "semantics")
    del checkpoint["_extra_state"]
    before = vectors(new)
    with pytest.warns(UserWarning, match="the checkpoint has lost the names of its tasks: found vectors without"):
        assert new.load_state_dict(checkpoint, strict=False) == (["weighting"], [])
    with pytest.warns(UserWarning, match="lost"), pytest.raises(RuntimeError, match="has lost the names"):
        new.load_state_dict(checkpoint)
    assert_same(vectors(new), before)


def one_by_one(module, state):
    """Load as Lightning does under FSDP2: one tensor at a time, beside those that the module has."""
    for name, _ in [*module.named_buffers(), *module.named_parameters()]:
        if name not in module._non_persistent_buffers_set:
            module.load_state_dict({**module.state_dict(keep_vars=True), name: state[name]}, strict=False)


@pytest.mark.parametrize("of", [saved, of_before])
@pytest.mark.parametrize("kind", WITH_STATE)
def test_a_checkpoint_loaded_one_by_one_is_taken_as_it_is_and_refused_where_its_tasks_are_others(kind, of):
    old, same, other = trained(kind, "depth", "semantics"), bind(kind, "depth", "semantics"), bind(kind, *KINDS)
    one_by_one(same, of(old))
    assert_same(by_task(same, *same.tasks), by_task(old, *same.tasks))
    same.check_tasks()
    other = bind(kind, "semantics", "depth")
    one_by_one(other, of(old))
    with pytest.raises(RuntimeError, match="today's order, semantics, depth: found depth, semantics; register"):
        other.check_tasks()


@pytest.mark.parametrize("kind", WITH_STATE)
@pytest.mark.parametrize("before", [None, FixedWeighting, SoftOptimalUncertaintyWeighting])
def test_a_checkpoint_with_nothing_of_a_weighting_loads_with_one_warning(before, kind):
    """Of the model before it had tasks, or when it weighed them by something without state: all stays as it was."""
    old = nn.ModuleDict({"net": nn.Linear(1, 1)})
    if before is not None:
        old["weighting"] = bind(before, "semantics", "depth")
    new = nn.ModuleDict({"weighting": trained(kind, "depth", "semantics"), "net": nn.Linear(1, 1)})
    weighting, kept = new["weighting"], vectors(new["weighting"])
    with pytest.warns(
        UserWarning, match=r"has nothing of \w+\(.*, so its tasks start anew: depth, semantics$"
    ) as caught:
        assert new.load_state_dict(saved(old), strict=True) == ([], [])
    assert len(caught) == 1
    assert_same(vectors(weighting), kept)
    assert weighting.tasks == ("depth", "semantics")
    assert not weighting.remapped
    weighting.check_tasks()
    assert new["net"].weight.equal(old["net"].weight)
    expected = bind(kind, "depth", "semantics")
    expected.load_state_dict(kept, strict=False)
    losses = torch.tensor([3.0, 0.5])
    assert_same(train_step(weighting, losses, everywhere(2)), train_step(expected, losses, everywhere(2)))


def test_a_weighting_without_state_takes_any_checkpoint_in_silence():
    old, new = nn.ModuleDict({"net": nn.Linear(1, 1)}), nn.ModuleDict({"net": nn.Linear(1, 1)})
    new["weighting"] = bind(FixedWeighting, "depth")
    assert new.load_state_dict(saved(old)) == ([], [])  # a warning would be an error here
    new["weighting"].check_tasks()


@pytest.mark.parametrize("kind", WITH_STATE)
def test_a_checkpoint_with_some_vectors_missing_is_refused_in_a_sentence_or_left(kind):
    checkpoint = saved(trained(kind, "depth", "semantics"))
    for missing in set(checkpoint) - {"_extra_state"}:
        some, new = {name: value for name, value in checkpoint.items() if name != missing}, bind(kind, "depth", "edges")
        before = vectors(new)
        sentence = rf"is not of \w+\(.*: found one without {missing}; take the wei"
        with pytest.warns(UserWarning, match=missing), pytest.raises(RuntimeError, match=sentence) as error:
            new.load_state_dict(some, strict=True)
        assert str(error.value).count('"') == 2  # and no lists of torch
        with pytest.warns(UserWarning, match="with which the tasks start anew: depth, edges$") as caught:
            new.load_state_dict(some, strict=False)
        assert len(caught) == 1
        assert_same(vectors(new), before)


def test_task_ids_are_stable():
    """They stand in checkpoints: another hash would make every old one look wrong."""
    ids = bind(UncertaintyWeighting, "depth", "semantics").task_ids
    assert ids.dtype is torch.int64
    assert len(set(bind(UncertaintyWeighting, *KINDS).task_ids.tolist())) == len(KINDS)
    assert ids.tolist() == [TASK_IDS["depth"], TASK_IDS["semantics"]]


def test_only_what_changes_is_saved():
    weighting = bind(UncertaintyWeighting, "depth")
    learnt = {"offset", "start", "started", "labels", "mean_loss", "steps", "late", "log_variance"}
    drift = {"last_offset", "present_since"}
    assert set(weighting.state_dict()) == learnt | drift | {"_extra_state"}
