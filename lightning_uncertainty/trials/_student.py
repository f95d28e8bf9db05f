"""Student's t by its finite series, so that no table ends and no package is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["told_apart", "two_sided_p", "two_sided_t"]


def two_sided_p(t: float, freedom: int) -> float:
    r"""Return :math:`P(|T| \geq |t|)` for a whole number of degrees of freedom.

    Source: Abramowitz & Stegun, "Handbook of Mathematical Functions", 1964, equations 26.7.3 and 26.7.4.

    Example:
        >>> round(two_sided_p(4.303, 2), 4)
        0.05
    """
    if math.isinf(t):
        return 0.0
    angle = math.atan(abs(t) / math.sqrt(freedom))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = freedom % 2
    term, total = (cosine, 0.0) if odd else (1.0, 0.0)
    for k in range(2 + odd, freedom + 1, 2):  # terms in cos^(odd), cos^(odd + 2), ...
        total += term
        term *= cosine * cosine * (k - 1) / k
    within = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return max(0.0, 1 - within)


@lru_cache(maxsize=4096)
def two_sided_t(p: float, freedom: int) -> float:
    """Return the t beyond which, on both sides, lies p.

    Example:
        >>> round(two_sided_t(0.05, 2), 3), round(two_sided_t(0.05, 30), 3)
        (4.303, 2.042)
    """
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > p:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > p else (low, middle)
    return high


def told_apart(ps: Sequence[float], level: float = 0.05) -> list[bool]:
    """Return which of several tests reject at a level that holds for all of them together.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 1979.

    Example:
        >>> told_apart([0.03, 0.01, 0.04])
        [False, True, False]
    """
    rejected, count = [False] * len(ps), len(ps)
    for i, place in enumerate(sorted(range(count), key=lambda place: ps[place])):
        if not ps[place] <= level / (count - i):
            break
        rejected[place] = True
    return rejected
