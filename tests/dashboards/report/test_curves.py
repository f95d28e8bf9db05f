"""Rows become curves: by step, of several values the last."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_uncertainty.dashboards.report._curves import Columns, Curve, curves_of

ROWS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.integers(-9, 9).map(float), max_size=3).flatmap(
        lambda row: st.integers(0, 6).map(lambda step: {"step": step, **row})
    )
)


@given(ROWS)
def test_curves_hold_every_last_value_by_step(rows):
    expected = {}
    for row in rows:
        for key in row.keys() - {"step"}:
            expected.setdefault(key, {})[row["step"]] = row[key]
    found = curves_of(rows)
    assert {key: dict(zip(curve.steps, curve.values, strict=True)) for key, curve in found.items()} == expected
    assert all(curve.steps == sorted(set(curve.steps)) for curve in found.values())
    merged = {}
    for key, at in expected.items():
        for step, value in at.items():
            merged.setdefault(step, {"step": step})[key] = value
    columns = Columns(found)
    assert list(columns) == [merged[step] for step in sorted(merged)]
    assert len(columns) == len(merged)
    again = curves_of(columns)
    assert {key: curve.values for key, curve in again.items()} == {key: curve.values for key, curve in found.items()}


def test_a_curve_is_lists_of_plain_numbers():
    curve = Curve([3, 4], [0.5, 1])
    assert (curve.steps, curve.values) == ([3, 4], [0.5, 1.0])
    assert {type(value) for value in (*curve.steps, *curve.values)} == {int, float}
