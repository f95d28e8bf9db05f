"""A comparison as a Markdown table, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Collection

from _measure import markdown

from lightning_uncertainty.trials import Comparison, Measure

__all__ = ["show", "table_of"]


def table_of(
    found: Comparison,
    name: Callable[[Measure], str],
    *,
    measured: bool = True,
    judged: bool = True,
    ends: Collection[str] = (),
) -> str:
    """Return a comparison as a Markdown table.

    Args:
        found: the comparison.
        name: of the column of a measure.
        measured: whether it has the measures.
        judged: whether it has gains, ranks and settings.
        ends: settings that get a star, as those beyond were not tried.
    """
    measures = found.measures if measured else []
    verdict = ["gain %", "gain alone %", "mean rank"] if judged else []
    verdict += ["at"] if judged and any(result.settings for result in found.results) else []
    rows = []
    for result in found.results:
        cells = [result.values[measure].text() if measure in result.values else "" for measure in measures]
        gains = [gain.text("+.2f") if gain else "" for gain in (result.gain, result.gain_alone)]
        rank = "" if result.ranks is None else result.ranks.text(".2f")
        tried = dict.fromkeys(each.rpartition(" ")[2] for each in result.settings.split(", "))  # by each task
        chosen = " / ".join(f"{each}*" if each in ends else each for each in tried)
        rows.append([result.name, *cells, *[*gains, rank, chosen][: len(verdict)]])
    return markdown(["weighting", *map(name, measures), *verdict], rows)


def show(found: Comparison, name: Callable[[Measure], str]) -> None:
    """Print the table, and what it says."""
    print(f"{table_of(found, name)}\n\n{found.answer()}\n", flush=True)
