"""Whatever is registered, weighed or loaded: a right result, or a sentence of ours and nothing changed.

`FUZZ_EXAMPLES=10000` draws that many others of each kind, in place of 500 (100 in the fast tier) that stay the same.
"""

import math
import os
import warnings

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pytorch_lightning import LightningModule

from lightning_uncertainty import MultiTaskMixin
from tests.trainer._formulas import HUGE, expected_step
from tests.trainer._fuzz import (
    BAD_VALUES,
    GOOD_VALUES,
    is_nonfinite,
    numbers_of,
    setups,
    state_of,
)
from tests.trainer._loads import CHANGES, DAMAGES, HASHES_KEY, NAMES_KEY, REFUSED, loads
from tests.trainer._registrations import registrations
from tests.trainer._resume import bits

EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
pytestmark = pytest.mark.timeout(0 if EXAMPLES else 300)
fuzz = settings(
    max_examples=int(EXAMPLES or min(500, settings.default.max_examples)),  # of the profile in use
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    phases=[Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)


def short(key):
    return key.removeprefix("task_weighting.")


def before_step(net):
    """The weighting's state in floats, by short name."""
    state = {short(key): value.tolist() for key, value in state_of(net).items() if key != NAMES_KEY}
    return {**state, "task_ids": net.task_weighting.task_ids.tolist()}


def refused(call, kind):
    """Whether a call raises a sentence of ours."""
    try:
        call()
    except kind as error:
        return is_ours(error)
    return False


def is_ours(error):
    return ": found " in str(error)


def in_another_epoch(net, epoch):
    """Have the steps so far be of this epoch; without a Trainer those to come are of epoch 0."""
    state = net.state_dict()
    net.load_state_dict({**state, "task_weighting.epoch": torch.full_like(state["task_weighting.epoch"], epoch)})


def close(found, expected, size=0.0):
    """Equal to what float32 can hold, of a sum of terms of this size."""
    return all(
        (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4 * size + 1e-35)
        for a, b in zip(found, expected, strict=True)
    )


def check_step(setup, net, losses, learning=True):
    """Weigh, and compare with the formula; False where float32 cannot hold the result."""
    numbers = [numbers_of(losses[name]) for name in setup.tasks]
    means, present = [n[0] / n[1] if n[1] else 0.0 for n in numbers], [n[1] > 0 for n in numbers]
    labels = [
        math.inf if isinstance(losses[name], torch.Tensor) else n[1]
        for name, n in zip(setup.tasks, numbers, strict=True)
    ]
    expected = expected_step(setup, before_step(net), means, present, labels, learning)
    total = net.weigh(losses)
    if max(expected.size, *expected.weights, *map(abs, expected.gradient or ()), 1e-30) > HUGE / 1e3:
        return False
    assert close([total.item()], [expected.total], expected.size)
    if not learning:
        return True
    after = before_step(net)
    for name, value in expected.state.items():
        assert close(after[name], value, max(map(abs, value))), name
    if expected.log_variances is not None:
        assert close(after["log_variance"], expected.log_variances, 10.0)
    net.zero_grad()
    if total.requires_grad:
        total.backward()
    if expected.gradient is not None and net.task_weighting.offset.grad is not None:
        assert close(net.task_weighting.offset.grad.tolist(), expected.gradient, expected.size + 1)
    for name, weight, (_, count), there in zip(setup.tasks, expected.weights, numbers, present, strict=True):
        loss = losses[name][0] if isinstance(losses[name], tuple) else losses[name]
        if there and loss.dtype.itemsize >= 4 and loss.requires_grad and weight / count < HUGE:
            assert close([loss.grad.item()], [weight / count])
    return True


def are_skipped(values):
    """Whether none is wrong but for being NaN or infinite, and one is."""
    wrong = [value for value in values if numbers_of(value) is None]
    return bool(wrong) and all(map(is_nonfinite, wrong))


def skip(net, losses):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="a training step is skipped")
        return net.weigh(losses)


# -- registration ------------------------------------------------------------------------------------------------------


class Bare(MultiTaskMixin, LightningModule):
    pass


@fuzz
@given(registrations())
def test_tasks_are_registered_or_refused(registration):
    net = Bare()
    if refused(lambda: net.register_tasks(**registration.arguments()), ValueError) is registration.sound:
        raise AssertionError("refused, though all is right" if registration.sound else "taken, though it is not right")
    if registration.sound:
        assert net.task_weighting.tasks == tuple(registration.names)
        assert set(net.task_likelihoods()) == set(net.task_weighting.tasks)
    else:
        assert state_of(net) == {}
        net.register_tasks({"depth": "gaussian"})


# -- losses ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*should share its weight among tasks")
@fuzz
@given(st.data())
def test_losses_are_weighed_by_the_formula_or_refused(data):
    setup, skips = data.draw(setups()), data.draw(st.booleans())
    net, means = setup.net(on_nonfinite="skip_step" if skips else "raise"), {name: [] for name in setup.tasks}
    for _ in range(data.draw(st.integers(1, 6))):
        careless, training = data.draw(st.integers(0, 3)) == 0, data.draw(st.integers(0, 5)) > 0
        names = data.draw(st.permutations(setup.tasks + (["other"] if careless and data.draw(st.booleans()) else [])))
        names = names[data.draw(st.integers(0, 1)) :] if careless else names
        losses = {name: data.draw(BAD_VALUES if careless else GOOD_VALUES, label=name) for name in names}
        net.train(training)
        if net.task_weighting.needs_epoch and data.draw(st.booleans()):
            in_another_epoch(net, data.draw(st.integers(0, 3)))
        before = bits(state_of(net))
        if skips and training and set(losses) == set(setup.tasks) and are_skipped(losses.values()):
            skipped = net.skipped_steps
            assert skip(net, losses).item() == 0
            assert net.skipped_steps == skipped + 1
            assert bits(state_of(net)) == before
            continue
        if set(losses) != set(setup.tasks) or not all(numbers_of(value) for value in losses.values()):
            was_refused = refused(lambda losses=losses: net.weigh(losses), ValueError)
            assert was_refused or not training
            assert bits(state_of(net)) == before
            continue
        if not check_step(setup, net, losses, training):
            return  # what is learnt from it is not finite either
        if not training:
            assert bits(state_of(net)) == before
            continue
        for name, value in losses.items():
            total, count = numbers_of(value)
            means[name] += [total / count] if count else []
        with torch.no_grad():
            for parameter in net.task_weighting.parameters():
                parameter.add_(data.draw(st.sampled_from([-1.0, 0.0, 0.3])))
    row = net.take_row().get("loss", {})
    assert set(row) == {name for name, seen in means.items() if seen}
    assert all(close([row[name]], [sum(means[name]) / len(means[name])]) for name in row)


# -- checkpoints -------------------------------------------------------------------------------------------------------


def load(net, state):
    """Load; return the error, if any."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the checkpoint ")
        try:
            net.load_state_dict(state)
        except (ValueError, RuntimeError) as error:
            return error
    return None


@pytest.mark.filterwarnings("ignore:.*should share its weight among tasks")
@fuzz
@given(loads(), st.sampled_from(list(DAMAGES)), st.data())
def test_checkpoints_load_by_name_or_are_refused(setups_and_names, damage, data):
    old, new, renamed = setups_and_names
    trained, net = old.net(), new.net(renamed=renamed)
    for step in range(data.draw(st.integers(0, 2))):
        trained.weigh({name: torch.tensor(0.5 + step + index) for index, name in enumerate(old.tasks)})
    with torch.no_grad():
        for parameter in trained.task_weighting.parameters():
            parameter.add_(torch.arange(1.0, len(parameter) + 1))
    if data.draw(st.booleans()):  # the module was in use
        net.weigh({name: torch.tensor(3.0) for name in new.tasks})
    state = state_of(trained)
    vectors = {key: value.is_floating_point() for key, value in state.items() if key != NAMES_KEY}
    keys = [key for key, changes in vectors.items() if changes]
    key = data.draw(st.sampled_from(keys or [*vectors, NAMES_KEY]))
    if keys or damage not in CHANGES:  # names and counters are no numbers to be changed
        DAMAGES[damage](state, key)
    lasting = {short(key): value for key, value in state.items() if key not in (NAMES_KEY, HASHES_KEY)}
    theirs = {name: value.float().tolist() for name, value in lasting.items()}
    own, saved = before_step(net), [renamed.get(name, name) for name in old.tasks]
    del own["task_ids"]
    anew = bool(own) and not theirs
    before = bits(state_of(net))
    error = load(net, state)
    if error is not None:
        assert is_ours(error) or "size mismatch" in str(error)
        assert not is_ours(error) or bits(state_of(net)) == before
        assert damage in REFUSED or len(set(saved)) < len(saved) or own.keys() != theirs.keys()
        return
    assert damage not in REFUSED or anew or not own  # nothing to lose
    found = before_step(net)
    for name in own:
        for index, task in enumerate(new.tasks):
            place = saved.index(task) if task in saved else None
            expected = own[name][index] if anew or place is None else theirs[name][place]
            assert bits(float(found[name][index])) == bits(float(expected)), (name, task)
    if damage != "NaN":
        check_step(new, net, {name: torch.tensor(2.0 + index) for index, name in enumerate(new.tasks)})
