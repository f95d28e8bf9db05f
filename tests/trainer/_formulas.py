"""What the formulas make of losses, one step written out in floats: the oracle of the fuzzer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lightning_uncertainty import weightings
from lightning_uncertainty.likelihoods import LIKELIHOODS
from tests.trainer._fuzz import HUGE, Setup

TINY = torch.finfo(torch.float32).tiny
Vector = Sequence[float]


@dataclass
class Expected:
    """What a step should give; `gradient` is that of the offset, `state` what the buffers should hold after it."""

    total: float
    size: float  # sum of the terms' sizes: what the total's rounding goes by
    weights: Vector
    log_variances: Vector | None
    gradient: Vector | None
    state: dict[str, Vector]


def expected_step(
    setup: Setup,
    state: Mapping[str, Vector],
    losses: Vector,
    present: Sequence[bool],
    labels: Vector,
    learning: bool = True,
) -> Expected:
    """What the weighting should make of mean losses of so many labels, from the state before them.

    The total and its gradient in the losses are those of the objective. Its gradient in s is not: it is that of the
    running mean loss, and bounded, unless memory is None.
    """
    kinds = [LIKELIHOODS[kind] for kind in setup.kinds.values()]
    c, a, r = ([getattr(kind, name) for kind in kinds] for name in ("factor", "exponent", "penalty"))
    b = [setup.options.get("base_weights", {}).get(name, 1.0) for name in setup.tasks]
    usable = [p and x > 0 and w > 0 for p, x, w in zip(present, losses, b, strict=True)]
    if not learning and "steps" in state and "labels" not in state:
        usable = [ok and not steps for ok, steps in zip(usable, state["steps"], strict=True)]
    step, given = _STEPS[setup.kind], (setup, state, losses, present, usable, (c, a, r, b), learning)
    return step(*given, labels) if "labels" in state else step(*given)


def _exp(x: float) -> float:
    return math.inf if x > 700 else math.exp(x)


def _optimum(loss: float, c: float, a: float, r: float) -> float:
    return math.log(a * c * max(loss, TINY) / r) / a


def _summed(
    terms: Sequence[float], weights: Vector, s: Vector | None, gradient: Vector | None, **state: Any
) -> Expected:
    return Expected(sum(terms), sum(map(abs, terms)), weights, s, gradient, state)


def _fixed(setup, state, losses, present, usable, numbers, learning) -> Expected:
    weights = [p * setup.options["weights"].get(name, 1.0) for p, name in zip(present, setup.tasks, strict=True)]
    return _weighted(losses, weights)


def _soft(setup, state, losses, present, usable, numbers, learning) -> Expected:
    b, temperature = numbers[3], setup.options["temperature"]
    counted = [p and w > 0 for p, w in zip(present, b, strict=True)]
    inverse = [min(1 / (x * temperature), HUGE) if x else HUGE for x in losses]
    greatest = max((x for x, ok in zip(inverse, counted, strict=True) if ok), default=0.0)
    powers = [math.exp(x - greatest) if ok else 0.0 for x, ok in zip(inverse, counted, strict=True)]
    weights = [w * x / max(sum(powers), TINY) for w, x in zip(b, powers, strict=True)]
    return _weighted(losses, weights)


def _kendall(s: Vector, losses: Vector, present: Sequence[bool], numbers: Any) -> tuple[list[float], list[float]]:
    """Kendall's terms, and their weights."""
    rows = list(zip(s, losses, present, *numbers, strict=True))
    weights = [p * b * c * _exp(-a * x) if b else 0.0 for x, _, p, c, a, _, b in rows]
    terms = [
        part for w, (x, loss, p, _, _, r, b) in zip(weights, rows, strict=True) for part in (w * loss, p * b * r * x)
    ]
    return terms, weights


def _analytic(setup, state, losses, present, usable, numbers, learning) -> Expected:
    decay, steps, means = setup.options["decay"], list(state["steps"]), list(state["mean_loss"])
    for i, ok in enumerate(usable):
        if ok:
            steps[i] += 1
            means[i] += (1 - decay) / (1 - decay ** steps[i]) * (losses[i] - means[i])
    c, a, r, _ = numbers
    best = [_optimum(mean, *n) for mean, *n in zip(means, c, a, r, strict=True)]
    s = [x if n else 0.0 for x, n in zip(best, steps, strict=True)]
    terms, weights = _kendall(s, losses, present, numbers)
    reported = [x if n else math.nan for x, n in zip(best, steps, strict=True)]
    return _summed(terms, weights, reported, None, mean_loss=means, steps=steps)


@dataclass
class Learnt:
    """What a weighting that learns log-variances remembers with a step, and where that leaves its raw numbers."""

    raw: list[float]
    seen: list[bool]
    mean: list[float]
    steps: list[float]
    after: dict[str, Vector]
    known: list[bool]


def _learnt(setup, state, losses, present, numbers, labels, learning, first, members=None) -> Learnt:
    """Go on with the running means, and start tasks; `first` makes starts of mean losses and numbers of steps."""
    span, enough, tasks = range(len(losses)), 32.0, setup.tasks
    members = members or [[i] for i in span]
    decay = 1 - 1 / (setup.options.get("memory", 20.0) or 20.0)
    mean, steps, counted, started = (list(state[name]) for name in ("mean_loss", "steps", "labels", "started"))
    seen = [bool(present[i] and numbers[3][i] > 0 and (losses[i] > 0 or started[i] or counted[i] > 0)) for i in span]
    for i in span:
        if not seen[i]:
            continue
        newest, steps[i] = losses[i], steps[i] + 1
        if started[i]:
            newest = min(newest, 100 * mean[i]) if mean[i] > 0 else newest
            rate = (1 - decay) / (1 - decay ** steps[i])
            kept = 1 - rate
        else:
            count = enough if math.isinf(labels[i]) else labels[i]
            counted[i] += count
            rate, kept = count / counted[i], state["labels"][i] / counted[i]
        mean[i] = kept * mean[i] + rate * newest
    offset, since = list(state["offset"]), list(state["present_since"])
    drift = [now - last for now, last in zip(offset, state["last_offset"], strict=True)]
    start = [x if n > 0 else x - d for x, n, d in zip(state["start"], since, drift, strict=True)]
    given = [x + o for x, o in zip(start, offset, strict=True)]
    begins, raw, known = first(mean, steps), list(given), [False] * len(tasks)
    since = [float(any(seen[j] for j in members[i]) or (since[i] > 0 and not drift[i])) for i in span]
    after_started, after_labels = list(started), list(counted)
    for i in span:
        begun = [given[j] for j in members[i] if started[j]]
        new = (any(seen[j] for j in members[i]) or bool(begun)) and not started[i]
        if new and (learning or not any(state["labels"][j] for j in members[i])):
            raw[i] = sum(begun) / len(begun) if begun else begins[i]
            start[i] = raw[i] - offset[i]
        if started[i] or (new and (begun or sum(counted[j] for j in members[i]) >= enough)):
            after_started[i], after_labels[i] = 1.0, enough
    for i in span:
        known[i] = bool(after_started[i] or any(after_labels[j] for j in members[i]))
    after: dict[str, Vector] = {"start": start, "started": after_started, "labels": after_labels}
    after |= {"mean_loss": mean, "steps": steps, "last_offset": offset, "present_since": since}
    return Learnt(raw, seen, mean, steps, after, known)


def _reported(s: Vector, learnt: Learnt) -> list[float]:
    return [x if known else math.nan for x, known in zip(s, learnt.known, strict=True)]


def _pull(exponent: float) -> float:
    return max(1 - _exp(exponent), -1.0)


def _uncertainty_step(setup, state, losses, present, usable, numbers, learning, labels) -> Expected:
    (c, a, r, b), tasks, span = numbers, setup.tasks, range(len(losses))
    groups = [next((g for g in setup.options.get("shared", ()) if name in g), [name]) for name in tasks]
    members = [[tasks.index(name) for name in group] for group in groups]
    bounds = setup.options.get("bounds")
    pairs = bounds if isinstance(bounds, Mapping) else dict.fromkeys(tasks, bounds or (-math.inf, math.inf))
    low, high = zip(*[pairs.get(name, (-math.inf, math.inf)) for name in tasks], strict=True)

    def free(mean: Vector, steps: Vector) -> list[float]:
        sizes = [sum(b[j] * steps[j] for j in members[i]) for i in span]
        sums = [sum(b[j] * steps[j] * mean[j] for j in members[i]) for i in span]
        pooled = [x / n if n else 0.0 for x, n in zip(sums, sizes, strict=True)]
        return [_optimum(pooled[i], c[i], a[i], r[i]) for i in span]

    def first(mean: Vector, steps: Vector) -> list[float]:
        return [min(max(x, lo), hi) for x, lo, hi in zip(free(mean, steps), low, high, strict=True)]

    learnt = _learnt(setup, state, losses, present, numbers, labels, learning, first, members)
    shared = [sum(learnt.raw[j] for j in members[i]) / len(members[i]) for i in span]
    s = [min(max(x, lo), hi) for x, lo, hi in zip(shared, low, high, strict=True)]
    terms, weights = _kendall(s, losses, present, numbers)
    if setup.options.get("memory", 20.0) is None:
        slopes = [present[i] * (b[i] * r[i] - a[i] * weights[i] * losses[i]) for i in span]
    else:
        best = free(learnt.mean, learnt.steps)
        slopes = [b[i] * r[i] * _pull(a[i] * (best[i] - s[i])) if learnt.seen[i] else 0.0 for i in span]
    kept = [
        0.0 if (shared[i] <= low[i] and slopes[i] > 0) or (shared[i] >= high[i] and slopes[i] < 0) else slopes[i]
        for i in span
    ]
    gradient = [sum(kept[j] for j in members[i]) if state["started"][i] else 0.0 for i in span]
    return _summed(terms, weights, _reported(s, learnt), gradient, **learnt.after)


def _bounded_optimum(loss: float) -> float:
    loss = max(loss, TINY)
    return math.log((loss + math.sqrt(loss * loss + 8 * loss)) / 4)


def _bounded_step(setup, state, losses, present, usable, numbers, learning, labels) -> Expected:
    b = numbers[3]
    learnt = _learnt(
        setup, state, losses, present, numbers, labels, learning, lambda mean, _: [_bounded_optimum(x) for x in mean]
    )
    s = learnt.raw
    rows = list(zip(s, losses, present, b, state["started"], strict=True))
    weights = [p * w * _exp(-x) / 2 for x, _, p, w, _ in rows]
    terms = [e * x for e, x in zip(weights, losses, strict=True)]
    terms += [p * w * (max(x, 0.0) + math.log1p(math.exp(-abs(x)))) for x, _, p, w, _ in rows]
    if setup.options.get("memory", 20.0) is None:
        slopes = [p * w / (1 + _exp(-x)) - e * loss for e, (x, loss, p, w, _) in zip(weights, rows, strict=True)]
    else:
        slopes = [
            seen * w * max(1 / (1 + _exp(-x)) - _exp(-x) * mean / 2, -1 / (1 + _exp(-_bounded_optimum(mean))))
            for x, w, mean, seen in zip(s, b, learnt.mean, learnt.seen, strict=True)
        ]
    gradient = [started * slope for slope, started in zip(slopes, state["started"], strict=True)]
    return _summed(terms, weights, _reported(s, learnt), gradient, **learnt.after)


def _constrained_step(setup, state, losses, present, usable, numbers, learning, labels) -> Expected:
    c, a, r, b = numbers
    level = setup.options["mean_log_variance"]
    learnt = _learnt(
        setup,
        state,
        losses,
        present,
        numbers,
        labels,
        learning,
        lambda mean, _: [_optimum(x, *n) for x, *n in zip(mean, c, a, r, strict=True)],
    )
    counted = [bool(p and w > 0) for p, w in zip(present, b, strict=True)]
    mean = sum(x for x, ok in zip(learnt.raw, counted, strict=True) if ok) / max(sum(counted), 1)
    s = [x - mean + level for x in learnt.raw]
    weights = [p * w * e * _exp(-k * x) if w else 0.0 for x, p, e, k, w in zip(s, present, c, a, b, strict=True)]
    terms = [w * x for w, x in zip(weights, losses, strict=True)]
    if setup.options.get("memory", 20.0) is None:
        slopes = [-k * term for k, term in zip(a, terms, strict=True)]
    else:
        known = [i for i, seen in enumerate(learnt.seen) if seen and learnt.mean[i] > 0]
        free = {i: math.log(a[i] * b[i] * c[i] * max(learnt.mean[i], TINY)) / a[i] for i in known}
        multiplier = sum(free[i] - level for i in known) / sum(1 / a[i] for i in known) if known else 0.0
        slopes = [0.0] * len(s)
        for i in known:
            slopes[i] = -_exp(multiplier) * min(_exp(a[i] * (free[i] - s[i]) - multiplier), 2.0)
    share = sum(slopes) / max(sum(counted), 1)
    gradient = [started * (g - ok * share) for g, ok, started in zip(slopes, counted, state["started"], strict=True)]
    return _summed(terms, weights, _reported(s, learnt), gradient, **learnt.after)


def _weighted(losses: Vector, weights: Vector, **state: Any) -> Expected:
    return _summed([w * x for w, x in zip(weights, losses, strict=True)], weights, None, None, **state)


def _splitmix64(*keys: int) -> int:
    z = 0
    for key in keys:
        z = (z + 0x9E3779B97F4A7C15 + key) % 2**64
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        z = z ^ z >> 31
    return z


def _normal(*keys: int) -> float:
    one, two = (((_splitmix64(*keys, i) >> 41) + 0.5) / 2**23 for i in range(2))
    return math.sqrt(-2 * math.log(one)) * math.cos(2 * math.pi * two)


def _random(setup, state, losses, present, usable, numbers, learning) -> Expected:
    counted = [p and b > 0 for p, b in zip(present, numbers[3], strict=True)]
    draws = [draw + (learning and ok) for draw, ok in zip(state["draws"], counted, strict=True)]
    z = [
        _normal(setup.options["seed"], *key) if learning else 0.0 for key in zip(state["task_ids"], draws, strict=True)
    ]
    powers = [math.exp(x) if ok else 0.0 for x, ok in zip(z, counted, strict=True)]
    weights = [b * x / max(sum(powers), TINY) for b, x in zip(numbers[3], powers, strict=True)]
    return _weighted(losses, weights, draws=draws)


def _geometric(setup, state, losses, present, usable, numbers, learning) -> Expected:
    counted = [b if p else 0.0 for p, b in zip(present, numbers[3], strict=True)]
    total = max(sum(counted), TINY)
    logs = [math.log(max(x, TINY)) for x in losses]
    mean = sum(b * x for b, x in zip(counted, logs, strict=True)) / total
    weights = [b / total * _exp(min(mean - x, 88.7)) for b, x in zip(counted, logs, strict=True)]
    value = math.exp(mean) if any(counted) else 0.0
    return Expected(value, value, weights, None, None, {})


def _impartial(setup, state, losses, present, usable, numbers, learning, labels) -> Expected:
    b = numbers[3]
    learnt = _learnt(
        setup, state, losses, present, numbers, labels, learning, lambda mean, _: [math.log(max(x, TINY)) for x in mean]
    )
    s = learnt.raw
    weights = [p * w * _exp(-x) if w else 0.0 for x, p, w in zip(s, present, b, strict=True)]
    terms = [e * x for e, x in zip(weights, losses, strict=True)]
    if setup.options.get("memory", 20.0) is None:
        slopes = [p * w - term for p, w, term in zip(present, b, terms, strict=True)]
    else:
        slopes = [
            seen * w * _pull(math.log(max(mean, TINY)) - x)
            for x, w, mean, seen in zip(s, b, learnt.mean, learnt.seen, strict=True)
        ]
    gradient = [started * slope for slope, started in zip(slopes, state["started"], strict=True)]
    terms += [p * w * x for x, p, w in zip(s, present, b, strict=True)]
    return _summed(terms, weights, _reported(s, learnt), gradient, **learnt.after)


def _means_of_the_epoch(state, losses, counted, epoch) -> tuple[list[bool], dict[str, Vector]]:
    """Which tasks have another epoch behind them, and what is counted with this step."""
    over = [old != epoch for old in state["epoch"]]
    ended = [new and steps > 0 for new, steps in zip(over, state["steps"], strict=True)]
    steps, means = [], []
    for new, n, mean, loss, ok in zip(over, state["steps"], state["mean_loss"], losses, counted, strict=True):
        n, mean = (0, 0.0) if new else (n, mean)
        steps.append(n + ok)
        means.append((n * mean + loss) / (n + 1) if ok else mean)
    return ended, {"epoch": [epoch] * len(losses), "steps": steps, "mean_loss": means}


def _average(setup, state, losses, present, usable, numbers, learning) -> Expected:
    b, temperature = numbers[3], setup.options["temperature"]
    counted = [bool(p and w > 0) for p, w in zip(present, b, strict=True)]
    after: dict[str, Vector] = {}
    last, before = state["last"], state["before"]
    if learning:
        ended, after = _means_of_the_epoch(state, losses, counted, 0)
        before = [new if end else old for new, old, end in zip(last, before, ended, strict=True)]
        last = [new if end else old for new, old, end in zip(state["mean_loss"], last, ended, strict=True)]
        after |= {"last": last, "before": before}
    rates = [min((x / y if y else 1.0) / temperature, HUGE) for x, y in zip(last, before, strict=True)]
    greatest = max((x for x, ok in zip(rates, counted, strict=True) if ok), default=0.0)
    powers = [math.exp(x - greatest) if ok else 0.0 for x, ok in zip(rates, counted, strict=True)]
    weights = [w * sum(counted) * x / max(sum(powers), TINY) for w, x in zip(b, powers, strict=True)]
    return _weighted(losses, weights, **after)


def _prioritized(setup, state, losses, present, usable, numbers, learning) -> Expected:
    reference, gamma, decay = (setup.options[name] for name in ("kpis", "gamma", "decay"))
    exponents = [gamma.get(name, 1.0) if isinstance(gamma, Mapping) else gamma for name in setup.tasks]
    means, started, weights = [], [], []
    rows = zip(losses, present, numbers[3], exponents, state["shortfall"], state["started"], strict=True)
    for loss, there, b, exponent, mean, begun in rows:
        short, counted = loss / (reference + loss), bool(there and b > 0)
        if counted and (learning or not begun):
            mean = decay * mean + (1 - decay) * short if begun else short
        means.append(mean)
        started.append(begun or counted)
        clamped = min(max(mean, 1e-6), 1 - 1e-3)
        weights.append(-counted * b * clamped**exponent * math.log1p(-clamped))
    return _weighted(losses, weights, **({"shortfall": means, "started": started} if learning else {}))


def _smooth_maximum(terms: Vector, counted: Sequence[bool], temperature: float) -> tuple[float, list[float]]:
    greatest = max((x for x, ok in zip(terms, counted, strict=True) if ok), default=0.0)
    powers = [math.exp((x - greatest) / temperature) if ok else 0.0 for x, ok in zip(terms, counted, strict=True)]
    total = sum(powers)
    return greatest + temperature * math.log(total or 1.0), [x / (total or 1.0) for x in powers]


def _tchebycheff(setup, state, losses, present, usable, numbers, learning) -> Expected:
    temperature, first = setup.options["temperature"], setup.options["nadir_epoch"]
    preferences = [setup.options["preferences"].get(name, 1.0) for name in setup.tasks]
    counted = [bool(p and x > 0) for p, x in zip(present, preferences, strict=True)]
    if first is None:
        ideal = [setup.options["ideal"].get(name, 0.0) for name in setup.tasks]
        terms = [k * (x - z) for k, x, z in zip(preferences, losses, ideal, strict=True)]
        value, slopes = _smooth_maximum(terms, counted, temperature)
        weights = [k * slope for k, slope in zip(preferences, slopes, strict=True)]
        return Expected(value, sum(map(abs, terms)) + temperature, weights, None, None, {})
    nadir, after = state["nadir"], {}
    if learning:
        ended, after = _means_of_the_epoch(state, losses, counted, 0)
        due = [end and old >= first and not n for end, old, n in zip(ended, state["epoch"], nadir, strict=True)]
        nadir = [mean if new else n for mean, new, n in zip(state["mean_loss"], due, nadir, strict=True)]
        after["nadir"] = nadir
    ratios = [min(x / (n or 1.0) + 1e-20, HUGE) for x, n in zip(losses, nadir, strict=True)]
    terms = [k * math.log(x) for k, x in zip(preferences, ratios, strict=True)]
    ranked = [ok and n > 0 for ok, n in zip(counted, nadir, strict=True)]
    value, slopes = _smooth_maximum(terms, ranked, temperature)
    count, weights, parts = sum(ranked), [], [sum(ranked) * value]
    for k, x, n, ok, top, slope, term in zip(preferences, ratios, nadir, counted, ranked, slopes, terms, strict=True):
        weights.append(k * (count * slope if top else float(ok)) / (x * (n or 1.0)))
        parts.append(term if ok and not top else 0.0)
    return Expected(sum(parts), sum(map(abs, terms)) * max(count, 1) + temperature, weights, None, None, after)


_STEPS = {
    weightings.UncertaintyWeighting: _uncertainty_step,
    weightings.BoundedUncertaintyWeighting: _bounded_step,
    weightings.ConstrainedUncertaintyWeighting: _constrained_step,
    weightings.SoftOptimalUncertaintyWeighting: _soft,
    weightings.AnalyticUncertaintyWeighting: _analytic,
    weightings.FixedWeighting: _fixed,
    weightings.RandomLossWeighting: _random,
    weightings.DynamicWeightAverage: _average,
    weightings.DynamicTaskPrioritization: _prioritized,
    weightings.SmoothTchebycheff: _tchebycheff,
    weightings.GeometricLossWeighting: _geometric,
    weightings.ImpartialLossWeighting: _impartial,
}
