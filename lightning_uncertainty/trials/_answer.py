"""Which weighting is best, and how sure that is, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_uncertainty.trials._mean import MOST_SEEDS, Lead
from lightning_uncertainty.trials._result import Result
from lightning_uncertainty.trials._student import told_apart

__all__ = ["answer"]


def answer(ranked: Sequence[Result], baseline: str | None) -> str:
    """Return it.

    The best is tested against the baseline and against each other: paired t-tests over seeds, at 5 % for all of them
    together (Holm).

    Args:
        ranked: weightings, the best first.
        baseline: what gains are over.
    """
    best, *others = ranked
    if not best.values:
        return f"Every fit of a weighting failed, as {best.name}: {best.failed}."
    if best.gain is None:
        if best.ranks is None:
            return f"No seed has all weightings, so they have no ranks: see the table for {best.name} and others."
        text = f"{best.name} has the lowest mean rank, {best.ranks.text('.2f')} ({_seeds(best.ranks.values)})."
        return text if baseline is None else f"{text} No seed of {baseline}, the baseline, came to its end: no gains."
    own = best.name == baseline
    verb = "gains most" if best.gain.mean >= 0 else "loses least"
    text = f"{best.name} {verb}: {best.gain.text('+.2f')} % over {baseline} ({_seeds(best.gain.values)})."
    if own:
        rest = [other for other in others if other.gain is not None]
        text = f"No weighting gains over {best.name}, the baseline ({_seeds(best.gain.values)})."
        if others and not rest:
            return f"Every fit of the weightings besides {best.name}, the baseline, failed: see the table."
    if len(best.gain.values) < 2:
        return f"{text} One seed does not say how much of it is chance."
    leads = {} if own else {baseline or "": Lead.of(best.gains, dict.fromkeys(best.gains, 0.0))}
    leads |= {o.name: Lead.of(best.gains, o.gains) for o in others if o.gain is not None and o.name != baseline}
    told = dict(zip(leads, told_apart([lead.p for lead in leads.values()]), strict=True))
    near = [name for name, apart in told.items() if not apart]
    far = [name for name, apart in told.items() if apart]
    if far:
        text += f" The seeds tell it from {', '.join(far)}"
        text += f", not from {', '.join(near)}" if near else ""
    elif near:
        text += f" The seeds do not tell it from {', '.join(near)}"
    if told:
        text += f" (paired t-test{'s' if len(told) > 1 else ''}, 5 %{', Holm' if len(told) > 1 else ''})."
    second = next((other.name for other in others if other.name in leads), None)
    if second in near:
        text += _power(best.name, second, leads[second])
    return text


def _power(best: str, second: str, lead: Lead) -> str:
    needed = lead.seeds_needed()
    if needed is None:
        return ""
    count = f"more than {MOST_SEEDS}" if needed >= MOST_SEEDS else f"about {needed}"
    return f" To tell {best} from {second} would take {count} seeds, if they differ by what they do here (power 80 %)."


def _seeds(values: Sequence[float]) -> str:
    return f"{len(values)} seed{'s' if len(values) != 1 else ''}"
