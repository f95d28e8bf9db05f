"""The README: its Python runs as a reader would paste it, its tables and links hold, on the page of a wheel too."""

import re
import warnings
from pathlib import Path

import pytest
from hatchling.metadata.core import ProjectMetadata
from hatchling.plugin.manager import PluginManager
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DESCRIPTION = ProjectMetadata(str(ROOT), PluginManager()).core.readme
TEXTS = {
    "README": README,
    "the wheel's description": DESCRIPTION,
    **{str(page.relative_to(ROOT)): page.read_text(encoding="utf-8") for page in sorted(ROOT.glob("docs/*.md"))},
    "CHANGELOG": (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"),
}
RELATIVE = r"\]\((?!https?:)([^)#]+)[^)]*\)"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    names: dict[str, object] = {"__name__": "readme"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
        for number, block in enumerate(blocks):
            exec(compile(block, f"README block {number}", "exec"), names)


def test_it_is_read_in_four_minutes():
    assert len(README.split()) < 900


def test_files_that_it_names_exist():
    links = re.findall(RELATIVE, README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_wheel_shows_no_file_of_the_checkout():
    assert re.findall(RELATIVE, DESCRIPTION) == []
    assert "![" not in DESCRIPTION
    installed = re.findall(r"pip install ([^ `]*)", DESCRIPTION)
    assert installed == ["'lightning-uncertainty[demo]'", "lightning-uncertainty"]
    assert len(DESCRIPTION.split()) > 0.9 * len(README.split())


@pytest.mark.parametrize("name", TEXTS)
def test_every_row_of_a_table_is_one(name):
    """A blank line or a missing rule makes text of a table, on GitHub and on PyPI."""
    lines = re.sub(r"^( *)(```|~~~).*?^\1\2$", "", TEXTS[name], flags=re.DOTALL | re.MULTILINE).splitlines()
    written = [line for line in lines if line.lstrip().startswith("|") and not re.fullmatch(r"[\s|:]*-[\s|:-]*", line)]
    tokens = MarkdownIt("commonmark").enable("table").parse(TEXTS[name])
    assert sum(token.type == "tr_open" for token in tokens) == len(written)
    assert [token.content for token in tokens if token.type == "inline" and token.content.startswith("|")] == []
