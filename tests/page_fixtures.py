"""A browser for the tests of the page, as a plugin of pytest; pages in it are held to two rules.

When a test is over, its pages must have asked nothing of another host, and their consoles must show no error but
those that the test foresaw. The content security policy forbids ``eval``, so tests wait for what is seen and for
answers, never with ``wait_for_function``.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from page_actions import Open, settled
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright
from service_process import Server

expect.set_options(timeout=30_000)  # what is waited for comes at once, but on a machine that has more to do


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    """A profile of a browser of its own; of the module alone, since Playwright keeps an event loop running."""
    chromium = shutil.which("chromium")
    if chromium is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is missing; on Debian: apt-get install chromium")
        pytest.skip("chromium is missing")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser.new_context(permissions=["clipboard-read", "clipboard-write"])
        browser.close()


@pytest.fixture
def open_page(context: BrowserContext, server: Server) -> Iterator[Open]:
    """``open_page("#seed=3", foreseen="429", prepare=…)``: another page; ``prepare(page)`` comes before it loads."""
    opened = []

    def open_one(path: str = "", *, foreseen: str = "^$", prepare: Callable[[Page], Any] = lambda page: None) -> Page:
        page = context.new_page()
        page.set_viewport_size({"width": 1280, "height": 800})
        errors: list[str] = []
        hosts: set[str] = set()
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        opened.append((page, errors, hosts, foreseen))
        prepare(page)
        page.goto(f"{server.url}/{path}")
        return page

    yield open_one
    context.set_offline(False)
    for page, errors, hosts, foreseen in opened:
        page.close()
        assert hosts - {""} == {urlsplit(server.url).netloc}
        assert [error for error in errors if not re.search(foreseen, error)] == []


@pytest.fixture
def page(open_page: Open) -> Page:
    """The page at ``/``, with all that it shows by itself."""
    return settled(open_page())
