"""The page of a fleet: whole by itself, and what facts have in them is text on it; in a real browser where one is."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.serve.http.browser import Browser, browser
from tests.unit.hosts import exported, make_host
from torchpar.cli.main import run

CHROMIUM = shutil.which("chromium") or ""

# It would run if it were anything but text.
HOSTILE = "<img src=x onerror='window.harmed=1'><script>window.harmed=1</script>\"'&"

CONF = """\
[Train big]
Script=/a.py
Nodes=3
Endpoint=n1
[Infer web]
Model=/<svg onload=harm()>.pt
Enabled=yes
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of hosts of two kinds, one of a hostile name, and one with no facts to be read."""
    folder = tmp_path_factory.mktemp("fleet")
    (folder / "facts").mkdir()
    (folder / "torchpar.conf").write_text(CONF)
    for number, name in enumerate(("n1", "n2", "n10", HOSTILE)):
        host = dataclasses.replace(make_host(cores_per_complex=2 + 2 * (number % 2)), hostname=name)
        text = exported(host, problems=(HOSTILE,) if name == HOSTILE else ())
        (folder / f"facts/{number}.json").write_text(text)
    (folder / "facts/<b>bad.json").write_text(f'{{"{HOSTILE}')
    page = folder / "page.html"
    assert run(["fleet", "report", "--facts", f"{folder}/facts", "--config", str(folder), "--output", str(page)]) == 3
    return page


def test_the_page_needs_nothing_beside_it(made: Path) -> None:
    """No address is in it but the name of SVG's elements, and the same hosts give the same page."""
    text = made.read_text()
    assert not re.search(r"(?:src|href|action)=|@import|url\(|https?:", re.sub(r"&lt;.*?&gt;", "", text))
    assert "default-src 'none'; style-src 'sha256-" in text and text.count("<script") == text.count("</script>")
    folder = made.parent
    again = folder / "again.html"
    run(["fleet", "report", "--facts", f"{folder}/facts", "--config", str(folder), "--output", str(again)])
    assert again.read_text() == text


def test_alike_hosts_have_their_details_once(made: Path) -> None:
    """n1 and n10 are alike; what cannot be planned has its own."""
    text = made.read_text()
    assert text.count('<script type="text/plain"') == 4 and text.count("data-plan=") == 5
    (first,) = re.findall(r"<td>n1</td>", text)
    assert first and len(set(re.findall(r'data-plan="(details-\d)"', text))) == 4


def test_a_page_that_cannot_be_written_is_said(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With where."""
    folder = made.parent
    nowhere = folder / "no/page.html"
    arguments = ["--facts", f"{folder}/facts", "--config", str(folder), "--output", str(nowhere)]
    assert run(["fleet", "report", *arguments]) == 1
    assert capsys.readouterr().err == f"torchpar: {nowhere}: No such file or directory\n"


@pytest.fixture
def page(made: Path, tmp_path: Path) -> Iterator[Browser]:
    """The page in a browser."""
    with browser(CHROMIUM, tmp_path / "chromium") as started:
        started.open(f"file://{made}")
        yield started


@pytest.mark.subprocess
@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_the_page_in_a_browser(page: Browser) -> None:
    """Filter, order, details with the picture; no name is run, and nothing is loaded."""

    def shown() -> Any:
        rows = "[...document.querySelectorAll('#hosts > tbody > tr')].filter(row => !row.hidden)"
        return page.evaluate(f"{rows}.map(row => row.cells[0].textContent.trim())")

    names = shown()
    assert len(names) == 5 and HOSTILE in names and "<b>bad.json no plan" in names
    page.evaluate("document.querySelector('th:nth-child(1) button').click()")
    assert [name for name in shown() if name.startswith("n")] == ["n1", "n2", "n10"]
    page.evaluate("document.querySelector('th:nth-child(2) button').click()")
    page.evaluate("document.querySelector('th:nth-child(2) button').click()")
    assert {"n2", HOSTILE} == set(shown()[:2])
    page.evaluate("words.value = 'WEB n1'; words.dispatchEvent(new Event('input'))")
    assert set(shown()) == {"n1", "n10"}
    page.evaluate("words.value = ''; only.value = 'errors'; only.dispatchEvent(new Event('change'))")
    assert shown() == ["<b>bad.json no plan"]
    page.evaluate("only.value = ''; only.dispatchEvent(new Event('change'))")
    for number in range(5):
        page.evaluate(f"document.querySelectorAll('tr[data-plan]')[{number}].click()")
    wait = "new Promise(done => { const look = () => document.querySelectorAll('tr.details').length === 5 ? done(1)"
    page.evaluate(f"{wait} : setTimeout(look, 20); look(); }})")
    assert page.evaluate("document.querySelectorAll('tr.details svg rect').length") > 20
    assert "train@big" in page.evaluate("document.querySelector('tr.details table').textContent")
    assert page.evaluate("document.querySelectorAll('img, svg[onload], b, [onerror]').length") == 0
    assert page.evaluate("[window.harmed ?? 0, performance.getEntriesByType('resource').length]") == [0, 0]
