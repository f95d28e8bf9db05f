"""Every notebook runs, and is committed as it ran.

`python tests/test_notebooks.py` executes the notebooks and writes what they show into them.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import pytest
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SECONDS = 240  # for a cell
OF_ONE_MACHINE = re.compile(
    r"(?<![\w.:/<])(/[\w.~-]+){2,}"  # a path; a tag of HTML, a web address and a log key are none
    r"|\b[A-Za-z]:\\\w"
    r"|\b0x[0-9a-f]{6,}"
)
PROGRESS = re.compile(r"\r|it/s|s/it")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


class ThisInterpreter(AsyncKernelManager):
    """Starts the interpreter that runs this file, whatever is registered under the name of the notebook's kernel."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())


def execute(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """Run all cells in a folder, as a user would who has just installed the package."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "IPYTHONDIR": str(folder / ".ipython"),
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("MPLBACKEND", None)  # with agg the notebook shows no figure
    metadata = dict(notebook.metadata)
    client = NotebookClient(notebook, kernel_manager_class=ThisInterpreter, timeout=SECONDS, record_timing=False)
    client.execute(cwd=str(folder), env=environment)
    notebook.metadata = nbformat.from_dict(metadata)  # without the version of this Python
    return notebook


def outputs(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """All that the outputs say, pictures left out."""
    found = []
    for output in outputs(notebook):
        found += [output.text] if output.output_type == "stream" else []
        found += [text for kind, text in output.get("data", {}).items() if kind.startswith("text/")]
    return found


def pictures(notebook: nbformat.NotebookNode) -> int:
    return sum("image/png" in output.get("data", {}) for output in outputs(notebook))


def said_on_stderr(notebook: nbformat.NotebookNode) -> list[str]:
    """Warnings, logging, progress bars."""
    return [output.text for output in outputs(notebook) if output.get("name") == "stderr"]


@every_notebook
def test_a_notebook_is_committed_as_it_ran_from_top_to_bottom(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert [cell.metadata for cell in code if cell.metadata] == []  # no times of execution
    assert [output for output in outputs(notebook) if output.output_type == "error"] == []
    assert said_on_stderr(notebook) == []
    assert pictures(notebook) > 0
    for text in texts(notebook):
        assert OF_ONE_MACHINE.search(text) is None
        assert PROGRESS.search(text) is None


@pytest.mark.slow
@pytest.mark.timeout(600)  # 40 s on an idle core
@every_notebook
def test_a_notebook_runs_and_shows_as_much_as_the_committed_one(path, tmp_path):
    committed = nbformat.read(path, as_version=4)
    fresh = execute(nbformat.read(path, as_version=4), tmp_path)
    assert said_on_stderr(fresh) == []
    assert pictures(fresh) == pictures(committed)
    assert [text for text in texts(fresh) if OF_ONE_MACHINE.search(text)] == []
    assert [left.name for left in tmp_path.iterdir() if left.name != ".ipython"] == []


def test_the_kernel_is_this_interpreter_and_an_error_is_seen(tmp_path, monkeypatch):
    other = tmp_path / "jupyter/kernels/python3"
    other.mkdir(parents=True)
    other.joinpath("kernel.json").write_text('{"argv": ["false"], "display_name": "another", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    cells = [nbformat.v4.new_code_cell(source) for source in ("import sys; print(sys.executable)", "assert 1 == 2")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(CellExecutionError, match="assert 1 == 2"):
        execute(notebook, tmp_path)
    assert texts(notebook) == [f"{sys.executable}\n"]


if __name__ == "__main__":
    for path in NOTEBOOKS:
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(nbformat.read(path, as_version=4), Path(folder)), path)
