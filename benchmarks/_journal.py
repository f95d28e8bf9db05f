"""A plugin for pytest in runs that may be cut off: outcomes are noted in a file at once, and failures shown in full.

The environment names the file, as JOURNAL. Tests of which it knows the outcome already are left out.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

# a process that has seen one of these can do nothing more on its GPU
LOST = ("device-side assert", "illegal memory access", "illegal instruction", "misaligned address", "launch failure")


class Journal:
    """Lines of JSON: `{"collected": [...]}`, `{"started": test}`, `{"test": test, "outcome": ...}`."""

    def __init__(self, config: pytest.Config, path: Path) -> None:
        self.config, self.path = config, path
        self.lost = False

    def note(self, **entry: Any) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        known = [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        done = {entry["test"] for entry in known if "test" in entry}
        items[:] = [item for item in items if item.nodeid not in done]
        self.note(collected=[item.nodeid for item in items])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and report.nodeid:
            self.note(test=report.nodeid, outcome="failed", seconds=0.0, text=report.longreprtext)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.note(started=nodeid, at=time.time())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.passed and report.when != "call":
            return
        text = report.longreprtext if report.failed else str(report.longrepr or "")
        measured = dict(report.user_properties)
        self.note(test=report.nodeid, outcome=report.outcome, seconds=report.duration, text=text, measured=measured)
        if report.failed:
            terminal: Any = self.config.pluginmanager.get_plugin("terminalreporter")
            terminal.ensure_newline()
            terminal.section(report.nodeid, "_")
            terminal.write_line(text)
            self.lost = self.lost or any(word in text for word in LOST)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        if self.lost:
            self.note(stopped="the GPU was lost to an error")
            pytest.exit("the GPU was lost to an error", returncode=70)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        session.config.option.tbstyle = "no"  # they have been shown


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Journal(config, Path(os.environ["JOURNAL"])))
