"""Tests of projects whose code is not ours: each file runs in the environment of its host (`make test-hosts`)."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_ignore_collect(collection_path, config):
    """Collect a file of tests here only where the command names it: elsewhere its host is not installed."""
    if collection_path.match("test_*.py") and collection_path.parent == HERE:
        named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
        return None if collection_path in named else True
    return None


def pytest_collection_modifyitems(items):
    """Mark them."""
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.hosts)
            item.add_marker(pytest.mark.timeout(600))
