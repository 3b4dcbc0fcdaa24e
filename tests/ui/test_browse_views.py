"""Saved views in the gallery: picked on the page or by the command, narrowed by filters, refused when stale."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from gallery_town import add_column
from test_browser import Page

from semiocity.config import check
from semiocity.data.columns import Dataset
from semiocity.data.lease import Owner
from semiocity.data.takedown import carry_out, request
from semiocity.data.view_build import build, merge
from semiocity.data.views import ViewJob, plan_view
from semiocity.errors import UserError
from semiocity.ui.browse import query, serve
from semiocity.ui.browse.facts import dataset_facts
from semiocity.ui.browse.library import Library, Shelf
from semiocity.ui.browse.server import Gallery


def save(town: Path, name: str, **rule: Any) -> list[str]:
    """Build a view; the keys of its rows."""
    plan = plan_view(check({"dataset": str(town), "fields": ["base.image"], **rule}, ViewJob, name), name, name)
    assert build(plan, range(plan.shards))
    merge(plan)
    view = Dataset.open(town).saved_view(name)
    return [view.key(i) for i in range(len(view))]


@pytest.fixture
def saved(own_town: Path) -> dict[str, list[str]]:
    return {
        "dusk": save(own_town, "dusk", filter='time in ["dusk", "night"]'),
        "seen-sharp": save(own_town, "seen-sharp", fields=["base.image", "seen.short"], filter="seen.sharp"),
    }


@pytest.fixture
def shelf(own_town: Path, saved: dict[str, list[str]], tmp_path: Path) -> Shelf:
    return Library(own_town, cache=tmp_path / "index").wait()


def found(shelf: Shelf, **parameters: str) -> list[str]:
    wanted = query.parse({name.replace("_", "."): [value] for name, value in parameters.items()}, shelf.index)
    return [shelf.index.read(row, ["key"])["key"] for row in shelf.searcher.find(wanted).rows.tolist()]


def test_a_view_has_the_rows_that_it_has_everywhere(shelf: Shelf, saved: dict[str, list[str]]) -> None:
    assert found(shelf, view="dusk") == saved["dusk"] and 0 < len(saved["dusk"]) < 40
    assert found(shelf, view="seen-sharp", q="street") == saved["seen-sharp"]
    val = found(shelf, view="dusk", **{"in.base.split": "val"})
    assert val == [key for key in saved["dusk"] if key in found(shelf, **{"in.base.split": "val"})] != []
    listed = {view["name"]: (view["rows"], view["other"], view["error"]) for view in dataset_facts(shelf)["views"]}
    assert listed == {name: (len(keys), [], None) for name, keys in saved.items()}


def test_some_shards_of_a_dataset_show_their_part_of_a_view(
    own_town: Path, saved: dict[str, list[str]], tmp_path: Path
) -> None:
    part = Library(own_town, shards=(1, 3), cache=tmp_path / "part").wait()
    dataset = Dataset.open(own_town)
    keys = {key for shard in (1, 2) for key in dataset.reader("base", shard).keys}
    assert found(part, view="dusk") == [key for key in saved["dusk"] if key in keys] != []


def test_a_view_that_was_built_again_is_looked_at_again(own_town: Path, shelf: Shelf) -> None:
    assert len(found(shelf, view="dusk")) < 40
    every = save(own_town, "dusk")
    assert found(shelf, view="dusk") == every and len(every) == 40


@pytest.mark.parametrize("name", ["nosuch", "../town", "dusk@0123456789", ".", ""])
def test_what_is_no_view_is_refused(shelf: Shelf, name: str) -> None:
    if not name:
        assert len(found(shelf, view=name)) == 40
        return
    with pytest.raises(UserError, match="no view"):
        found(shelf, view=name)


def test_the_page_says_when_a_view_pins_another_column(
    own_town: Path, saved: dict[str, list[str]], tmp_path: Path
) -> None:
    column = Dataset.open(own_town).column("seen")
    add_column(own_town, "seen", column.fields, {}, lambda number, key: ("permanent", "another"), "b" * 10)
    shelf = Library(own_town, contents=False, cache=tmp_path / "later").wait()
    other = {view["name"]: view["other"] for view in dataset_facts(shelf)["views"]}
    assert other == {"dusk": [], "seen-sharp": ["seen"]}
    assert found(shelf, view="seen-sharp") == saved["seen-sharp"]


def test_a_stale_view_is_listed_with_what_mends_it(own_town: Path, saved: dict[str, list[str]], tmp_path: Path) -> None:
    carry_out(own_town, request(own_town, [saved["dusk"][0]], "asked for"), Owner.here())
    shelf = Library(own_town, contents=False, cache=tmp_path / "later").wait()
    (dusk, _) = dataset_facts(shelf)["views"]
    assert f"semiocity view {own_town}/views/dusk" in dusk["error"]
    with pytest.raises(UserError, match="builds it again"):
        found(shelf, view="dusk")


def test_the_command_begins_with_a_view(
    own_town: Path, saved: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(library: Library) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "show_progress", interrupted)
    assert serve.browse(own_town, 0, None, None, False, None, "seen-sharp") == 0
    assert "/?view=seen-sharp\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="no view nosuch; there are: dusk, seen-sharp"):
        serve.browse(own_town, 0, None, None, False, None, "nosuch")
    assert capsys.readouterr().out == "", "no page for what is not there"


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def page(chromium: Any, shelf: Shelf, own_town: Path, tmp_path: Path) -> Iterator[Page]:
    library = Library(own_town, cache=tmp_path / "index")
    library.wait()
    server = Gallery(library)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    chromium.get_log("browser")
    yield Page(chromium, server.url)
    wrong = [e["message"] for e in chromium.get_log("browser") if e["level"] == "SEVERE" and "404" not in e["message"]]
    server.shutdown()
    server.server_close()
    thread.join()
    assert wrong == []


@pytest.mark.browser
def test_a_view_is_picked_narrowed_and_let_go(page: Page, saved: dict[str, list[str]]) -> None:
    from selenium.webdriver.support.ui import Select

    page.open()
    page.total("40 rows")
    select = Select(page.one("#view"))
    assert [option.text for option in select.options] == ["all rows", "dusk", "seen-sharp"]
    select.select_by_visible_text("dusk")
    rows = len(saved["dusk"])
    page.total(f"{rows} of 40 rows")
    assert page.keys() == saved["dusk"] and page.address == "?view=dusk"
    assert "view dusk" in page.text(".chips")
    page.click(f"[data-key='{saved['dusk'][0]}'] a, [data-key='{saved['dusk'][0]}']")
    page.until(lambda: page.all("#sample .panel"), "the sample")
    from selenium.webdriver.common.keys import Keys

    page.press(Keys.ARROW_RIGHT)
    page.until(lambda: f"key={saved['dusk'][1]}" in page.address, "the next row of the view")
    page.press(Keys.ESCAPE)
    page.click(".chips .chip")
    page.total("40 rows")
    assert page.run("return document.getElementById('view').value") == ""


@pytest.mark.browser
def test_an_address_opens_a_view(page: Page, saved: dict[str, list[str]]) -> None:
    page.open("?view=seen-sharp")
    page.total(f"{len(saved['seen-sharp'])} of 40 rows")
    assert page.run("return document.getElementById('view').value") == "seen-sharp"
    page.open("?view=nosuch")
    assert "no view nosuch" in page.text(".wrong")
    page.driver.get_log("browser")  # the refusal is told there: this test wants it
