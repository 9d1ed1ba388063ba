"""Chromium for the tests that look at pages, and what they do without it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright


def find_chromium() -> str | None:
    """The system's browser, or the one that Playwright has installed; None if there is neither."""
    found = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return next(filter(None, found), own if Path(own).exists() else None)


CHROMIUM = find_chromium()


def need(what: object, reason: str):
    """Skip this test without `what`; fail it where ADVLIB_REQUIRE_BROWSER=1 promises it, as CI."""
    if not what:
        (pytest.fail if os.environ.get("ADVLIB_REQUIRE_BROWSER") == "1" else pytest.skip)(reason)


@contextmanager
def chromium() -> Iterator[Browser]:
    need(CHROMIUM, "needs Chromium: make chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
