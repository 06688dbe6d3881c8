"""The page in a real browser: numbers that go on, a form that answers, nothing blocked by its own policy."""

from __future__ import annotations

import os
import shutil
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.http.browser import Browser, browser
from tests.serve.running import Running, running

CHROMIUM = shutil.which("chromium") or ""

pytestmark = [
    pytest.mark.subprocess,
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium"),
]

# `document.querySelector` of a model's part of the page.
PART = "document.querySelector('[data-model=\"identity_fp32\"]')"


@pytest.fixture(scope="module")
def world() -> Iterator[Running]:
    with running() as started:
        yield started


@pytest.fixture
def page(world: Running, tmp_path: Path) -> Iterator[Browser]:
    with browser(CHROMIUM, tmp_path / "chromium") as started:
        started.open(f"http://{world.address}/")
        yield started


def until(page: Browser, condition: str) -> None:
    """Wait until something is true in the page."""
    look = f"({condition}) ? done(true) : count++ < 6000 ? setTimeout(look, 50) : done(false)"
    assert page.evaluate(f"new Promise(done => {{ let count = 0; const look = () => {look}; look(); }})") is True


def test_the_numbers_go_on_without_a_reload(page: Browser, world: Running) -> None:
    answered = f"{PART}.querySelector('[data-value=answered]').textContent"
    before = int(page.evaluate(answered))
    for _ in range(3):
        urllib.request.urlopen(f"http://{world.address}/predict/identity_fp32", b"[1, 2]").close()
    until(page, f"{answered} === '{before + 3}'")


def test_the_form_shows_the_answer_beside_it(page: Browser, tmp_path: Path) -> None:
    page.evaluate(f"{PART}.querySelector('textarea').value = '[[1, 2.5]]'; {PART}.querySelector('button').click()")
    until(page, f"{PART}.querySelector('output pre') !== null")
    text = page.evaluate(f"{PART}.querySelector('output pre').textContent")
    assert text.startswith('{"outputs": {"x": [[1.0, 2.5]]}}\n')
    page.evaluate(f"{PART}.scrollIntoView()")
    # For people to look at: PICTURES=/some/directory
    page.picture(Path(os.environ.get("PICTURES", tmp_path)) / "page.png")


def test_the_form_shows_large_numbers_exactly(page: Browser) -> None:
    part = PART.replace("identity_fp32", "identity_int64")
    page.evaluate(f"{part}.querySelector('textarea').value = '[9007199254740993]'")
    page.evaluate(f"{part}.querySelector('button').click()")
    until(page, f"{part}.querySelector('output pre') !== null")
    text = page.evaluate(f"{part}.querySelector('output pre').textContent")
    assert text.startswith('{"outputs": {"x": [9007199254740993]}}\n')


def test_a_mistake_is_shown_beside_the_form(page: Browser) -> None:
    page.evaluate(f"{PART}.querySelector('textarea').value = '<b>'; {PART}.querySelector('button').click()")
    until(page, f"{PART}.querySelector('output pre.error') !== null")
    assert page.evaluate(f"{PART}.querySelector('output pre').textContent").startswith("not JSON")


def test_the_style_is_applied(page: Browser) -> None:
    """The policy names the style and the script by their hashes: one wrong byte and they are gone."""
    assert page.evaluate(f"getComputedStyle({PART}).borderTopWidth") == "1px"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth") is True


def test_the_form_works_without_javascript(world: Running, tmp_path: Path) -> None:
    with browser(CHROMIUM, tmp_path / "chromium") as page:
        page.call("Emulation.setScriptExecutionDisabled", value=True)
        page.call("Page.navigate", url=f"http://{world.address}/")
        # Polled from here: in the page no timer runs, and it is another page after the click.
        poll(page, "document.querySelector('[data-model=text] button') !== null")
        page.evaluate("document.querySelector('[data-model=text] button').click()")
        poll(page, "document.querySelector('h1 + pre') !== null")
        text = page.evaluate("document.querySelector('h1 + pre').textContent")
        assert text == '{"outputs": {"x": ["text"]}}'


def poll(page: Browser, condition: str) -> None:
    """Wait until something is true, whichever page is there."""
    for _ in range(6000):
        try:
            if page.evaluate(condition):
                return
        except AssertionError:
            pass  # between two pages
        time.sleep(0.02)
    raise AssertionError(condition)
