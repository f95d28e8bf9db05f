"""What a release and the places that host the project read: versions, workflows, forms, hooks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet

from tests.lowest import PROJECT

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".github"
WORKFLOWS = sorted((FOLDER / "workflows").glob("*.yml"))
FORMS = sorted(path for path in (FOLDER / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
SCHEMAS = {
    "github-workflows": WORKFLOWS,
    "github-issue-forms": FORMS,
    "github-issue-config": [FOLDER / "ISSUE_TEMPLATE/config.yml"],
    "citation-file-format": [ROOT / "CITATION.cff"],
}
TARGETS = set(re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
TEXT = PROJECT.read_text(encoding="utf-8")
VERSION = re.search(r'^version = "(.+)"$', TEXT, flags=re.MULTILINE)[1]


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_fit_their_schema(schema):
    files = list(map(str, SCHEMAS[schema]))
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", *files]
    done = subprocess.run(check, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files


def steps(workflow):
    """Return each step of a workflow with the values of its job's matrix."""
    for job in workflow["jobs"].values():
        matrix = job.get("strategy", {}).get("matrix", {})
        for step in job["steps"]:
            yield step, matrix


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_targets_that_there_are(path):
    asked = set()
    for step, matrix in steps(yaml.safe_load(path.read_text(encoding="utf-8"))):
        for target in re.findall(r"^make (.+)$", step.get("run", ""), flags=re.MULTILINE):
            asked.update(matrix["target"] if target == "${{ matrix.target }}" else [target])
    assert asked
    assert asked <= TARGETS


def test_the_fast_tier_runs_on_three_versions_of_python_that_the_package_takes():
    jobs = yaml.safe_load((FOLDER / "workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    versions = jobs["fast"]["strategy"]["matrix"]["python"]
    taken = SpecifierSet(re.search(r'^requires-python = "(.+)"$', TEXT, flags=re.MULTILINE)[1])
    assert len(versions) == len(set(versions)) == 3
    assert all(taken.contains(version) for version in versions)
    assert not taken.contains("3.9")


def test_the_hook_is_make_lint():
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (hook,) = [hook for repo in repos for hook in repo["hooks"]]
    assert hook["entry"] == "make lint"
    assert hook["pass_filenames"] is False
    assert "lint" in TARGETS


def test_the_version_is_one():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == VERSION
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## \[(.+)\]", changes, flags=re.MULTILINE)[0] in ("Unreleased", VERSION)
    assert f"\n## [{VERSION}] - {cited['date-released']}\n" in changes
