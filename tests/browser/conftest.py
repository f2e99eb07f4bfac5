"""Pages in a real Chromium. A page that says anything on the console, throws, breaks its policy or asks for anything
but itself fails the test that opened it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WATCH = """addEventListener("securitypolicyviolation", (event) => {
  console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`);
});"""

Opened = Callable[..., AbstractContextManager[Page]]


@pytest.fixture(scope="module")  # Playwright keeps an event loop running, in which no other module's tests could work
def browser() -> Iterator[Browser]:
    """The Chromium of this machine; skips where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium is installed: none of {', '.join(NAMES)} is in PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(ARGUMENTS))
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser) -> Opened:
    """`with opened(file, width=360, color_scheme="dark") as page`: a page that must be quiet until the block ends.

    A page of a server is named by its address, and may ask that server. `said`: what else the console may say. Nothing
    moves by itself: a button that glides away between press and release is not clicked.
    """

    @contextmanager
    def open_page(
        where: Path | str, *, width: int = 1280, anchor: str = "", said: Sequence[str] = (), **options: Any
    ) -> Generator[Page]:
        problems: list[str] = []
        served = isinstance(where, str)
        still = {"reduced_motion": "reduce", **options}
        context = browser.new_context(viewport={"width": width, "height": 900}, offline=not served, **still)
        context.add_init_script(WATCH)
        context.set_default_timeout(10_000)
        page = context.new_page()
        own = where if isinstance(where, str) else where.resolve().as_uri()

        def heard(message: ConsoleMessage) -> None:
            if message.type in SAID and not any(text in message.text for text in said):
                problems.append(f"console {message.type}: {message.text}")

        def is_own(url: str) -> bool:
            return url.split("#")[0] == own or (served and url.startswith(f"{own}/"))

        page.on("console", heard)
        page.on("pageerror", lambda e: problems.append(f"script error: {e}"))
        page.on("request", lambda r: None if is_own(r.url) else problems.append(f"request: {r.url}"))
        try:
            page.goto(own + anchor)
            yield page
            if options.get("java_script_enabled", True):  # what was started last is heard of as well
                page.evaluate("() => new Promise((done) => setTimeout(done, 20))")
        finally:
            context.close()
        assert not problems, "the page is not quiet: " + "; ".join(problems)

    return open_page


SAID = ("error", "warning")
