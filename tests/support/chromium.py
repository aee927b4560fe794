"""Pages in a real browser: headless Chromium. Requests and console messages are recorded."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (360, 768, 1280)  # px: a phone, a tablet, a desk
SCHEMES = ("light", "dark")


@dataclass
class Watched:
    """A page, the addresses that it requested, and its console messages and errors."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def faults_of_accessibility(self) -> list[str]:
        """The violations that axe-core finds, one line per rule: its name and the first elements that break it."""
        from axe_playwright_python.sync_playwright import Axe

        results = Axe().run(self.page).response
        assert len(results["passes"]) > 15, "axe-core has checked nothing"
        return [f"{fault['id']}: {[node['target'] for node in fault['nodes'][:3]]}" for fault in results["violations"]]


@contextmanager
def chromium(*options: str) -> Iterator[Any]:
    """A browser of this machine, started with these options; skips the test loudly where there is none."""
    found = os.environ.get("HEADSTART_TEST_CHROMIUM") or next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )
    if found is None:
        pytest.skip("NOT TESTED IN A BROWSER: install chromium, or set HEADSTART_TEST_CHROMIUM to one")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=found, args=["--no-sandbox", *options])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, width: int, scheme: str) -> Iterator[Watched]:
    """The file in a window of that width, with every image loaded."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    context.set_default_timeout(20_000)
    watched = Watched(context.new_page())
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    watched.page.on("console", lambda message: watched.complaints.append(message.text))
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    watched.page.goto(path.absolute().as_uri())
    watched.page.evaluate("Promise.all([...document.images].map(i => { i.loading = 'eager'; return i.decode(); }))")
    try:
        yield watched
    finally:
        context.close()
