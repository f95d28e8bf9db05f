"""A headless Chromium that is cut off from the network and remembers what pages complain of."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run one."""
    browser = next(filter(None, map(shutil.which, NAMES)), None)
    assert browser, f"these tests need one of {', '.join(NAMES)} on the PATH: `make browser` installs one on Debian"
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(
    browser: Browser,
    path: Path,
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    complaints: list[str] | None = None,
) -> Iterator[Page]:
    """Open a file as a reader would, offline; console errors, page errors and requests go to `complaints`."""
    heard = [] if complaints is None else complaints
    scheme = "dark" if dark else "light"
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, offline=True)
    page = context.new_page()
    page.on("console", lambda message: heard.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda ask: heard.append(ask.url) if ask.url.startswith("http") else None)
    page.goto(path.resolve().as_uri())
    try:
        yield page
    finally:
        context.close()
