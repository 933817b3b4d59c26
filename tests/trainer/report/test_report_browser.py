"""The report in a real browser: contrast, tables, keyboard, the first screen, printing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.browser import launched
from tests.trainer.report.reported import Reported
from tests.trainer.report.reported_findings import add_findings
from trainer.report.build_report import report

pytestmark = [pytest.mark.browser, pytest.mark.slow]
SCREEN = {"width": 1280, "height": 720}
LONG = "long " * 30 + "x" * 200 + "<b>&"

CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = color => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = (top, under) =>
    [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
  const ground = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(rgba(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = color => {
    const [r, g, b] = color.slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => {
    const [x, y] = [light(a), light(b)].sort((p, q) => q - p);
    return (x + 0.05) / (y + 0.05);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode, element = node.parentElement;
    if (!node.textContent.trim() || !element.getClientRects().length) continue;
    if (element.closest('style')) continue;
    const style = getComputedStyle(element), inSvg = element.closest('svg');
    const back = ground(inSvg ? inSvg.parentElement : element);
    const ink = over(rgba(inSvg ? style.fill : style.color), back);
    found.push({text: node.textContent.trim().slice(0, 40), ratio: ratio(ink, back), kind: 'text'});
  }
  for (const mark of document.querySelectorAll('svg path, svg use')) {
    const style = getComputedStyle(mark);
    if (mark.closest('defs') || !(style.strokeOpacity >= 1)) continue;  // not the grid
    if (style.opacity < 1 || style.stroke === 'none') continue;
    const back = ground(mark.closest('svg').parentElement);
    const ink = over(rgba(style.stroke), back);
    found.push({text: style.stroke, ratio: ratio(ink, back), kind: 'mark'});
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Addresses of reports: a usual one, with tasks and audits, with many models and long names."""
    usual = Reported(tmp_path_factory.mktemp("usual"))
    usual.add("untrained", ce=3.4, kl=1.1, loss=None, speed=240.0)
    usual.add("ce", ce=2.6, kl=0.6, loss=("ce=1",), speed=240.0)
    usual.add("kd", ce=2.599, kl=0.4, speed=245.0)
    many = Reported(tmp_path_factory.mktemp("many"), documents=12, wobbles=(1.0, 2.0, 0.7))
    many.add("ce", ce=2.6, loss=("ce=1",))
    for number in range(30):
        many.add(
            f"{number} {LONG if number % 10 == 0 else ''}",
            ce=2.0 + number / 10,
            kl=1 / (number + 1),
        )
    full = Reported(tmp_path_factory.mktemp("full"))
    full.add("ce", ce=2.6, kl=0.6, loss=("ce=1",), speed=240.0)
    full.add("kd", ce=2.5, kl=0.4, speed=245.0)
    full.add("untrained", ce=3.4, kl=1.1, loss=None, speed=240.0)
    found = {}
    for name, reported in (("usual", usual), ("full", full), ("many", many)):
        title = f"Students of {LONG}" if name == "many" else "Students"
        config = reported.config(title=title, keep=0.99)
        if name != "usual":
            config = replace(
                config,
                export=(reported.root / "gguf",),
                audit=reported.root / "audit.json",
            )
            add_findings(config, {0: 0.5, 1: 0.6, 2: 0.7})
        report(config)
        found[name] = config.out.as_uri()
    return found


@pytest.fixture(params=["light", "dark"])
def tab(browser: Browser, request: pytest.FixtureRequest) -> Iterator[Page]:
    context = browser.new_context(viewport=SCREEN, color_scheme=request.param)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert problems == []
    assert {url.split("#")[0] for url in asked} == {page.url.split("#")[0]}  # nothing is loaded
    context.close()


@pytest.mark.parametrize("name", ["full", "many"])
def test_contrast_is_that_of_wcag_aa(tab: Page, pages: dict[str, str], name: str) -> None:
    tab.goto(pages[name])
    found: list[dict[str, Any]] = tab.evaluate(CONTRAST)
    assert {"text", "mark"} == {each["kind"] for each in found}
    weak = [f for f in found if f["ratio"] < (4.5 if f["kind"] == "text" else 3.0)]
    assert weak == []


def test_the_first_screen_answers(tab: Page, pages: dict[str, str]) -> None:
    tab.goto(pages["usual"])
    seen = [e for e in tab.query_selector_all(".verdict, .ship, .answer, tbody tr") if e]
    boxes = [e.bounding_box() for e in seen]
    visible = [e for e, box in zip(seen, boxes) if box and box["y"] + box["height"] <= 720]
    text = " ".join(e.inner_text() for e in visible)
    for part in ("Would I ship it?", "Kept", "Saved", "Paid back", "2.45×", "% to "):
        assert part in text
    assert len([e for e in visible if "tr" in str(e.evaluate("e => e.localName"))]) >= 3
    red = tab.locator(".answer.bad .headline").all_inner_texts()
    assert red == ["92.3%", "−0.0010"]  # kept too little, and not clearly better than tokens alone


@pytest.mark.parametrize("name", ["full", "many"])
def test_nothing_is_cut_off_at_its_sides(tab: Page, pages: dict[str, str], name: str) -> None:
    tab.goto(pages[name])
    for width in (1280, 390):
        tab.set_viewport_size({"width": width, "height": 720})
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    tab.set_viewport_size(SCREEN)
    wide = "[...document.querySelectorAll('.wide')].filter(e => e.scrollWidth > e.clientWidth)"
    assert tab.evaluate(f"{wide}.length") == 0


def test_tables_have_headings_and_captions(tab: Page, pages: dict[str, str]) -> None:
    tab.goto(pages["full"])
    tables = tab.locator("table")
    assert tables.count() >= 8
    for number in range(tables.count()):
        table = tables.nth(number)
        columns = table.locator("thead th")
        assert table.locator("thead th[scope=col]").count() == columns.count() > 1
        for row in table.locator("tbody tr").all():
            assert row.locator("th[scope=row]").count() == 1
            assert row.locator("th, td").count() == columns.count()
        assert table.locator("xpath=..").get_attribute("aria-label") or table.locator(
            "xpath=.."
        ).get_attribute("aria-labelledby")
    assert tab.locator("svg:not([role=img][aria-label])").count() == 0
    ids = tab.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    levels = tab.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.localName[1])")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))


def test_the_keyboard_reaches_every_section(tab: Page, pages: dict[str, str]) -> None:
    tab.goto(pages["usual"])
    links = tab.locator("nav a")
    for number in range(links.count()):
        tab.keyboard.press("Tab")
        assert links.nth(number).evaluate("e => e === document.activeElement")
        outline = links.nth(number).evaluate("e => getComputedStyle(e).outlineStyle")
        assert outline == "solid"
        target = links.nth(number).get_attribute("href")
        assert target
        assert tab.locator(target).count() == 1
    tab.keyboard.press("Tab")  # then the tables, which scroll on a narrow screen
    assert tab.evaluate("document.activeElement.getAttribute('role')") == "region"
    assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_it_prints_in_dark_ink(tab: Page, pages: dict[str, str], tmp_path: Path) -> None:
    tab.goto(pages["full"])
    tab.emulate_media(media="print")
    assert tab.evaluate("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert not tab.locator("nav").is_visible()
    assert [f for f in tab.evaluate(CONTRAST) if f["ratio"] < 3.0] == []
    pdf = tab.pdf(path=tmp_path / "report.pdf", format="A4")
    assert pdf.startswith(b"%PDF")
    tab.set_viewport_size({"width": 688, "height": 1000})  # A4 between its margins
    assert tab.evaluate("document.documentElement.scrollWidth") <= 688
