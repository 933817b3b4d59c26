"""A Chromium of this machine, found by name, to click through the viewer's page."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "SOFTSHARDS_BROWSER"
MOST_MS = 120_000
"""Time limit of a click or an expectation: what fails, fails; what is slow may be slow."""
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find_browser() -> str:
    """Return the path of a Chromium; fail without one, as a skip would look like a pass."""
    found = next(filter(None, map(shutil.which, (os.environ.get(VARIABLE, ""), *NAMES))), None)
    if found is None:
        pytest.fail(
            f"no Chromium on PATH ({', '.join(NAMES)}): install one, name one in {VARIABLE}, or "
            'leave these tests out with -m "not browser"'
        )
    return found


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """Run a headless browser with its own profile."""
    path = find_browser()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        expect.set_options(timeout=MOST_MS)
        try:
            yield browser
        finally:
            browser.close()
