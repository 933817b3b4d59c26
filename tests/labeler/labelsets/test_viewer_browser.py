"""The viewer in a real browser, as a page and served: hover, press keys, read."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from labeler.labelsets.view.html_page import write_page
from labeler.labelsets.view.page_data import Viewer, open_viewer
from labeler.labelsets.view.server import make_server
from schemas import decode, open_label_set
from schemas.divergence import diverge
from tests.browser import launched
from tests.labeler.viewed import SCRIPT

pytestmark = pytest.mark.browser
WIDE, PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def viewers(viewed_sets: dict[str, Path]) -> dict[str, Viewer]:
    return {
        "one": open_viewer(viewed_sets["a"]),
        "two": open_viewer(viewed_sets["a"], viewed_sets["b"]),
    }


@pytest.fixture(scope="module")
def addresses(
    viewers: dict[str, Viewer], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """Addresses of each viewer, as a page of all rows and on a server."""
    folder = tmp_path_factory.mktemp("pages")
    found, servers = {}, []
    for name, viewer in viewers.items():
        write_page(folder / f"{name}.html", viewer, rows=1000, seed=0)
        found[f"{name} page"] = (folder / f"{name}.html").as_uri()
        server = make_server(viewer)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found[f"{name} server"] = f"http://127.0.0.1:{server.server_port}/"
        servers.append(server)
    yield found
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(params=["page", "server"])
def one(request: pytest.FixtureRequest, addresses: dict[str, str]) -> str:
    return addresses[f"one {request.param}"]


@pytest.fixture(params=["page", "server"])
def two(request: pytest.FixtureRequest, addresses: dict[str, str]) -> str:
    return addresses[f"two {request.param}"]


@pytest.fixture
def tab(browser: Browser) -> Iterator[Page]:
    """Open a tab in which any error, or any request beyond this machine, fails the test."""
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text))
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("dialog", lambda dialog: (problems.append(dialog.message), dialog.dismiss()))
    page.on("requestfailed", lambda request: problems.append(request.url))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    yield page
    home = page.url.split("#")[0]
    assert problems == []
    assert [url for url in asked if not url.startswith((home, "data:"))] == []
    if home.startswith("file:"):
        assert {url.split("#")[0] for url in asked if not url.startswith("data:")} == {home}
    context.close()


def visit(tab: Page, address: str) -> None:
    tab.goto(address)
    expect(tab.locator(".labeled").first).to_be_visible()


def reading(tab: Page) -> str:
    """Return the row's text on the page, where tokens of spaces are dots."""
    return (tab.locator("#text").text_content() or "").replace("·", " ")


def open_row(tab: Page, name: str, *, search: str | None = None) -> None:
    tab.locator("#search").fill(search or name)
    tab.locator("#search").blur()
    expect(tab.locator("#row-id")).to_have_text(name)


def number_of(viewer: Viewer, name: str) -> int:
    return viewer.listing.frame["id"].to_list().index(name)


def stored(viewer: Viewer, path: Path, number: int) -> tuple[list[int], list[int], object]:
    """Read a row's ids, labeled positions and labels without the viewer."""
    name, chunk = viewer.listing.frame.row(number, named=True)["id"], 0
    labels = open_label_set(path)
    for group in labels.row_groups:
        table = labels.read_row_group(group)
        for index, key in enumerate(zip(table["id"].to_pylist(), table["chunk"].to_pylist())):
            if key == (name, chunk):
                row = table.slice(index, 1)
                at = [t for s in row["spans"][0].as_py() for t in range(s["start"], s["stop"])]
                return row["input_ids"][0].as_py(), at, decode(row).labels
    raise AssertionError(name)


def test_a_hostile_corpus_is_text_and_nothing_else(tab: Page, one: str) -> None:
    visit(tab, one)
    expect(tab.locator("#sets")).to_contain_text("plain/1")
    tab.locator("#search").fill("<b>bold")
    expect(tab.locator("#row-id")).to_have_text(SCRIPT)
    assert f"{SCRIPT} <b>bold</b> &amp; {{{{ script }}}}" in reading(tab)
    expect(tab.locator("#row-facts")).to_contain_text("<b>.jsonl")
    for token in tab.locator(".labeled").all()[:20]:
        token.hover()
    assert tab.evaluate("window.hacked") is None
    assert tab.locator("#text b, #text script, #text img, #list b, #card b").count() == 0


def test_invisible_characters_are_shown_as_signs(tab: Page, one: str) -> None:
    visit(tab, one)
    open_row(tab, "signs⟨U+202E⟩", search="reversed")
    text = reading(tab)
    assert "bell ␇ tab⇥\tend␍↵\nreversed ⟨U+202E⟩◦◦ and ⟨U+2028⟩◦◦ a line↵\n↵\n  two" in text
    assert "\u202e" not in text + tab.locator("#list").inner_text()
    open_row(tab, "whole")
    assert "a parrot \U0001f99c◦◦◦, naï◦ve 日◦◦本◦◦ and" in reading(tab)
    tab.locator("#text .labeled", has_text="\U0001f99c").hover()
    expect(tab.locator("#card .chip.big")).to_have_text("\U0001f99c")


def test_hovering_a_token_shows_its_distribution(
    tab: Page, one: str, viewers: dict[str, Viewer], viewed_sets: dict[str, Path]
) -> None:
    visit(tab, one)
    open_row(tab, "doc5")
    viewer = viewers["one"]
    ids, at, labels = stored(viewer, viewed_sets["a"], number_of(viewer, "doc5"))
    for label in (3, len(at) - 1):
        tab.locator(f'[data-t="{at[label]}"]').hover()
        card = tab.locator("#card")
        expect(card).to_contain_text(f"position {at[label]} of {len(ids)} · id {ids[at[label]]}")
        bars = card.locator(".bar:not(.tail):not(.apart)")
        expect(bars).to_have_count(10)
        for rank in (0, 9):
            p = float(np.exp(labels.topk_logprobs[label, rank]))
            expect(bars.nth(rank).locator(".p")).to_have_text(percent(p))
            spelled = viewer.vocabulary.texts[labels.topk_ids[label, rank]]
            assert visible(bars.nth(rank).locator(".chip").inner_text()) == visible(spelled), rank
        tail = float(np.exp(labels.tail_logprob[label]))
        expect(card.locator(".bar.tail .p")).to_have_text(percent(tail))
        expect(card.locator(".bar.actual")).to_have_count(1)
        actual = float(np.exp(labels.token_logprob[label]))
        expect(card.locator(".bar.actual .p")).to_have_text(percent(actual))
        expect(card.locator(".figures")).to_contain_text(f"{labels.entropy[label]:.2f}")
        expect(card.locator(".kind")).to_have_text("text")
    tab.locator("#more").click()
    expect(bars).to_have_count(16)
    tab.locator(f'[data-t="{at[2]}"]').hover()
    expect(bars).to_have_count(16)  # stays open for the next token


def percent(p: float) -> str:
    """Format as the page does. 0.5 % of values round differently there, but none of these."""
    return f"{100 * p:.{2 if p < 0.1 else 1}f} %" if p >= 1e-4 else "<0.01 %"


def visible(text: str) -> str:
    """Return a token's text as on the card, with signs for invisible characters."""
    signs = {code: chr(0x2400 + code) for code in range(32)} | {10: "↵", 9: "⇥", 127: "␡"}
    return text.translate(signs).replace("·", " ")


def test_a_click_pins_and_escape_unpins(tab: Page, one: str) -> None:
    visit(tab, one)
    place = tab.locator("#card p").first
    tab.locator('[data-t="4"]').click()
    expect(tab.get_by_role("button", name="Unpin")).to_be_visible()
    tab.locator('[data-t="6"]').hover()
    expect(place).to_contain_text("position 4 ")
    assert tab.url.endswith(":4")
    tab.keyboard.press("Escape")
    tab.locator('[data-t="7"]').hover()
    expect(place).to_contain_text("position 7 ")
    tab.locator('[data-t="8"]').click()
    row = tab.locator("#row-id").inner_text()
    tab.reload()
    expect(tab.locator("#row-id")).to_have_text(row)
    expect(place).to_contain_text("position 8 ")  # the address names row and token


def test_keys_move_through_rows_and_tokens(tab: Page, one: str, viewers: dict[str, Viewer]) -> None:
    visit(tab, one)
    names = viewers["one"].listing.frame["id"].to_list()
    heading = tab.locator("#row-facts")
    for key, place in (("j", 1), ("ArrowDown", 2), ("J", 3), ("k", 2), ("ArrowUp", 1)):
        tab.keyboard.press(key)
        expect(heading).to_contain_text(f"{place + 1} of {len(names)}")
        expect(tab.locator('[aria-selected="true"]')).to_have_id(f"line-{place}")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    tab.keyboard.press("ArrowRight")
    focused = tab.locator(":focus")
    assert focused.get_attribute("data-t") == "3"
    assert "position 3" in (focused.get_attribute("aria-label") or "")
    expect(tab.locator("#card p").first).to_contain_text("position 3 ")
    expect(tab.locator("#announcement")).to_contain_text("entropy")
    tab.keyboard.press("Enter")
    expect(tab.get_by_role("button", name="Unpin")).to_be_visible()
    tab.keyboard.press("/")
    tab.keyboard.type("jjj")  # typed text, not commands
    expect(tab.locator("#search")).to_have_value("jjj")
    expect(tab.locator("#text")).to_have_text("No rows match.")
    tab.get_by_role("button", name="Clear").click()
    expect(tab.locator("#count")).to_contain_text(f"{len(names)} rows")


def test_rows_are_filtered_and_sorted_by_entropy(
    tab: Page, one: str, viewers: dict[str, Viewer]
) -> None:
    visit(tab, one)
    frame = viewers["one"].listing.frame
    least = round(float(frame["mean_entropy"].median()), 4)
    kept = frame.filter(frame["mean_entropy"] >= least).sort("mean_entropy", descending=True)
    tab.locator("#open-filters").click()
    tab.locator("#min-mean_entropy").fill(str(least))
    expect(tab.locator("#count")).to_contain_text(f"{kept.height} row")
    expect(tab.locator("#open-filters")).to_have_text("Filter (1)")
    tab.locator("#sort").select_option("mean_entropy")
    expect(tab.locator("#line-0 .pill")).to_have_text(f"{kept['mean_entropy'][0]:.2f}")
    shown = [float(text) for text in tab.locator("#list .pill").all_inner_texts()]
    assert shown == sorted(shown, reverse=True)
    assert min(shown) >= round(least, 2) - 0.01
    tab.locator("#direction").click()
    expect(tab.locator("#line-0 .pill")).to_have_text(f"{kept['mean_entropy'][-1]:.2f}")


def test_colors_show_the_measured_values(
    tab: Page, one: str, viewers: dict[str, Viewer], viewed_sets: dict[str, Path]
) -> None:
    visit(tab, one)
    open_row(tab, "doc5")
    viewer = viewers["one"]
    labels = stored(viewer, viewed_sets["a"], number_of(viewer, "doc5"))[2]
    expected = {
        "Entropy": labels.entropy / 6,
        "NLL": -labels.token_logprob / 6,
        "Coverage": np.exp(labels.tail_logprob) / 0.4,
    }
    for mode, values in expected.items():
        tab.locator("#modes").get_by_text(mode, exact=True).click()
        found = tab.eval_on_selector_all(
            ".labeled", "nodes => nodes.map(n => Number(n.style.getPropertyValue('--v')))"
        )
        assert found == pytest.approx(np.clip(values, 0, 1).tolist(), abs=6e-4)
    first = tab.locator('[data-t="0"]')  # without a label
    expect(first).to_have_css("background-color", "rgba(0, 0, 0, 0)")
    assert first.get_attribute("role") is None


def test_two_teachers_stand_side_by_side(
    tab: Page, two: str, viewers: dict[str, Viewer], viewed_sets: dict[str, Path]
) -> None:
    visit(tab, two)
    expect(tab.locator("#sets .set")).to_have_count(2)
    open_row(tab, "doc7")
    viewer = viewers["two"]
    number = number_of(viewer, "doc7")
    _, at, a = stored(viewer, viewed_sets["a"], number)
    _, _, b = stored(viewer, viewed_sets["b"], number)
    found = diverge(a, b)
    label = int(np.argmax(found.a_to_b))
    tab.locator(f'[data-t="{at[label]}"]').hover()
    card = tab.locator("#card")
    for kl in (found.a_to_b[label], found.b_to_a[label]):
        expect(card.locator(".figures")).to_contain_text(f"{kl:.{2 if kl >= 1 else 4}f}")
    bars = card.locator(".bar.pair:not(.tail)")
    ids = dict.fromkeys([*a.topk_ids[label].tolist(), *b.topk_ids[label].tolist()])
    best = max(max(a.topk_logprobs[label]), max(b.topk_logprobs[label]))
    assert bars.count() in (10, 11)
    expect(bars.first).to_contain_text(percent(float(np.exp(best))))
    tail = card.locator(".bar.tail")
    expect(tail.locator(".of-a .p")).to_have_text(percent(float(np.exp(a.tail_logprob[label]))))
    expect(tail.locator(".of-b .p")).to_have_text(percent(float(np.exp(b.tail_logprob[label]))))
    tab.locator("#more").click()
    assert bars.count() - len(ids) in (0, 1)  # the actual token, if neither has it
    colors = tab.eval_on_selector_all(
        ".labeled", "nodes => nodes.map(n => Number(n.style.getPropertyValue('--v')))"
    )
    assert int(np.argmax(colors)) in np.flatnonzero(found.a_to_b >= np.quantile(found.a_to_b, 0.9))
    tab.get_by_role("button", name="Clear").click()
    tab.locator("#sort").select_option("nll_difference")
    most = viewer.listing.frame["nll_difference"].max()
    expect(tab.locator("#line-0 .pill")).to_have_text(f"{most:+.3f}".replace("-", "−"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_one_pane_at_a_time(browser: Browser, two: str, scheme: str) -> None:
    context = browser.new_context(viewport=PHONE, has_touch=True, color_scheme=scheme)
    tab = context.new_page()
    visit(tab, two)
    expect(tab.locator("#list")).not_to_be_visible()
    expect(tab.locator("#card")).not_to_be_visible()
    tab.locator("#open-list").tap()
    tab.locator("#line-2").tap()
    expect(tab.locator("#list")).not_to_be_visible()
    expect(tab.locator("#row-facts")).to_contain_text("3 of ")
    tab.locator('[data-t="5"]').tap()
    expect(tab.locator("#card")).to_be_visible()
    card, token = tab.locator("#card").bounding_box(), tab.locator('[data-t="5"]').bounding_box()
    assert card
    assert token
    assert token["y"] + token["height"] <= card["y"]
    assert card["width"] == PHONE["width"]
    tab.get_by_role("button", name="Unpin").tap()
    expect(tab.locator("#card")).not_to_be_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible_on_the_strongest_color(
    browser: Browser, addresses: dict[str, str], scheme: str
) -> None:
    """WCAG 2 contrast of the painted colors: at least 4.5 to 1."""
    context = browser.new_context(viewport=WIDE, color_scheme=scheme)
    tab = context.new_page()
    visit(tab, addresses["two page"])
    for mode in ("entropy", "nll", "coverage", "kl"):
        tab.locator(f"label[for=mode-{mode}]").click()
        for selector in (".labeled", ".t:not(.labeled)", ".pill", "#row-facts", ".item-about"):
            ratio = tab.locator(selector).first.evaluate(CONTRAST)
            assert ratio >= 4.5, (mode, selector)
    context.close()


CONTRAST = """node => {
  node.style.setProperty("--v", 1);
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const paint = (color) => { pen.fillStyle = color; pen.fillRect(0, 0, 1, 1); };
  const luminance = () => {
    const part = (byte) => {
      const x = byte / 255;
      return x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    };
    const [r, g, b] = pen.getImageData(0, 0, 1, 1).data;
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const chain = [];
  for (let one = node; one; one = one.parentElement) chain.unshift(one);
  for (const one of chain) paint(getComputedStyle(one).backgroundColor);
  const below = luminance();
  paint(getComputedStyle(node).color);
  const above = luminance();
  return (Math.max(above, below) + 0.05) / (Math.min(above, below) + 0.05);
}"""


def test_a_damaged_row_is_named_and_the_others_are_shown(
    browser: Browser, viewed_sets: dict[str, Path], tmp_path: Path
) -> None:
    """Through the command, as a user would; Ctrl-C ends it."""
    copy = shutil.copytree(viewed_sets["a"], tmp_path / "copy")
    shard = open_label_set(copy).shards[0]
    data = bytearray((copy / shard).read_bytes())
    data[100] ^= 1  # in the first row group
    (copy / shard).write_bytes(data)
    command = [sys.executable, "-m", "labeler", "view", str(copy), "--no-open", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            tab = browser.new_page()
            tab.goto(json.loads(server.stdout.readline())["url"])
            expect(tab.get_by_role("alert")).to_contain_text(f"{shard}: row group 0 was altered")
            for _ in range(open_label_set(copy).row_groups[0].rows):
                tab.keyboard.press("j")
            expect(tab.locator(".labeled").first).to_be_visible()
            tab.close()
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=300) == 0
        finally:
            server.kill()  # does nothing to a server that has ended
