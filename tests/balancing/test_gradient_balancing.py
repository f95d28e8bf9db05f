"""Gradient balancing within one backward pass equals what separate backward passes, one for each task, would give."""

import copy
import json
import pickle
from io import BytesIO
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchjd.aggregation import CRMOGMWeighting, GradVacWeighting, MGDAWeighting

from lightning_uncertainty import FixedWeighting, MultiTaskMixin, Task, UncertaintyWeighting
from lightning_uncertainty.balancing import GradientBalancing
from lightning_uncertainty.balancing._fork import gramian_of
from tests.balancing._solvers import Inverse, Returns

NAMES = ("a", "b", "c")
NAN = float("nan")


class Split(nn.Module):
    """Features in some form."""

    def __init__(self, form):
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 6)
        self.form = form

    def forward(self, x):
        low = self.first(x).tanh()
        high = self.second(low).tanh()
        tokens = torch.stack([high, 2 * high], 1)
        return {
            "tensor": high,
            "tokens": tokens,
            "tuple": (low, high),
            "dict": {"low": low, "deep": {"high": high}, "grid": x, "note": "kept"},
        }[self.form]


class Head(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.form, self.low, self.high = form, nn.Linear(8, 1), nn.Linear(6, 1)

    def forward(self, features):
        if self.form == "tensor":
            return self.high(features)
        if self.form == "tokens":
            return self.high(features).mean(1)
        if self.form == "tuple":
            return self.low(features[0]) + self.high(features[1])
        assert features["note"] == "kept"
        return self.low(features["low"]) + self.high(features["deep"]["high"]) + features["grid"][:, :1]


class Net(MultiTaskMixin, LightningModule):
    def __init__(self, weighting, form="tensor"):
        super().__init__()
        torch.manual_seed(1)
        self.trunk = Split(form)
        tasks = {name: Task("gaussian", head=Head(form)) for name in NAMES}
        self.register_tasks(tasks, weighting=weighting)
        self.double()

    def total(self, batch):
        return self.task_step(self.trunk(batch["x"]), batch, "train")


def batch_of(seed=0, missing=()):
    rng = torch.Generator().manual_seed(seed)
    batch = {"x": torch.randn(10, 4, generator=rng, dtype=torch.float64)}
    for name, scale in zip(NAMES, (1.0, 5.0, 0.3), strict=True):
        batch[name] = scale * torch.randn(10, 1, generator=rng, dtype=torch.float64)
    return batch | dict.fromkeys(missing, torch.full((10, 1), NAN, dtype=torch.float64))


def gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters() if parameter.grad is not None}


def trained(weighting, form="tensor", batch=None, by=1.0):
    """A module after one backward, and its gradients."""
    net = Net(weighting, form)
    net.total(batch or batch_of()).backward(torch.tensor(by, dtype=torch.float64))
    return net, {name: gradient / by for name, gradient in gradients(net).items()}


def separately(solver, form="tensor", batch=None, on="features"):
    """The same by a backward pass for each task: α, and the gradients of trunk and heads."""
    net, batch = Net(FixedWeighting(), form), batch or batch_of()
    features = net.trunk(batch["x"])
    leaves, form = tree_flatten(features)
    leaves = [leaf.detach().requires_grad_() if is_trained(leaf) else leaf for leaf in leaves]  # each alone
    losses = {} if on == "parameters" else means_of(net, tree_unflatten(leaves, form), batch)
    shared = [leaf for leaf in leaves if is_trained(leaf)]
    means = list(means_of(net, features, batch).values())
    if on == "parameters":
        losses, shared = dict(zip(NAMES, means, strict=True)), list(net.trunk.parameters())
    rows = [torch.autograd.grad(m, shared, retain_graph=True, allow_unused=True) for m in losses.values()]
    jacobian = torch.stack(
        [
            torch.cat(
                [
                    torch.zeros_like(x).reshape(-1) if g is None else g.reshape(-1)
                    for g, x in zip(row, shared, strict=True)
                ]
            )
            for row in rows
        ]
    )
    alpha = solver(jacobian @ jacobian.T, torch.stack(means).detach(), torch.tensor(1))
    weighted = sum(a * m for a, m in zip(alpha, means, strict=True))
    trunk = torch.autograd.grad(weighted, list(net.trunk.parameters()), retain_graph=True)
    heads = torch.autograd.grad(sum(means), list(net.task_heads.parameters()), allow_unused=True)
    return alpha, trunk, heads


def is_trained(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


def means_of(net, features, batch):
    pairs = net.task_losses({name: head(features) for name, head in net.task_heads.items()}, batch)
    return {name: total / count if count else total for name, (total, count) in pairs.items()}


def assert_close(actual, expected, **tolerances):
    torch.testing.assert_close(actual, expected, **(tolerances or {"rtol": 1e-9, "atol": 1e-12}))


def parts(found):
    trunk = [gradient for name, gradient in found.items() if name.startswith("trunk.")]
    heads = [gradient for name, gradient in found.items() if name.startswith("task_heads.")]
    return trunk, heads


@pytest.mark.parametrize("form", ["tensor", "tokens", "tuple", "dict"])
@pytest.mark.parametrize("solver", [GradientBalancing("mgda").solver, Inverse()], ids=repr)
def test_one_backward_gives_what_one_for_each_task_would(form, solver):
    alpha, trunk, heads = separately(solver, form)
    net, found = trained(GradientBalancing(solver), form)
    ours, own = parts(found)
    assert_close(ours, list(trunk))
    assert_close(own, [h for h in heads if h is not None])
    assert_close(net.task_weighting.balance, alpha)


@pytest.mark.parametrize("by", [65536.0, 1 / 3, 1e-6])
@pytest.mark.parametrize("options", [{}, {"heads": "weighted"}, {"on": "parameters"}], ids=str)
def test_a_scaled_total_has_the_same_gradients_scaled(by, options):
    """GradScaler and accumulated batches scale it; the solver is one that would notice."""
    net, found = trained(GradientBalancing(Inverse(), **options), by=by)
    expected, plain = trained(GradientBalancing(Inverse(), **options))
    assert_close(net.task_weighting.balance, expected.task_weighting.balance)
    assert_close(found, plain)


def test_weighted_heads_have_their_gradients_times_alpha():
    alpha, trunk, _ = separately(Inverse())
    net, found = trained(GradientBalancing(Inverse(), heads="weighted"))
    assert_close(parts(found)[0], list(trunk))
    for name, weight in zip(NAMES, alpha, strict=True):
        own = [h for n, h in found.items() if n.startswith(f"task_heads.{name}.")]
        plain = [h for n, h in trained(FixedWeighting())[1].items() if n.startswith(f"task_heads.{name}.")]
        assert_close(own, [weight * h for h in plain])
    assert_close(net.task_weighting.balance, alpha)


@pytest.mark.parametrize("heads", ["unweighted", "weighted"])
@pytest.mark.parametrize("form", ["tensor", "tuple"])
def test_parameters_are_balanced_exactly(heads, form):
    alpha, trunk, plain = separately(Inverse(), form, on="parameters")
    net, found = trained(GradientBalancing(Inverse(), on="parameters", heads=heads), form)
    ours, own = parts(found)
    assert_close(ours, list(trunk))
    assert_close(net.task_weighting.balance, alpha)
    each = len(own) // 3
    weights = alpha if heads == "weighted" else torch.ones(3)
    assert_close(own, [weights[i // each] * h for i, h in enumerate(h for h in plain if h is not None)])
    assert alpha.std() / alpha.mean() > 0.1
    assert not torch.allclose(alpha, separately(Inverse(), form)[0], rtol=0.1)


@pytest.mark.parametrize("heads", ["unweighted", "weighted"])
@pytest.mark.parametrize("owned", [True, False])
def test_steps_in_between_reuse_the_weights(heads, owned):
    """Whether the features can be split there or not."""
    net = Net(GradientBalancing(Inverse(), on="parameters", heads=heads, every_n_steps=3))
    kept = None
    for step in range(5):
        batch = batch_of(step)
        net.zero_grad()
        features = net.trunk(batch["x"])
        outputs = net.task_outputs(features) if owned else {n: h(features) for n, h in net.task_heads.items()}
        net.weigh(net.task_losses(outputs, batch)).backward()
        balance = net.task_weighting.balance.clone()
        if step % 3 == 0:
            assert kept is None or not torch.equal(balance, kept)
            kept = balance
            continue
        assert torch.equal(balance, kept)
        reference = Net(FixedWeighting(dict(zip(NAMES, kept.tolist(), strict=True))))
        reference.total(batch).backward()
        plain = Net(FixedWeighting())
        plain.total(batch).backward()
        assert_close(parts(gradients(net))[0], parts(gradients(reference))[0], rtol=1e-6, atol=1e-8)
        heads_as = reference if heads == "weighted" else plain
        assert_close(parts(gradients(net))[1], parts(gradients(heads_as))[1], rtol=1e-6, atol=1e-8)


def test_a_resumed_count_is_due_when_it_would_have_been():
    net = Net(GradientBalancing(Inverse(), on="parameters", every_n_steps=3))
    for step in range(4):
        net.total(batch_of(step)).backward()
    twin = Net(GradientBalancing(Inverse(), on="parameters", every_n_steps=3))
    twin.total(batch_of()).backward()
    twin.load_state_dict(net.state_dict())
    for step in range(4, 8):
        for module in (net, twin):
            module.zero_grad()
            module.total(batch_of(step)).backward()
        assert_close(gradients(net), gradients(twin), rtol=0, atol=0)


@pytest.mark.parametrize("weighting", [GradVacWeighting(), CRMOGMWeighting(MGDAWeighting())], ids=repr)
def test_what_a_solver_remembers_is_resumed(weighting):
    net, fresh = Net(GradientBalancing(weighting)), Net(GradientBalancing(copy.deepcopy(weighting)))
    for step in range(3):
        net.total(batch_of(step)).backward()
    file = BytesIO()
    torch.save(net.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        for module in (net, fresh):
            module.zero_grad()
            module.total(batch_of(step)).backward()
        assert_close(gradients(fresh), gradients(net), rtol=0, atol=0)
    fresh = Net(GradientBalancing(copy.deepcopy(weighting)))
    fresh.total(batch_of(5)).backward()
    assert not torch.allclose(fresh.task_weighting.balance, net.task_weighting.balance)


def test_tasks_in_another_order_keep_what_is_known_of_them():
    net = Net(GradientBalancing("mgda", UncertaintyWeighting(start=dict(zip(NAMES, (1.0, 2.0, 3.0), strict=True)))))
    net.total(batch_of()).backward()
    weighting = GradientBalancing("mgda", UncertaintyWeighting())
    weighting.bind({name: Task("gaussian").likelihood for name in ("c", "a", "b")}).double()
    weighting.load_state_dict(net.task_weighting.state_dict())
    order = [2, 0, 1]
    assert torch.equal(weighting.balance, net.task_weighting.balance[order])
    assert weighting.weighting.start.tolist() == [3.0, 1.0, 2.0]
    assert weighting.remapped
    weighting.check_tasks()


def test_a_weighting_before_it_keeps_its_own_gradient():
    """UncertaintyWeighting learns as without; the trunk has the balanced sum of the gradients it weighed."""
    _, alone = trained(UncertaintyWeighting(start=0.0))
    for options in ({}, {"heads": "weighted"}, {"on": "parameters"}):
        net, found = trained(GradientBalancing("mgda", UncertaintyWeighting(start=0.0), **options))
        assert_close(found["task_weighting.weighting.offset"], alone["task_weighting.offset"])
        assert net.sigma() == dict.fromkeys(NAMES, 1.0)
        row = net.take_row()
        assert set(row) == {"loss", "weight", "loss_share", "sigma", "sigma_gap"}
        assert list(row["weight"].values()) == pytest.approx((0.5 * net.task_weighting.balance).tolist())


@pytest.mark.parametrize("options", [{}, {"heads": "weighted"}, {"on": "parameters"}], ids=str)
def test_tasks_without_labels_or_gradient_have_no_part_in_it(options):
    batch = batch_of(missing=["b"])
    net = Net(GradientBalancing("mgda", **options))
    net.task_weighting.balance.fill_(7.0)
    net.total(batch).backward()
    alpha, trunk, _ = separately(net.task_weighting.solver, batch=batch, on=options.get("on", "features"))
    assert_close(parts(gradients(net))[0], list(trunk))
    assert net.task_weighting.balance[1] == 7
    assert_close(net.task_weighting.balance[[0, 2]], alpha[[0, 2]])
    nothing = Net(GradientBalancing("mgda", **options))
    nothing.total(batch_of(missing=NAMES)).backward()
    assert all((gradient == 0).all() for gradient in gradients(nothing).values())
    assert (nothing.task_weighting.balance == 1).all()


def test_a_gramian_that_is_not_finite_leaves_the_weights_as_they_were():
    net = Net(GradientBalancing(Inverse()))
    net.total(batch_of()).backward()
    before = net.task_weighting.balance.clone()
    features = net.trunk(batch_of(1)["x"])
    outputs = net.task_outputs(features)
    outputs["a"].register_hook(lambda gradient: gradient * NAN)
    net.weigh(net.task_losses(outputs, batch_of(1))).backward()
    assert torch.equal(net.task_weighting.balance, before)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_gradients_whose_squares_leave_float32_are_balanced(scale):
    net = Net(GradientBalancing("mgda", FixedWeighting({"a": scale}))).float()
    batch = {name: value.float() for name, value in batch_of().items()}
    net.total(batch).backward(torch.tensor(1e10))
    exact = Net(GradientBalancing("mgda", FixedWeighting({"a": scale})))
    exact.total(batch_of()).backward()
    assert_close(net.task_weighting.balance.double(), exact.task_weighting.balance, rtol=1e-3, atol=1e-15)


def test_tensors_that_are_not_split_get_the_plain_sum():
    class Skipping(Net):
        def total(self, batch):
            features = self.trunk(batch["x"])
            outputs = self.task_outputs(features)
            skipped = {name: output + features.sum(1, keepdim=True) for name, output in outputs.items()}
            return self.weigh(self.task_losses(skipped, batch))

    plain, balanced = Skipping(FixedWeighting()), Skipping(GradientBalancing(Returns((0.0, 0.0, 0.0))))
    for net in (plain, balanced):
        net.total(batch_of()).backward()
    frozen = Skipping(FixedWeighting())
    features = frozen.trunk(batch_of()["x"])
    outputs = frozen.task_outputs(features.detach())
    skipped = {name: output + features.sum(1, keepdim=True) for name, output in outputs.items()}
    frozen.weigh(frozen.task_losses(skipped, batch_of())).backward()
    assert_close(parts(gradients(balanced))[0], parts(gradients(frozen))[0])
    assert not torch.allclose(parts(gradients(plain))[0][0], parts(gradients(balanced))[0][0])


def test_accumulated_batches_are_balanced_one_by_one():
    net = Net(GradientBalancing(Inverse()))
    expected = []
    for seed in (0, 1):
        (net.total(batch_of(seed)) / 2).backward()
        expected.append(separately(Inverse(), batch=batch_of(seed))[1])
    assert_close(parts(gradients(net))[0], [(one + two) / 2 for one, two in zip(*expected, strict=True)])


def test_evaluation_splits_and_notes_nothing():
    net = Net(GradientBalancing("mgda"))
    state = {name: tensor.clone() for name, tensor in net.named_buffers()}
    features = net.trunk(batch_of()["x"])
    with torch.no_grad():
        assert all(branch is features for branch in net.split_features(features).values())
        net.total(batch_of())
    net.eval()
    assert all(branch is features for branch in net.split_features(features).values())
    net.weigh(net.task_losses(net.task_outputs(features), batch_of())).backward()
    torch.testing.assert_close(dict(net.named_buffers()), state, equal_nan=True)


def test_copies_in_the_middle_of_a_step():
    net = Net(GradientBalancing("mgda"))
    net.task_outputs(net.trunk(batch_of()["x"]))  # a step that was broken off
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        with pytest.raises(RuntimeError, match="should see the shared features"):
            twin.weigh(dict.fromkeys(NAMES, torch.ones((), requires_grad=True)))
        twin.total(batch_of()).backward()
        net.zero_grad()
        net.total(batch_of()).backward()
        assert_close(gradients(twin), gradients(net), rtol=0, atol=0)


def test_features_that_go_around_the_split_are_refused():
    net = Net(GradientBalancing("mgda"))
    features = net.trunk(batch_of()["x"])
    around = {name: head(features) for name, head in net.task_heads.items()}
    with pytest.raises(RuntimeError, match="GradientBalancing should see the shared features: found losses"):
        net.weigh(net.task_losses(around, batch_of()))
    outputs = net.task_outputs(features)
    total = net.weigh(net.task_losses(outputs | {"b": around["b"]}, batch_of()))
    with pytest.raises(RuntimeError, match="found the loss of b computed around it; use task_outputs, or give"):
        total.backward()
    branches = net.task_splitter.split(net.task_weighting, features, ("a", "c"))
    outputs = {name: net.task_heads[name](branches.get(name, features)) for name in NAMES}
    with pytest.raises(RuntimeError, match="found the loss of b computed around it"):
        net.weigh(net.task_losses(outputs, batch_of())).backward()


def test_features_split_twice_in_a_step_are_refused():
    net = Net(GradientBalancing("mgda"))
    once = net.task_outputs(net.trunk(batch_of()["x"]))
    twice = net.task_outputs(net.trunk(batch_of(1)["x"]))
    with pytest.raises(RuntimeError, match="found the loss of a, b computed around it"):
        net.weigh(net.task_losses({**once, "c": twice["c"]}, batch_of())).backward()


def test_a_backward_from_elsewhere_is_refused():
    net = Net(GradientBalancing("mgda"))
    with pytest.raises(RuntimeError, match="features should be split once for each weigh, and the total that weigh"):
        net.task_outputs(net.trunk(batch_of()["x"]))["a"].sum().backward()


@pytest.mark.parametrize("options", [{}, {"heads": "weighted"}], ids=str)
def test_a_second_backward_is_refused(options):
    net = Net(GradientBalancing("mgda", **options))
    total = net.total(batch_of())
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="should have one backward: found a second"):
        total.backward()


def test_a_head_that_changes_its_branch_in_place_is_refused():
    net = Net(GradientBalancing("mgda"))
    branches = net.split_features(net.trunk(batch_of()["x"]))
    with pytest.raises(RuntimeError, match="being modified inplace"):
        branches["a"].relu_()


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ((1.0, 2.0), r"should return one weight for each of 3 tasks: found shape \[2\] from Returns"),
        ((1.0, NAN, 2.0), r"should return finite weights: found \[1.0, nan, 2.0\] from Returns"),
    ],
)
def test_solvers_that_return_no_weights_are_refused(weights, match):
    net = Net(GradientBalancing(Returns(weights)))
    with pytest.raises(ValueError, match=match):
        net.total(batch_of()).backward()
    assert (net.task_weighting.balance == 1).all()


def test_a_frozen_trunk_is_told_once():
    net = Net(GradientBalancing("mgda"))
    net.trunk.requires_grad_(False)
    with pytest.warns(UserWarning, match="the shared features have no gradient, so GradientBalancing has nothing to"):
        net.total(batch_of()).backward()
    net.total(batch_of()).backward()
    assert parts(gradients(net))[1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"heads": "both"}, "heads should be 'unweighted' or 'weighted': found 'both'"),
        ({"on": "trunk"}, "on should be 'features' or 'parameters': found 'trunk'"),
        ({"every_n_steps": 0, "on": "parameters"}, "every_n_steps should be at least 1"),
        ({"every_n_steps": 2}, "and 1 with on='features'"),
        ({"weighting": GradientBalancing()}, "should weigh losses, not gradients"),
        ({"weighting": UncertaintyWeighting}, r"weighting should be a Weighting: .*as in UncertaintyWeighting\(\)"),
        ({"weighting": "uncertainty"}, "weighting should be a Weighting: found 'uncertainty'"),
        (
            {"solver": UncertaintyWeighting()},
            r"found UncertaintyWeighting\(\), which weighs losses; .* GradientBalancing\('mgda', Uncert",
        ),
    ],
)
def test_options_that_make_no_sense(options, match):
    with pytest.raises(ValueError, match=match):
        GradientBalancing(**options)


def test_parameters_that_nobody_knows_to_be_shared():
    class Computing(Net):
        def __init__(self):
            LightningModule.__init__(self)
            self.trunk, self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 1), nn.Linear(6, 1)
            weighting = GradientBalancing(on="parameters")
            self.register_tasks({"a": "gaussian", "b": "gaussian"}, weighting=weighting)

        def total(self):
            z = self.trunk(torch.ones(3, 4))
            return self.weigh({"a": self.a(z).square().mean(), "b": (self.b(z) - 1).square().mean()})

    with pytest.raises(RuntimeError, match="shared_parameters should tell what the tasks share: found no Task with a"):
        Computing().total()
    net = Computing()
    net.shared_parameters = lambda: list(net.trunk.parameters())
    net.total().backward()
    assert all(parameter.grad is not None for parameter in net.trunk.parameters())


def test_sharded_parameters_are_refused():
    class Sharded(nn.Parameter):
        pass

    net = Net(GradientBalancing(on="parameters"))
    net.shared_parameters = lambda: [Sharded(net.trunk.first.weight.data)]
    with pytest.raises(RuntimeError, match="should have whole parameters: found 1 of type Sharded; use on='features'"):
        net.total(batch_of())


def test_gradients_of_parameters_are_averaged_before_their_gramian_is_formed():
    case = json.loads((Path(__file__).parents[1] / "vectors.json").read_text(encoding="utf-8"))["gram.ddp"]
    jacobians = torch.tensor([case["inputs"]["J_rank0"], case["inputs"]["J_rank1"]], dtype=torch.float64)
    gramian = gramian_of(jacobians.mean(0))
    assert gramian.tolist() == case["expected"]["gramian_of_mean"]
    solver, draw = GradientBalancing("mgda").solver, torch.tensor(0)
    wrong = torch.stack([gramian_of(jacobian) for jacobian in jacobians]).mean(0)
    # the second task's gradient is zero on average: it has no part in the step, whose length is then that of the other
    assert solver(gramian, torch.ones(2), draw).tolist() == [1.0, 0.0]
    assert solver(wrong, torch.ones(2), draw).tolist() == pytest.approx(case["expected"]["mgda_wrong"])


def test_repr_says_what_was_given():
    assert repr(GradientBalancing()) == f"GradientBalancing(solver={GradientBalancing().solver!r})"
    whole = repr(GradientBalancing("mgda", UncertaintyWeighting(), heads="weighted", on="parameters", every_n_steps=4))
    assert whole.endswith("weighting=UncertaintyWeighting(), heads='weighted', on='parameters', every_n_steps=4)")


def test_constants_cannot_be_exported():
    net = Net(GradientBalancing("mgda"))
    net.total(batch_of()).backward()
    with pytest.raises(ValueError, match="weights should be learnt before they are exported"):
        net.fixed_weighting()
