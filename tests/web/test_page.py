"""The web page, in a real browser, over the real routes (shards in this process, no Ray)."""

import shlex
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import httpx
import numpy as np
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect, sync_playwright

from dq_cluster.images.decode import decode_image
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from dq_cluster.serve.run import free_port
from tests.support import make_backbone, make_model, make_pictures, make_version
from tests.texts import make_words

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# The last ones are beyond what a number of JavaScript can say.
IDS = [*range(50), *range(2**63 + 5, 2**63 + 15)]
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


@dataclass(frozen=True)
class Site:
    url: str
    pictures: list[Path]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("web")
    uri = str(folder / "index")
    pictures = make_pictures(folder / "pictures", 60)
    backbone = make_backbone(folder / "pixels.onnx")
    pixels = np.stack([decode_image(path.read_bytes(), 8) for path in pictures])
    features = backbone.features(pixels)
    card = make_model(
        uri,
        preprocessing=backbone.preprocessing,
        feature_dim=features.shape[1],
        words=make_words(folder / "sentences", 16),
    )
    uris = [str(path) for path in pictures]
    make_version(uri, card, files=4, features=features, uris=uris, ids=IDS)
    service = LocalService(ServeSettings(index=uri, shards=4, timeout_ms=10_000))
    api = make_api(service, max_body_bytes=1 << 20, hide=uri)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(api, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + 240
    while not server.started:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    yield Site(f"http://127.0.0.1:{port}", pictures)
    server.should_exit = True
    thread.join()


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(site.url)
        expect(page.locator("#about")).to_contain_text("version 1", timeout=30_000)
        yield page
        browser.close()
        assert not problems


def test_an_image_finds_itself_and_its_neighbours(page: Page, site: Site) -> None:
    page.set_input_files("#file", str(site.pictures[7]))
    page.wait_for_selector("#hits li")
    assert page.locator("#hits li").count() == 12
    first = page.locator("#hits li").first
    expect(page.locator("#hits li img")).to_have_count(12, timeout=30_000)
    scores = [float(text) for text in page.locator("#hits li b").all_inner_texts()]
    assert scores == sorted(scores, reverse=True)
    ids = page.eval_on_selector_all("#hits li", "items => items.map(i => Number(i.dataset.id))")
    assert 7 in ids[:3]
    facts = page.inner_text("#facts")
    for expected in ("version 1", "shards 4 of 4", "coverage 100 %", "search", "merge", "total"):
        assert expected in facts
    first.click()
    expect(page.locator("#query")).to_contain_text("image ", timeout=30_000)
    assert page.input_value("#id") == str(ids[0])


def test_words_alone_and_beside_a_picture(page: Page, site: Site) -> None:
    def shown() -> list[str]:
        found = page.eval_on_selector_all("#hits li", "items => items.map(i => i.dataset.id)")
        return [str(each) for each in found]

    page.fill("#text", "red 🐱")
    page.press("#text", "Enter")
    expect(page.locator("#query q")).to_have_text("red 🐱", timeout=30_000)
    expect(page.locator("#hits li")).to_have_count(12)
    by_words = shown()
    assert by_words == answer(site, {"text": "red 🐱", "k": 12})
    assert "text=red" in page.url
    page.click("#code summary")
    assert "text=" in page.inner_text("#curl")
    page.reload()  # the address says it all
    expect(page.locator("#hits li")).to_have_count(12, timeout=30_000)
    assert shown() == by_words

    page.set_input_files("#file", str(site.pictures[7]))
    expect(page.locator("#query img")).to_have_count(1, timeout=30_000)
    expect(page.locator("#query q")).to_have_text("red 🐱")
    assert shown() != by_words
    page.fill("#text", "\u200d")
    page.press("#text", "Enter")
    expect(page.locator("#error")).to_contain_text("text is empty", timeout=30_000)


def answer(site: Site, asked: dict[str, object]) -> list[str]:
    reply = httpx.post(f"{site.url}/v1/search", json=asked)
    assert reply.status_code == 200, reply.text
    return [str(hit["id"]) for hit in reply.json()["hits"][0]]


def test_a_long_id_keeps_every_digit(page: Page) -> None:
    page.fill("#k", "60")
    page.fill("#id", str(IDS[-1]))
    page.click("text=Search")
    page.wait_for_selector("#hits li")
    shown = page.eval_on_selector_all("#hits li", "items => items.map(i => i.dataset.id)")
    assert sorted(map(int, shown)) == IDS
    page.locator(f'#hits li[data-id="{IDS[-1]}"]').click()
    expect(page.locator("#query")).to_contain_text(f"image {IDS[-1]}", timeout=30_000)


def test_a_random_image_of_the_index(page: Page) -> None:
    page.click("#random")
    page.wait_for_selector("#hits li")
    assert page.input_value("#id").isdigit()


def test_an_error_is_shown_and_nothing_else_breaks(page: Page) -> None:
    page.fill("#id", "123456")
    page.click("text=Search")
    expect(page.locator("#error")).to_contain_text("no id", timeout=30_000)
    page.fill("#id", "5")
    page.click("text=Search")
    page.wait_for_selector("#hits li")
    assert page.inner_text("#error") == ""


def shown(page: Page) -> list[str]:
    return list(page.eval_on_selector_all("#hits li", "items => items.map(i => i.dataset.id)"))


def ask(page: Page, id: int) -> list[str]:
    page.fill("#id", str(id))
    page.click("text=Search")
    expect(page.locator("#query")).to_contain_text(f"image {id}", timeout=30_000)
    page.wait_for_selector(f'#hits li[data-id="{id}"]')
    return shown(page)


def test_a_search_has_an_address_and_the_way_back(page: Page) -> None:
    first = ask(page, 5)
    assert "id=5" in page.url
    page.locator("#hits li").nth(3).click()
    expect(page.locator("#query")).to_contain_text(f"image {first[3]}", timeout=30_000)
    assert page.input_value("#id") == first[3]
    page.go_back()
    expect(page.locator("#query")).to_contain_text("image 5", timeout=30_000)
    expect(page.locator("#hits li").nth(3)).to_have_attribute("data-id", first[3])
    page.goto(page.url)
    expect(page.locator("#query")).to_contain_text("image 5", timeout=30_000)
    page.wait_for_selector("#hits li")
    assert shown(page) == first


def test_a_picture_of_the_users_is_gone_back_to(page: Page, site: Site) -> None:
    page.set_input_files("#file", str(site.pictures[7]))
    page.wait_for_selector("#hits li")
    found = shown(page)
    page.locator("#hits li").nth(4).click()
    expect(page.locator("#query")).to_contain_text(f"image {found[4]}", timeout=30_000)
    page.go_back()
    expect(page.locator('#query img[alt="your picture"]')).to_be_visible(timeout=30_000)
    expect(page.locator("#hits li").nth(4)).to_have_attribute("data-id", found[4])
    assert shown(page) == found


def test_a_part_of_a_picture_is_searched_for(page: Page, site: Site) -> None:
    page.set_input_files("#file", str(site.pictures[7]))
    page.wait_for_selector("#hits li")
    picture = page.locator("#query img")
    assert picture.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [48, 40]
    box = picture.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + 4 + box["width"] / 2, box["y"] + 4 + box["height"] / 2, steps=4)
    page.mouse.up()
    expect(picture).to_have_js_property("naturalWidth", 24, timeout=30_000)
    assert picture.evaluate("image => image.naturalHeight") == 20
    page.wait_for_selector("#hits li")


def test_a_filter_is_offered_set_and_taken_off(page: Page) -> None:
    page.fill("#k", "30")
    ask(page, 5)
    choice = page.locator("#filters button", has_text="label: 3 (").first
    count = int(choice.inner_text().rpartition("(")[2].rstrip(")"))
    assert count == sum(int(id) % 10 == 3 for id in shown(page) if int(id) < 50) + sum(
        IDS.index(int(id)) % 10 == 3 for id in shown(page) if int(id) >= 50
    )
    choice.click()
    page.wait_for_selector('#filters [aria-pressed="true"]')
    assert "filter=" in page.url
    assert {IDS.index(int(id)) % 10 for id in shown(page)} == {3}
    page.click('#filters [aria-pressed="true"]')
    expect(page.locator("#hits li")).to_have_count(30, timeout=30_000)
    assert "filter=" not in page.url


def test_scrolling_brings_more_neighbours(page: Page) -> None:
    page.set_viewport_size({"width": 390, "height": 600})
    first = ask(page, 5)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # a phone
    page.mouse.wheel(0, 20_000)
    expect(page.locator("#hits li")).to_have_count(12 + 24, timeout=30_000)
    assert shown(page)[:12] == first
    page.mouse.wheel(0, 20_000)
    expect(page.locator("#hits li")).to_have_count(60, timeout=30_000)
    page.mouse.wheel(0, -10)
    page.mouse.wheel(0, 20_000)
    expect(page.locator("#more")).to_have_text("no more neighbours", timeout=30_000)


def test_the_search_as_code_gives_the_same_answer(
    page: Page, capsys: pytest.CaptureFixture[str]
) -> None:
    found = ask(page, 5)
    page.click("summary:has-text('This search as code')")
    exec(compile(page.inner_text("#python"), "python", "exec"), {})
    printed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert printed == found
    words = shlex.split(page.inner_text("#curl"))
    assert words[0] == "curl"
    fields = dict(word.split("=", 1) for word in words if "=" in word)
    answer = httpx.post(words[-1], files={name: (None, text) for name, text in fields.items()})
    assert [str(hit["id"]) for hit in answer.json()["hits"][0]] == found


def test_versions_are_listed(page: Page) -> None:
    page.click("#versions summary")
    item = page.locator("#versions li")
    expect(item).to_have_text("version 1 served, current", timeout=30_000)
    assert item.locator("button").is_disabled()


def test_the_keyboard_is_enough(page: Page) -> None:
    page.keyboard.press("/")
    page.keyboard.type("5")
    page.keyboard.press("Enter")
    page.wait_for_selector("#hits li")
    found = shown(page)
    page.locator("#hits li button").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#query")).to_contain_text(f"image {found[1]}", timeout=30_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_accessible(page: Page, scheme: Literal["light", "dark"]) -> None:
    page.emulate_media(color_scheme=scheme)
    ask(page, 5)
    page.click("summary:has-text('This search as code')")
    page.click("#versions summary")
    expect(page.locator("#versions li")).to_have_count(1, timeout=30_000)
    expect(page.locator("#hits .none")).to_have_count(0, timeout=30_000)
    results = Axe().run(page)
    assert results.violations_count == 0, results.generate_report()


def test_only_the_parts_of_the_page_are_served(site: Site) -> None:
    assert (
        httpx.get(f"{site.url}/page/page.js").headers["content-type"].startswith("text/javascript")
    )
    for name in ("index.html", "__init__.py", "..%2fhttp.py", "absent.js"):
        assert httpx.get(f"{site.url}/page/{name}").status_code == 404
