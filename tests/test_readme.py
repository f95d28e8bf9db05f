"""Every Python block of the README runs, in order, as a reader would type them."""

import re
import warnings
from pathlib import Path

import pytest

from lightning_uncertainty.likelihoods import LIKELIHOODS

README = Path(__file__).parents[1] / "README.md"


def test_python_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) >= 4
    names: dict[str, object] = {"__name__": "readme"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="pytorch_lightning")
        for number, block in enumerate(blocks):
            exec(compile(block, f"README block {number}", "exec"), names)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_the_table_of_likelihoods_is_true(name):
    row = next(line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith(f"| `{name}` |"))
    symbols = {"0": 0.0, "½": 0.5, "1": 1.0, "√2": 2**0.5}
    c, a = (symbols[cell.strip()] for cell in row.split("|")[3:5])
    likelihood = LIKELIHOODS[name]
    assert (likelihood.factor, likelihood.exponent, likelihood.penalty) == (c, a, 0.0 if name == "constant" else 0.5)


def test_files_that_the_readme_names_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (README.parent / link).exists()] == []
