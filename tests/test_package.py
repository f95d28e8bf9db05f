"""What is released, in a fresh environment."""

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_what_is_released_is_whole_and_imports_in_a_fresh_environment(tmp_path):
    """The wheel is built of the source distribution, as `make dist` does."""
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    wheel, source = (next(tmp_path.glob(pattern)) for pattern in ("*.whl", "*.tar.gz"))
    check = [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(source)]
    subprocess.run(check, check=True, capture_output=True, timeout=60)
    with tarfile.open(source) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"Makefile", "constraints.txt", "tests/vectors.json", "mutants/faults.py", "docs/conf.py"} <= inside
    assert not [name for name in inside if name.startswith((".venv", "runs", "docs/_build"))]
    held = zipfile.ZipFile(wheel).namelist()
    for name in (
        "py.typed",
        "examples/penguins.csv",
        "examples/PENGUINS.md",
        "examples/penguins.yaml",
        "examples/scenes.yaml",
        "dashboards/report/page.js",
    ):
        assert f"lightning_uncertainty/{name}" in held
    assert not [name for name in held if name.startswith(("tests", "benchmarks"))]

    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # torch and the rest, not this checkout
    program = "import lightning_uncertainty as lu; print(lu.__file__); lu.MultiTaskMixin, lu.UncertaintyMonitor"
    shown = subprocess.run(
        [python, "-c", program], check=True, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert Path(shown.stdout.strip()).is_relative_to(site)
    script = python.parent / "lightning-uncertainty"
    usage = subprocess.run(
        [script, "demo", "--help"], check=True, capture_output=True, text=True, cwd=tmp_path, timeout=120
    )
    assert "--epochs" in usage.stdout
