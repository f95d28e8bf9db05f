"""The page, as a browser shows it: whole, offline, readable on a phone and in the dark."""

import math
import sys
from pathlib import Path

import pytest

from lightning_uncertainty.dashboards import Run, write_report
from tests._browser import chromium, opened
from tests.dashboards.report._runs import by_hand

ABOUT = {
    "weighting": "UncertaintyWeighting(decay=0.5)",
    "prefix": "",
    "likelihood": {"task_0": "gaussian", "task_1": "<i>poisson</i>"},
    "sigma_is": {"task_0": "RMSE [label]"},
}
HOSTILE = """</script></title><script>alert(1)</script><b>"&'"""
DRAWN = "main[aria-busy=false]"


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("made") / "on the way" / "report.html"
    write_report(by_hand(uncertainty=ABOUT, note="</script><script>alert(1)</script>", net={"sizes": [1, 2]}), path)
    return path


def lines(page, chart):
    return page.locator(f'figure[data-chart="{chart}"] .scatterlayer .trace').count()


def test_every_chart_is_drawn_without_a_complaint_or_a_request(report, browser):
    complaints = []
    with opened(browser, report, complaints=complaints) as page:
        page.wait_for_selector(DRAWN)
        counts = {
            chart: lines(page, chart)
            for chart in page.eval_on_selector_all("figure", "f => f.map(e => e.dataset.chart)")
        }
        assert counts == {
            "sigma": 4, "sigma_gap": 2, "weight": 2, "loss_share": 2, "loss": 2, "held_out_loss": 2,
            "balanced_loss": 1, "metric-task_0-MeanAbsoluteError": 1, "metric-task_1-MeanAbsoluteError": 1,
        }  # fmt: skip
        assert page.locator(".scatterlayer .js-line").count() >= sum(counts.values())
        types = page.eval_on_selector_all(".js-plotly-plot", "plots => plots.map(plot => plot._fullLayout.yaxis.type)")
        assert types == ["log", "log", "log", "linear", "log", "log", "linear", "linear", "linear"]
        assert page.evaluate("Plotly.toImage(document.querySelector('.js-plotly-plot'))").startswith("data:image/png")
        assert page.title() == "by hand – task uncertainty"
        assert page.get_attribute("html", "lang") == "en"
        assert all(
            page.eval_on_selector_all(".plot", "plots => plots.map(p => p.getAttribute('aria-label').length > 40)")
        )
    assert complaints == []


def test_no_script_but_ours_runs_and_no_request_can_leave(report, browser):
    complaints = []
    with opened(browser, report, complaints=complaints) as page:
        page.wait_for_selector(DRAWN)
        page.evaluate("fetch('data:text/plain,hello').catch(() => 0)")
        assert any("Content Security Policy" in complaint for complaint in complaints)
        assert "</script><script>alert(1)</script>" in page.inner_text("#configuration")
        assert "<i>poisson</i>" in page.inner_text("#tasks")
    assert "<script>alert" not in report.read_text(encoding="utf-8")


def test_the_table_tells_the_last_numbers_with_all_their_digits(report, browser):
    with opened(browser, report) as page:
        cells = page.eval_on_selector_all(
            "#tasks tbody tr", "rows => rows.map(row => [...row.querySelectorAll('data')].map(data => data.value))"
        )
        assert [[float(cell) for cell in row] for row in cells] == [
            [1 / 3, 2.0, 0.25, 1e-6, 1 / 3, 3.0],  # medians: a single row may be odd
            [10 / 3, 3.0, 0.25, 2e-6, 2 / 3, 4.0],
        ]
        first = " ".join(page.locator("#tasks tbody tr").first.inner_text().split())
        named = "task_0 gaussian 0.3333 2.000 RMSE [label] +25.0 % 1 × 10⁻⁶ 33.3 % MeanAbsoluteError 3.000 val"
        assert first == named
        assert page.eval_on_selector(".number data", "e => getComputedStyle(e.closest('td')).textAlign") == "right"
        head = page.inner_text("header")
        assert "UncertaintyWeighting(decay=0.5)" in head
        assert "lowest -2.000 at step 4" in head
        assert "net.sizes 1, 2" in " ".join(page.inner_text("#configuration").split())


def test_a_phone_needs_no_sideways_scrolling_and_shows_one_column(report, browser):
    with opened(browser, report, width=390, height=844) as page:
        page.wait_for_selector(DRAWN)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        boxes = [figure.bounding_box() for figure in page.query_selector_all("figure")]
        assert len({box["x"] for box in boxes}) == 1
        assert all(box["width"] > 340 for box in boxes)
        assert page.eval_on_selector("#tasks .scroll", "box => box.scrollWidth <= box.clientWidth")
        cards = page.eval_on_selector_all(
            "#tasks tbody tr", "rows => rows.map(row => [row.innerText, row.clientWidth])"
        )
        assert len(cards) == 2
        shown = "task_0 gaussian 0.3333 2.000 RMSE [label] +25.0 % 1 × 10⁻⁶ 33.3 % MeanAbsoluteError 3.000 val"
        assert " ".join(cards[0][0].split()) == shown
        assert all(300 < width <= 358 for _, width in cards)  # every number of a task, in the reader's sight
        named = page.eval_on_selector_all(
            "#tasks tbody tr:first-child td", "cells => cells.map(cell => getComputedStyle(cell, '::before').content)"
        )
        assert named == ['"Loss"', '"σ"', '"Gap"', '"Weight"', '"Share"', '"Held-out"']


def test_light_and_dark_follow_the_reader_even_while_the_page_is_open(report, browser):
    look = """() => [getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,
                     document.querySelector('.js-plotly-plot').data[0].line.color,
                     getComputedStyle(document.querySelector('#tasks .swatch')).stroke]"""
    with opened(browser, report) as page:
        page.wait_for_selector(DRAWN)
        light = page.evaluate(look)
        page.emulate_media(color_scheme="dark")
        page.wait_for_function(f"before => ({look})()[2] !== before", arg=light[2])
        changed = page.evaluate(look)
        page.reload()
        page.wait_for_selector(DRAWN)
        dark = page.evaluate(look)
    assert changed == dark
    assert all(one != other for one, other in zip(light, dark, strict=True))
    for _, _, line, swatch in (light, dark):
        assert "rgb({}, {}, {})".format(*bytes.fromhex(line[1:])) == swatch


def test_a_task_that_is_selected_stands_alone_in_every_chart(report, browser):
    with opened(browser, report) as page:
        page.wait_for_selector(DRAWN)
        page.click('#legend button[data-task="1"]')
        assert [lines(page, chart) for chart in ("sigma", "loss_share", "loss", "balanced_loss")] == [2, 1, 1, 1]
        assert page.locator("figure:visible").count() == 8  # without the other task's metric
        page.click("#legend button[data-optima]")
        assert lines(page, "sigma") == 1
        assert page.get_attribute('#legend button[data-task="1"]', "aria-pressed") == "true"
        assert page.locator("#tasks tbody tr:visible").count() == 1
        page.click("#legend button[data-all]")
        assert [lines(page, chart) for chart in ("sigma", "loss")] == [2, 2]


def test_there_is_one_legend_and_it_stays_in_sight(report, browser):
    with opened(browser, report) as page:
        page.wait_for_selector(DRAWN)
        assert page.locator("button[data-task]").count() == 2
        page.evaluate("document.querySelector('#losses').scrollIntoView({behavior: 'instant'})")
        assert 0 <= page.locator("#legend").bounding_box()["y"] < 5


def test_icons_of_a_chart_lie_above_its_data(report, browser):
    with opened(browser, report) as page:
        page.wait_for_selector(DRAWN)
        icons = page.locator('figure[data-chart="loss"] .modebar-group').first.bounding_box()
        data = page.locator('figure[data-chart="loss"] .nsewdrag').bounding_box()
    assert icons["height"] > 0
    assert icons["y"] + icons["height"] <= data["y"] + 1


def test_an_odd_last_row_is_not_what_the_table_tells(tmp_path, browser):
    rows = [{"step": step, "sigma_gap/a": 0.01, "loss_share/a": 0.5, "loss/a": 1.0} for step in range(20)]
    rows[-1] |= {"sigma_gap/a": -0.578, "loss_share/a": 0.99}
    rows[-2] |= {"sigma_gap/a": math.nan}
    write_report(Run("odd", rows, {}), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as page:
        told = page.eval_on_selector_all("#tasks data", "cells => cells.map(cell => cell.value)")
    assert [float(value) for value in told] == [1.0, 0.01, 0.5]


def test_a_metric_is_called_by_its_name(tmp_path, browser):
    about = {"metrics": {"task_0/MeanAbsoluteError": "RMSE"}}
    write_report(by_hand(uncertainty=about), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as page:
        page.wait_for_selector(DRAWN)
        assert "RMSE 3.000" in " ".join(page.locator("#tasks tbody tr").first.inner_text().split())
        assert page.locator("#metrics h3").all_inner_texts() == ["RMSE", "MeanAbsoluteError"]


@pytest.mark.slow
def test_forty_tasks_are_readable_each_by_itself_and_found_by_name(tmp_path, browser):
    write_report(by_hand(tasks=40, rows=3), tmp_path / "report.html")
    complaints = []
    with opened(browser, tmp_path / "report.html", width=390, height=844, complaints=complaints) as page:
        page.wait_for_selector(DRAWN, timeout=60_000)
        looks = page.eval_on_selector_all(
            "#legend [data-task] .swatch", "all => all.map(one => one.getAttribute('class') + one.innerHTML)"
        )
        assert len(looks) == len(set(looks)) == 40
        small = page.locator('figure[data-chart="loss"] .multiples button')
        assert small.count() == 40
        assert page.locator('figure[data-chart="loss"] .plot:visible').count() == 0
        drawn = small.locator("path").evaluate_all("paths => paths.map(path => path.getAttribute('d'))")
        assert set(drawn) == {"M0.00 4.00L50.00 24.19L100.00 36.00"}  # 1, 1/2, 1/3 of the first, on a log axis
        ends = page.locator('figure[data-chart="loss_share"] .multiples small').all_inner_texts()
        assert (ends[0], ends[39]) == ("0.1 %", "4.9 %")
        page.fill("#legend input", "TASK_3")  # and 30 to 39
        assert page.locator('figure[data-chart="loss"] .multiples button:visible').count() == 11
        page.fill("#legend input", "task_33")
        assert page.locator("#tasks tbody tr:visible").count() == 1
        assert (lines(page, "loss"), lines(page, "loss_share")) == (1, 1)
        page.fill("#legend input", "")
        small.nth(7).click()
        assert lines(page, "loss") == 1
        assert page.get_attribute('#legend button[data-task="7"]', "aria-pressed") == "true"
        assert page.locator("#legend").bounding_box()["height"] < 120
        assert page.locator("#tasks .scroll").bounding_box()["height"] < 600
        assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert complaints == []


def test_odd_numbers_and_hostile_names_break_nothing(tmp_path, browser):
    rows = [
        {"step": step, "weight/a": math.nan, "loss/a": math.inf, "sigma/a": 1.0, "sigma_gap/a": -math.inf}
        for step in (0, 1)
    ]
    odd = {"rate": math.nan, "none": None, "empty": {}, "uncertainty": {"likelihood": {HOSTILE: HOSTILE}}}
    write_report(Run(HOSTILE, rows, {HOSTILE: HOSTILE, **odd}), tmp_path / "report.html")
    complaints = []
    with opened(browser, tmp_path / "report.html", complaints=complaints) as page:
        page.wait_for_selector(DRAWN)
        assert "nan" in page.inner_text("#tasks")
        shown = [page.inner_text(place) for place in ("h1", "#tasks tbody tr", "#configuration tbody tr")]
        assert all(HOSTILE in text for text in (page.title(), *shown))
        assert page.locator("b").count() == 0
    assert complaints == []


def test_nothing_is_written_where_a_report_cannot_be(tmp_path, monkeypatch):
    with pytest.raises(IsADirectoryError, match=r"should be written to a file: found the folder .*; name a file in it"):
        write_report(by_hand(), tmp_path)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(ModuleNotFoundError, match=r"write_report needs plotly: pip install .*\[report\]"):
        write_report(by_hand(), tmp_path / "deep" / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_an_old_report_is_replaced_whole(tmp_path):
    path = Path("report.html")
    path.write_text("old")
    write_report(by_hand(), str(path))
    assert path.read_text(encoding="utf-8").endswith("</html>\n")
    assert [file.name for file in Path().iterdir()] == ["report.html"]


def test_a_loss_below_zero_is_seen_beside_one_in_large_units(tmp_path, browser):
    rows = [
        {"step": step, "weight/a": 1.0, "weight/b": 1.0, "loss/a": 2.0 - step, "loss/b": 4e5 - step}
        for step in range(5)
    ]
    write_report(Run("signs", rows, {}), tmp_path / "report.html")
    complaints = []
    with opened(browser, tmp_path / "report.html", complaints=complaints) as page:
        page.wait_for_selector(DRAWN)
        drawn = page.eval_on_selector('figure[data-chart="loss"] .plot', "plot => plot.data.map(trace => trace.y)")
        ticks = page.eval_on_selector_all(
            'figure[data-chart="loss"] .ytick text', "texts => texts.map(text => text.textContent)"
        )
        heights = page.eval_on_selector_all(
            'figure[data-chart="loss"] .points path', "points => points.map(point => point.getBoundingClientRect().y)"
        )
    assert complaints == []
    assert [math.copysign(1, value) if value else 0 for value in drawn[0]] == [1, 1, 0, -1, -1]
    assert drawn[0][0] == -drawn[0][4] == pytest.approx(math.log10(3))
    assert "0" in ticks
    assert len(ticks) == len(set(ticks)) >= 3
    assert heights[:5] == sorted(heights[:5])
    assert heights[4] - heights[0] > 20  # the small task is no flat line
    assert max(heights[5:]) < heights[0]


@pytest.mark.parametrize("widest", [0.0, 1e-6, 0.004, 0.012, 0.02, 0.05, 0.09, 0.2, 0.6, 3.0, 40.0])
def test_gaps_of_any_size_have_ticks_beside_zero(tmp_path, browser, widest):
    rows = [
        {"step": step, "sigma/a": 1.0, "sigma_gap/a": gap, "loss_share/a": 1.0}
        for step, gap in enumerate((0.0, widest))
    ]
    write_report(Run("gaps", rows, {}), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as page:
        page.wait_for_selector(DRAWN)
        ticks = page.eval_on_selector_all(
            'figure[data-chart="sigma_gap"] .ytick text', "texts => texts.map(text => text.textContent)"
        )
    assert len(ticks) >= 2
    assert len(set(ticks)) == len(ticks)
