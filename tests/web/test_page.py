"""The web page, in a real browser, over the real routes (shards in this process, no Ray)."""

import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from playwright.sync_api import Page, expect, sync_playwright

from dq_cluster.images.decode import decode_image
from dq_cluster.serve.config import ServeSettings
from dq_cluster.serve.http import make_api
from dq_cluster.serve.local import LocalService
from dq_cluster.serve.run import free_port
from tests.support import make_backbone, make_model, make_pictures, make_version

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
    card = make_model(uri, preprocessing=backbone.preprocessing, feature_dim=features.shape[1])
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
