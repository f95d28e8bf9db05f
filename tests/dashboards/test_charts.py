"""The axis of a chart shows all its values."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_uncertainty.dashboards.charts import scale_of


@given(st.lists(st.lists(st.floats(), max_size=5), max_size=4))
def test_a_log_axis_is_for_positive_values_alone(lines):
    finite = [value for line in lines for value in line if abs(value) < float("inf")]
    assert (scale_of(lines) == "log") == all(value > 0 for value in finite)
