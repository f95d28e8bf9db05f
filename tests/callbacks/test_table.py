"""The table: numbers, and the same numbers in print."""

from lightning_uncertainty.callbacks._table import COLUMNS, render_tasks, task_rows

NUMBERS = {
    "loss": {"depth": 4.0, "kind": 0.5},
    "weight": {"depth": 0.125, "kind": 1.0},
    "loss_share": {"kind": 1.0},
    "sigma": {"depth": 2.0},
    "sigma_gap": {"depth": 0.25},
}
NAMES = {"depth": "gaussian", "kind": "categorical"}
MEANINGS = {"depth": "RMSE [label]", "kind": "√(2·CE) [-]"}


def test_rows_are_numbers_in_the_order_of_the_columns():
    depth, kind = task_rows(NUMBERS, NAMES, MEANINGS)
    assert dict(zip(COLUMNS, depth, strict=True)) == {
        "task": "depth", "likelihood": "gaussian", "loss": 4.0, "sigma": 2.0, "sigma_gap": 0.25, "weight": 0.125,
        "loss_share": None, "sigma_is": "RMSE [label]",
    }  # fmt: skip
    assert dict(zip(COLUMNS, kind, strict=True)) == {
        "task": "kind", "likelihood": "categorical", "loss": 0.5, "sigma": None, "sigma_gap": None, "weight": 1.0,
        "loss_share": 1.0, "sigma_is": "√(2·CE) [-]",
    }  # fmt: skip


def test_print_formats_the_rows_and_leaves_what_is_missing_empty(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rich.table", None)
    title, header, depth, kind = render_tasks(task_rows(NUMBERS, NAMES, MEANINGS), 7).splitlines()
    assert title == "Task uncertainty after 7 steps"
    starts = [header.index(word) for word, _ in COLUMNS.values()]
    cells = [
        [line[start:stop].strip() for start, stop in zip(starts, [*starts[1:], None], strict=True)]
        for line in (depth, kind)
    ]
    assert cells[0] == ["depth", "gaussian", "4", "2", "+25.0%", "0.125", "", "RMSE [label]"]
    assert cells[1] == ["kind", "categorical", "0.5", "", "", "1", "100.0%", "√(2·CE) [-]"]
