"""The guide: its code runs, its commands exist, its pictures show what it says, and it builds without a warning."""

import importlib.util
import json
import linecache
import re
import shlex
import subprocess
import sys
import warnings
from collections import defaultdict
from importlib.metadata import entry_points, metadata
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import lightning_uncertainty
from lightning_uncertainty import likelihoods
from lightning_uncertainty.examples import toy
from tests._browser import chromium, opened
from tests._versions import averages, has
from tests.weightings._properties import WEIGHTINGS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("*.md"))}
NUMBER = re.compile(r"[-+]?\d[\d.,]*(e[-+]?\d+)?")


def blocks(text, language):
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def script(name):
    """Import a Python file of the guide's own."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded  # dataclasses look there
    spec.loader.exec_module(loaded)
    return loaded


def groups():
    """Return the pages of each group of the sidebar."""
    trees = blocks(PAGES["index"], "{toctree}")
    captions = [re.search(r"^:caption: (.+)$", tree, re.MULTILINE)[1] for tree in trees]
    return dict(zip(captions, (re.findall(r"^[\w-]+$", tree, re.MULTILINE) for tree in trees), strict=True))


MARKS = dict.fromkeys(("index", "outliers", "physics-informed"), pytest.mark.slow)
MARKS["callbacks-and-optimizers"] = averages
PAGES_WITH_CODE = [
    pytest.param(page, marks=MARKS.get(page, ())) for page, text in PAGES.items() if blocks(text, "python")
]


@pytest.mark.parametrize("page", PAGES_WITH_CODE)
def test_python_blocks_run_and_print_what_they_say(page, capsys, monkeypatch):
    """`print(...)  # text` prints that text; what a text block shows is printed, numbers of the package's own aside."""
    import wandb

    if page == "text":  # installed apart
        monkeypatch.setattr(sys, "path", [*sys.path, f"{sys.prefix}/transformers"])

    printed, said = defaultdict(list), {}

    def note(*values):
        frame = sys._getframe(1)
        printed[frame.f_code.co_filename, frame.f_lineno].append(" ".join(map(str, values)))

    names = {"__name__": page, "print": note}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="wandb_workspaces")
        for number, block in enumerate(blocks(PAGES[page], "python")):
            where = f"{page}, block {number}"
            for line, code in enumerate(block.splitlines(), start=1):
                if comment := re.search(r"\bprint\(.*\)  # (.*)", code):
                    said[where, line] = comment[1]
            linecache.cache[where] = len(block), None, block.splitlines(keepends=True), where  # TorchScript reads it
            exec(compile(block, where, "exec"), names)
    wandb.finish()
    assert {key: ", ".join(printed[key]) for key in said} == said
    own = {line.rstrip() for lines in printed.values() for text in lines for line in text.splitlines()}
    theirs = {" ".join(NUMBER.sub("#", line).split()) for line in capsys.readouterr().out.splitlines()}
    for line in re.findall(r".*\w.*", "".join(blocks(PAGES[page], "text"))):
        assert line in own or " ".join(NUMBER.sub("#", line).split()) in theirs, line


def test_blocks_that_need_a_hosts_library_are_run_by_its_tests():
    """Those of "py": what runs here is "python"."""
    shown = {page: blocks(text, "py") for page, text in PAGES.items() if blocks(text, "py")}
    assert {page: len(found) for page, found in shown.items()} == {"adopt": 1}
    compile(shown["adopt"][0], "adopt", "exec")
    assert '(ROOT / "docs/adopt.md").read_text' in (ROOT / "tests/hosts/test_pina.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_lines_of_code_are_as_wide_as_the_page(page):
    lines = "".join(
        block for language in ("python", "py", "sh", "yaml", "text") for block in blocks(PAGES[page], language)
    )
    assert [line for line in lines.splitlines() if len(line) > 98] == []


def commands():
    shell = [block.replace("\\\n", "") for text in PAGES.values() for block in blocks(text, "sh")]
    lines = [line for block in shell for line in block.splitlines()]
    return sorted({tuple(shlex.split(line, comments=True)) for line in lines} - {()})


def help_of(program, monkeypatch, capsys):
    [script] = entry_points(group="console_scripts", name=program)
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with pytest.raises(SystemExit):
        script.load()()
    return capsys.readouterr().out


def test_commands_exist(monkeypatch, capsys):
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    extras = metadata("lightning-uncertainty").get_all("Provides-Extra")
    helps = {program: help_of(program, monkeypatch, capsys) for program in ("lightning-uncertainty", "wandb")}
    for program, first, *rest in commands():
        if program == "make":
            assert first in targets[1].split()
        elif program == "pip":
            assert first == "install"
            *constrained, what = rest
            assert constrained in ([], ["-c", "constraints.txt"], ["-e"])
            assert set(re.fullmatch(r"\.(?:\[(.*)\])?", what)[1].split(",") if what != "." else ()) <= set(extras)
        elif program == "python":
            assert importlib.util.find_spec(rest[0]) if first == "-m" else (ROOT / first).is_file()
        elif (program, first) == ("wandb", "leet"):
            assert (" leet " in helps[program]) == has("wandb", "0.28")
        elif program in helps:
            assert re.search(rf"(?<![\w-]){re.escape(first)}(?![\w-])", helps[program]), f"{program} {first}"
        else:
            assert (program, first) == ("tensorboard", "--logdir")


def test_the_page_on_installation_tells_the_bounds_and_extras():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needs = project.partition("\ndependencies = [")[2].partition("\n]")[0]
    bounds = dict(re.findall(r'^ *"([\w-]+)>=([\d.]+)"', needs, re.MULTILINE))
    bounds["Python"] = re.search(r'^requires-python = ">=(.*)"$', project, re.MULTILINE)[1]
    extras = project.partition("\n[project.optional-dependencies]")[2].partition("\n[")[0]
    page = PAGES["installation"]
    assert dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) or later \|$", page, re.MULTILINE)) == bounds
    told = page.partition("| extra |")[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in told.splitlines()[2:]]
    assert {extra for cell in cells for extra in re.findall(r"`(\w+)`", cell)} == set(
        re.findall(r"^(\w+) = ", extras, re.MULTILINE)
    )
    assert re.search(r"^torch==(.*)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1] in page


def within(part, whole):
    if isinstance(part, dict):
        return all(key in whole and within(value, whole[key]) for key, value in part.items())
    return part == whole


def test_yaml_is_of_the_example():
    example = (Path(lightning_uncertainty.__file__).parent / "examples/penguins.yaml").read_text(encoding="utf-8")
    shown = [yaml.safe_load(block) for text in PAGES.values() for block in blocks(text, "yaml")]
    adopting = [part for part in shown if "AdoptLosses" in str(part)]
    own = [part for part in shown if "class_path" in part.get("model", {})]  # a LightningModule of the reader's
    assert all(within(part, yaml.safe_load(example)) for part in shown if part not in (*adopting, *own))
    assert adopting
    assert own
    for part in adopting:
        first = part["trainer"]["callbacks"][0]
        assert first["class_path"] == "lightning_uncertainty.AdoptLosses"
        lightning_uncertainty.AdoptLosses(**first["init_args"])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_that_exist(page):
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", prose)
    assert [link for link in links if not (DOCS / link).is_file()] == []


def test_every_page_is_in_exactly_one_group():
    assert list(groups()) == ["Start", "Use", "Understand", "Operate", "Reference"]
    listed = sorted("index" if page == "self" else page for pages in groups().values() for page in pages)
    assert listed == sorted(PAGES)  # none is missing, none is listed twice
    assert {page.stem for page in DOCS.rglob("*.md") if "_build" not in page.parts} == set(PAGES)


def test_titles_fit_the_sidebar_and_differ():
    titles = {page: text.splitlines()[0].removeprefix("# ") for page, text in PAGES.items() if page != "changelog"}
    assert len(set(titles.values())) == len(titles)
    assert {title: len(title) for title in titles.values() if len(title) > 40} == {}


def test_the_first_page_has_the_guide_as_a_table_where_no_sidebar_is_drawn():
    rows = PAGES["index"].partition("## The whole guide\n")[2].partition("```")[0].splitlines()
    cells = {
        row.split(" | ")[0].strip("| "): re.findall(r"\[([^\]]*)\]\(([\w-]+)\.md\)", row) for row in rows if "](" in row
    }
    titles = {page: re.search(r"^# (.*)$", text, re.MULTILINE) for page, text in PAGES.items()}
    expected = {
        group: [(titles[page][1] if titles[page] else "Changelog", page) for page in pages if page != "self"]
        for group, pages in groups().items()
    }
    assert cells == expected


def test_a_notebook_is_shown_as_it_is_committed():
    notebooks = script("notebooks")
    shown = {name for text in PAGES.values() for name in notebooks.MARK.findall(text)}
    assert shown == {path.name for path in notebooks.FOLDER.glob("*.ipynb")}
    for name in shown:
        text = notebooks.markdown(notebooks.FOLDER / name)
        cells = json.loads((notebooks.FOLDER / name).read_text(encoding="utf-8"))["cells"]
        title = "".join(cells[0]["source"]).splitlines()[0]
        assert title.startswith("# ")
        assert title not in text
        assert all("".join(cell["source"]).removeprefix(title).strip() in text for cell in cells)
        data = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        assert text.count("data:image/png;base64,") == sum("image/png" in each for each in data) > 0
        assert text.count("<table") == sum("text/html" in each for each in data) > 0
        assert "\x1b" not in text


def test_what_a_notebook_says_cannot_end_its_block():
    notebooks = script("notebooks")
    assert notebooks.fence("text", "a\n````\nb") == "`````text\na\n````\nb\n`````"
    assert notebooks.shown({"output_type": "stream", "text": ["\x1b[1mbold\x1b[0m\n"]}) == "```text\nbold\n```"


@pytest.mark.parametrize("name", likelihoods.LIKELIHOODS)
def test_the_table_of_likelihoods_is_true(name):
    row = next(line for line in PAGES["likelihoods"].splitlines() if f"| `{name}` |" in line)
    symbols = {"0": 0.0, "½": 0.5, "1": 1.0, "√2": 2**0.5}
    c, a = (symbols[cell.strip()] for cell in row.split("|")[3:5])
    likelihood = likelihoods.LIKELIHOODS[name]
    assert (likelihood.factor, likelihood.exponent, likelihood.penalty) == (c, a, 0.0 if name == "constant" else 0.5)


def test_every_picture_of_the_gallery_is_shown_and_light():
    drawn = {f"gallery_{name}.png" for name in script("gallery").SITUATIONS}
    assert set(re.findall(r"images/(gallery_\w+\.png)", PAGES["dashboard"])) == drawn
    assert all((DOCS / "images" / name).stat().st_size < 100_000 for name in drawn)


def test_the_contact_sheet_shows_the_streets():
    path = DOCS / "images" / "streets.png"
    assert path.stat().st_size < 400_000
    with Image.open(path) as kept:
        difference = np.abs(np.asarray(kept.convert("RGB"), int) - np.asarray(script("streets").sheet(), int))
    assert difference.mean() < 6  # it has few colours


def ended(monitor, kind):
    """Return the last row's values of a kind, by task."""
    row = monitor.history.rows[-1]
    return {key.partition("/")[2]: value for key, value in row.items() if key.startswith(f"{kind}/")}


@pytest.mark.slow
def test_the_gallery_shows_what_it_says():
    situations = script("gallery").SITUATIONS
    well = situations["all_well"].fit()
    assert max(map(abs, ended(well, "sigma_gap").values())) < 0.1
    assert ended(well, "sigma")["height"] == pytest.approx(0.5, abs=0.05)
    assert ended(well, "sigma")["price"] == pytest.approx(30, abs=3)
    with pytest.warns(UserWarning, match="σ of task 'height' has been more than a third too large for 512 steps"):
        late = situations["still_falling"].fit()
    gaps = [row["sigma_gap/height"] for row in late.history.rows]
    assert max(gaps) > 5
    assert gaps[-1] > 0.5
    with pytest.warns(UserWarning, match=r"'side' takes? over"):
        alone = situations["taking_all"].fit()
    first, last = (row["weight/side"] for row in (alone.history.rows[0], alone.history.rows[-1]))
    assert last / first > 1000
    assert max(ended(alone, "loss_share").values()) < 0.8  # which does not tell of it
    assert ended(alone, "sigma")["price"] > 80
    bounds = {"side": (-2.0, float("inf"))}
    capped = situations["taking_all"].fit(lightning_uncertainty.UncertaintyWeighting(bounds=bounds))
    assert ended(capped, "sigma")["side"] == pytest.approx(0.37, abs=0.01)
    assert ended(capped, "sigma")["price"] < 40
    with pytest.warns(UserWarning, match="frozen"):
        stuck = situations["stuck"].fit()
    assert len({row["sigma/height"] for row in stuck.history.rows}) == 1
    assert ended(stuck, "sigma_gap")["height"] > 5


@pytest.mark.slow
def test_the_page_on_the_toy_tells_what_it_prints(capsys):
    toy.main(["ours"])
    printed = [
        [float(cell.strip("%")) for cell in line.split()[1:]] for line in capsys.readouterr().out.splitlines()[1:]
    ]
    rows = PAGES["toy"].partition("| `ours`")[2].splitlines()[:2]
    told = [[float(cell.strip(" %")) for cell in row.split("|")[-7:-1]] for row in rows]
    for row, numbers in zip(told, printed, strict=True):
        assert row[:2] + row[3:5] == pytest.approx(numbers[:2] + numbers[3:5], rel=0.01)
        assert row[2::3] == pytest.approx(numbers[2::3], abs=0.3)  # gaps, in per cent


@pytest.fixture(scope="module")
def html(tmp_path_factory):
    """The guide, as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("guide")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-W",
        "--keep-going",
        "-q",
        "-d",
        folder / "trees",
        DOCS,
        folder / "html",
    ]
    built = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert built.returncode == 0, built.stderr
    return folder / "html"


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280], ids=["phone", "desktop"])
def test_every_page_fits_its_screen_and_shows_its_pictures(html, width):
    wrong = {}
    with chromium() as browser:
        for name in PAGES:
            complaints = []
            with opened(browser, html / f"{name}.html", width=width, complaints=complaints) as page:
                found = page.evaluate(
                    """() => ({
                        wider: document.documentElement.scrollWidth - window.innerWidth,
                        blank: [...document.images].filter(image => !image.naturalWidth).length,
                        narrow: [...document.querySelectorAll("td:not(.text-right, .text-center)")]
                            .filter(cell => cell.textContent.length > 60 && cell.clientWidth < 120).length,
                        tables: [...document.querySelectorAll(".table-wrapper")]
                            .filter(table => table.scrollWidth > table.clientWidth + 1).length,
                        small: [...document.querySelectorAll("pre")]
                            .filter(code => parseFloat(getComputedStyle(code).fontSize) < 11).length,
                    })"""
                )
            if width == 390:
                del found["tables"]  # they may scroll on a phone
            if complaints or any(found.values()):
                wrong[name] = found | {"complaints": complaints}
    assert wrong == {}


@pytest.mark.slow
def test_the_guide_builds_without_a_warning(html):
    pages = {page.stem: page.read_text(encoding="utf-8") for page in html.glob("*.html")}
    assert set(PAGES) <= set(pages)
    assert "<math" in pages["likelihoods"]
    assert "<math" in pages["api"]
    scripts = [
        link for page in pages.values() for link in re.findall(r'<(?:script|link)[^>]*(?:src|href)="(http[^"]*)"', page)
    ]
    assert scripts == []  # it is read without a network
    for page in PAGES:  # and every page leads to every other
        sidebar = pages[page].partition('<div class="sidebar-tree">')[2].partition("</aside>")[0]
        assert re.findall(r'class="caption-text">([^<]+)<', sidebar) == list(groups())
        links = re.findall(r'class="(?:current )?reference internal" href="([\w-]*)(?:\.html|#)', sidebar)
        assert sorted(link or page for link in links) == sorted(PAGES)


def test_the_table_of_weightings_tells_what_the_properties_prove():
    table = PAGES["weightings"].partition("| weighting | w | state |")[2].partition("\n\n")[0]
    rows = [line for line in table.splitlines() if re.match(r"\| `[A-Z]\w+` \|", line)]
    told = {row.split("`")[1]: tuple(cell.strip() for cell in row.split("|")[-3:-1]) for row in rows}
    listed = {}
    for each in WEIGHTINGS:
        listed.setdefault(type(each.make()).__name__, each)  # the first is the plainest
    proven = {name: (each.scale_equivariant, each.compiles) for name, each in listed.items()}
    assert told == {name: tuple("✓" if yes else "–" for yes in pair) for name, pair in proven.items()}
