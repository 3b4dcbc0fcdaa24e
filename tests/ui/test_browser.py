"""The gallery in a real Chromium: what people see, click, type and link to; and that captions stay captions."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from gallery_town import ATTACK, FAILED_FOR_GOOD, two_masks
from PIL import Image

from semiocity.data.columns import Dataset
from semiocity.stages.masks import Masks
from semiocity.ui.browse.pictures import number_colours
from semiocity.ui.browse.server import Gallery

pytestmark = pytest.mark.browser


class Page:
    """A tab, and how tests look at it."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, address: str = "") -> Page:
        self.driver.get(self.url + address)
        self.until(lambda: self.all("#grid .tile, .nothing, .wrong, #sample .panel"), "something to look at")
        return self

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 30, poll_frequency=0.03).until(lambda _: condition(), f"never: {what}")

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.run("return [...document.querySelectorAll(arguments[0])]", selector)

    def one(self, selector: str) -> Any:
        return self.until(lambda: (self.all(selector) or [None])[0], selector)

    def text(self, selector: str) -> str:
        return str(self.run("return (document.querySelector(arguments[0]) || {}).textContent || ''", selector))

    def click(self, selector: str) -> None:
        self.one(selector).click()

    def keys(self) -> list[str]:
        return self.run("return [...document.querySelectorAll('#grid .tile')].map((tile) => tile.dataset.key)")

    def total(self, words: str) -> None:
        self.until(lambda: self.text("#total") == words, f"the total {words!r}")

    def press(self, *names: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        for name in names:
            ActionChains(self.driver).send_keys(name).perform()

    @property
    def address(self) -> str:
        return str(self.run("return location.search"))


@pytest.fixture
def page(chromium: Any, gallery: Gallery) -> Iterator[Page]:
    """A page whose scripts must not fail; errors of missing thumbnails are the server's honest answers."""
    chromium.get_log("browser")
    yield Page(chromium, gallery.url)
    wrong = [e["message"] for e in chromium.get_log("browser") if e["level"] == "SEVERE" and "404" not in e["message"]]
    assert wrong == []


@pytest.fixture(scope="module")
def keys(town: Any) -> list[str]:
    dataset = Dataset.open(town)
    return [key for shard in range(dataset.shards) for key in dataset.reader("base", shard).keys]


def test_gallery_shows_every_row_with_its_picture(page: Page, keys: list[str]) -> None:
    page.open()
    assert page.keys() == keys
    page.total("40 rows")
    page.until(
        lambda: page.run(
            "return [...document.querySelectorAll('.frame img')].slice(0, 4).every((i) => i.naturalWidth === 64)"
        ),
        "thumbnails",
    )
    assert page.text(f"[data-key='{keys[7]}'] .caption") == "Street number 7 under two tall trees"
    assert page.text(f"[data-key='{keys[FAILED_FOR_GOOD]}'] .badge.failed") == "seen"
    assert page.driver.title == "town · Semiocity"


def test_captions_and_everything_else_are_text(page: Page, keys: list[str]) -> None:
    page.open("?q=onerror")
    page.total("1 of 40 rows")
    assert page.text("#grid .caption") == ATTACK
    for row in (1, FAILED_FOR_GOOD):
        page.open(f"?key={keys[row]}&show=seen.text:100&show=seen.boxes:100&show=seen.rle:50")
        page.one(".said p" if row == 1 else "#tombstones")
        for details in page.all("#sample details"):
            page.run("arguments[0].open = true", details)
    assert ATTACK in page.text("#tombstones")
    page.open(f"?key={keys[1]}&show=seen.boxes:100")
    page.until(lambda: ATTACK in page.text(".boxes text"), "the label of a box")
    assert json.dumps(ATTACK)[1:-1] in page.text("#sample .panel")
    page.open("?" + "in.seen.mood=%3Cb%20onmouseover%3D%27window.hacked%3D1%27%3Ebusy%3C%2Fb%3E")
    assert "<b onmouseover" in page.text(".chips")
    assert page.run("return window.hacked") is None
    assert page.all("img[src='x'], [onmouseover], [onerror], script:not([src])") == []


def test_policy_forbids_what_is_not_ours(page: Page) -> None:
    page.open()
    refused = page.run(
        "const found = [];"
        "try { document.body.innerHTML = '<i>'; } catch (error) { found.push(error.name); }"
        "const script = document.createElement('script');"
        "try { script.src = 'app.js'; } catch (error) { found.push(error.name); }"
        "const attack = () => { document.body.setAttribute('onclick', 'window.hacked = 1'); document.body.click(); };"
        "try { attack(); } catch (error) { found.push(error.name); }"
        "document.body.setAttribute('style', 'position: fixed');"
        "found.push(String(window.hacked), getComputedStyle(document.body).position);"
        "return found"
    )
    assert refused == ["TypeError", "TypeError", "TypeError", "undefined", "static"]
    blocked = page.driver.execute_async_script(
        "const done = arguments[0];fetch('http://127.0.0.2:9/').then(() => done('reached'), () => done('refused'));"
    )
    assert blocked == "refused"
    page.driver.get_log("browser")  # the refusals are told there: this test wants them


def test_search_filters_and_sort_narrow_the_gallery(page: Page, keys: list[str]) -> None:
    page.open()
    page.one("#q").send_keys("river")
    page.total("7 of 40 rows")
    assert "q=river" in page.address
    page.click("[id='in-base.split-val']")
    page.until(lambda: "in.base.split=val" in page.address, "the split in the address")
    narrowed = page.until(lambda: len(page.keys()) < 7 and page.keys(), "fewer rows")
    page.click(".chip")
    page.until(lambda: len(page.keys()) == 10, "ten rows of the split val")
    assert set(narrowed) < set(page.keys())
    page.click(".side-head .quiet")
    page.total("40 rows")
    page.run("const s = document.getElementById('sort'); s.value = '-seen.score'; s.dispatchEvent(new Event('change'))")
    page.until(lambda: page.keys()[:2] == [keys[39], keys[38]], "sorted")
    page.run("const i = document.getElementById('min-seen.score'); i.value = 0.9; i.dispatchEvent(new Event('change'))")
    page.total("4 of 40 rows")
    page.driver.back()
    page.total("40 rows")


def test_expressions_narrow_the_gallery_and_mistakes_are_shown(page: Page, keys: list[str]) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open()
    page.one("#where").send_keys("seen.score >= 0.9", Keys.ENTER)
    page.until(lambda: page.keys() == keys[36:], "the last four")
    page.one("#where").clear()
    page.one("#where").send_keys("seen.scor >= 0.9", Keys.ENTER)
    page.until(lambda: "where: " in page.text(".wrong"), "what is wrong")
    page.driver.get_log("browser")  # the refusal is told there


def test_about_names_columns_and_classes(page: Page) -> None:
    page.open()
    page.click("#open-about")
    told = page.text("#about")
    assert "train 30, val 10" in told and "1 row failed for good, 1 for now" in told and "crossing" in told
    assert "null" not in told and "undefined" not in told


def test_classes_are_with_then_without_then_either(page: Page, town: Any) -> None:
    dataset = Dataset.open(town)
    car = [spec.name for spec in dataset.classes].index("car")
    view = dataset.view(["base.label"])
    cars = sum(bool((np.asarray(Image.open(io.BytesIO(view.read(i)["base.label"]))) == car).any()) for i in range(40))
    page.open()
    page.click(f"#class-{car}")
    page.total(f"{cars} of 40 rows")
    page.click(f"#class-{car}")
    page.total(f"{40 - cars} of 40 rows")
    page.click(f"#class-{car}")
    page.total("40 rows")


def test_dragging_over_a_histogram_chooses_a_range(page: Page) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page.open()
    chart = page.one("[data-name='seen.score'] .histogram")
    page.run("arguments[0].scrollIntoView({block: 'center'})", chart)
    width = chart.rect["width"]
    drag = ActionChains(page.driver).move_to_element_with_offset(chart, -width / 4, 0).click_and_hold()
    drag.move_by_offset(width / 2, 0).release().perform()
    page.until(lambda: "min.seen.score" in page.address and "max.seen.score" in page.address, "a range")
    page.until(lambda: 15 <= len(page.keys()) <= 22, "half of the rows")


def canvas(page: Page) -> np.ndarray:
    """The layer's pixels, uint8 [H, W, 4]."""
    width, height, values = page.until(
        lambda: page.run(
            "const c = document.querySelector('canvas.layer'); if (!c) return null;"
            "return [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]]"
        ),
        "a painted layer",
    )
    return np.array(values, np.uint8).reshape(height, width, 4)


def test_label_layer_has_the_classes_colours(page: Page, town: Any, keys: list[str]) -> None:
    dataset = Dataset.open(town)
    ids = np.asarray(Image.open(io.BytesIO(dataset.view(["base.label"]).read(12)["base.label"])))
    page.open(f"?key={keys[12]}&show=base.label:45")
    assert np.array_equal(canvas(page)[..., :3], np.array(dataset.palette)[ids])
    assert float(page.run("return getComputedStyle(document.querySelector('canvas.layer')).opacity")) == 0.45
    road = [spec.name for spec in dataset.classes].index("road")
    shown = page.text("[data-class='road'] .number")
    assert shown == f"{100 * (ids == road).mean():.1f} %"
    page.click("[data-class='road']")
    painted = canvas(page)
    assert not painted[ids == road].any() and painted[ids != road][:, 3].all()


def test_instance_and_mask_layers_are_exact(page: Page, town: Any, keys: list[str]) -> None:
    ids = np.asarray(Image.open(io.BytesIO(Dataset.open(town).view(["base.instance"]).read(12)["base.instance"])))
    page.open(f"?key={keys[12]}&show=base.instance:100")
    painted = canvas(page)
    assert np.array_equal(painted[..., 3] > 0, ids > 0)
    colour = number_colours(ids)
    # Outlines are white; everything else is the number's colour.
    flat = (painted != 255).any(axis=-1)
    assert flat.sum() > 20 and np.abs(painted[flat].astype(int) - colour[flat]).max() <= 1

    masks = two_masks()
    large, small = Masks((32, 64), masks["masks"]).arrays()
    page.open(f"?key={keys[12]}&show=seen.rle:100")
    painted = canvas(page)
    assert np.array_equal(painted[..., 3] > 0, large | small)
    regions = np.where(small, 2, np.where(large, 1, 0))
    flat = (painted != 255).any(axis=-1) & (regions > 0)
    assert np.abs(painted[flat].astype(int) - number_colours(regions)[flat]).max() <= 1
    assert "score 0.9" in page.text("#sample .scroll")


def test_opacity_and_layers_live_in_the_address(page: Page, keys: list[str]) -> None:
    page.open(f"?key={keys[3]}")
    page.click("[id='layer-base.label']")
    page.until(lambda: "show=base.label%3A60" in page.address, "the layer in the address")
    page.run(
        "const s = document.getElementById('opacity-base.label'); s.value = 25; s.dispatchEvent(new Event('input'))"
    )
    page.until(lambda: "show=base.label%3A25" in page.address, "its opacity in the address")
    page.until(lambda: page.run("return document.querySelector('canvas.layer').style.opacity") == "0.25", "its opacity")
    page.press("0")
    page.until(lambda: not page.all("canvas.layer"), "the image alone")
    page.press("0")
    page.until(lambda: page.all("canvas.layer"), "the layer again")
    page.driver.refresh()
    page.until(lambda: page.all("canvas.layer"), "the layer after reloading")


def test_keyboard_from_gallery_to_sample_and_back(page: Page, keys: list[str]) -> None:
    from selenium.webdriver.common.keys import Keys

    page.open("?in.base.split=val")
    val = page.keys()
    page.press(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT, Keys.ENTER)
    page.until(lambda: page.text("#key") == val[1], "the second sample")
    assert page.text("#position") == "2 of 10"
    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: page.text("#key") == val[2], "the next")
    page.press(Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    page.until(lambda: page.text("#key") == val[0], "the first")
    page.press(Keys.ARROW_LEFT)
    page.press(Keys.ESCAPE)
    page.until(lambda: page.run("return document.activeElement.dataset.key") == val[0], "its tile has the focus")
    page.press("/")
    page.until(lambda: page.run("return document.activeElement.id") == "q", "the search field")


def test_pages_of_a_gallery(page: Page, keys: list[str]) -> None:
    page.open("?tile=3")
    assert page.keys() == keys[:30]
    page.press("]")
    page.until(lambda: page.keys() == keys[30:], "the second page")
    assert "page=2" in page.address
    page.driver.back()
    page.until(lambda: page.keys() == keys[:30], "the first page again")


def test_copying_a_key(page: Page, keys: list[str]) -> None:
    page.driver.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.open(f"?key={keys[6]}")
    page.press("c")
    page.until(lambda: page.text("#toast") == f"Copied {keys[6]}", "the message")
    copied = page.driver.execute_async_script("navigator.clipboard.readText().then(arguments[0], arguments[0])")
    assert copied == keys[6]


def test_provenance_scalars_and_failures_of_a_sample(page: Page, keys: list[str]) -> None:
    page.open(f"?key={keys[14]}")
    told = page.text("#provenance")
    for word in ("look, version 2", "what is seen?", "0123456789abcdef", "aaaaaaaaaa", "device cpu"):
        assert word in told
    assert "0.35" in page.text("#scalars")
    assert "only in the full text" in page.text("#captions")
    page.open(f"?key={keys[FAILED_FOR_GOOD]}")
    assert "seen failed: cannot be read" in page.text("#tombstones")
    page.open("?key=0000000000-nobody")
    assert "no row has the key" in page.text("#sample .wrong")


def test_wrong_addresses_say_what_is_wrong(page: Page) -> None:
    page.open("?sort=base.widht")
    assert "did you mean base.width?" in page.text(".wrong")
    page.driver.get_log("browser")  # the refusal is told there
    page.click("#main button")
    page.until(lambda: page.all(".wrong"), "sorting is no filter: it stays")
    page.driver.get_log("browser")
