"""The looks of curves of many tasks; what is plotted is tested with the monitor."""

import matplotlib.pyplot as plt
import pytest

from lightning_uncertainty.callbacks._plot import plot_rows


@pytest.mark.parametrize("tasks", [2, 12, 40])
def test_tasks_differ_by_colour_or_line(tasks):
    rows = [{"step": step, **{f"sigma/t{place}": 1.0 + place for place in range(tasks)}} for step in range(2)]
    with plt.rc_context({"axes.prop_cycle": plt.rcParamsDefault["axes.prop_cycle"]}):
        figure, ax = plot_rows(rows, "sigma")
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == tasks
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [f"t{place}" for place in range(tasks)]
    plt.close(figure)


def test_a_shorter_cycle_of_colours_changes_lines_earlier():
    rows = [{"step": step, **dict.fromkeys(("sigma/a", "sigma/b", "sigma/c"), 1.0)} for step in range(2)]
    with plt.rc_context({"axes.prop_cycle": plt.cycler(color=["r", "b"])}):
        figure, ax = plot_rows(rows, "sigma")
    assert [(line.get_color(), line.get_linestyle()) for line in ax.lines] == [("r", "-"), ("b", "-"), ("r", "--")]
    plt.close(figure)


@pytest.mark.parametrize(("loss", "scale"), [(0.5, "log"), (-0.5, "linear")])
def test_a_loss_below_zero_is_plotted(loss, scale):
    figure, ax = plot_rows([{"step": 0, "loss/a": 2.0}, {"step": 1, "loss/a": loss}], "loss")
    assert ax.get_yscale() == scale
    plt.close(figure)
