"""The gallery answers those who know its address, from loopback's own names, with bytes that are the dataset's."""

import http.client
import json
import socket
import threading
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from gallery_town import ATTACK, FAILED_FOR_GOOD, FAILED_FOR_NOW

from semiocity.data.columns import Dataset
from semiocity.ui.browse.library import Library
from semiocity.ui.browse.server import STATIC, Gallery


def ask(
    gallery: Gallery, path: str, method: str = "GET", headers: dict[str, str] | None = None, secret: bool = True
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", gallery.server_port, timeout=20)
    try:
        connection.putrequest(method, (gallery.prefix if secret else "") + path, skip_host=True)
        for name, value in {"Host": f"127.0.0.1:{gallery.server_port}", **(headers or {})}.items():
            connection.putheader(name, value)
        connection.endheaders()
        reply = connection.getresponse()
        return reply, reply.read()
    finally:
        connection.close()


def get(gallery: Gallery, path: str) -> Any:
    reply, body = ask(gallery, path)
    assert reply.status == 200, body
    return json.loads(body)


def version(gallery: Gallery) -> str:
    return str(get(gallery, "/api/dataset")["dataset"]["version"])


# ---------------------------------------------------------------- who is let in


def test_nothing_outside_the_secret_prefix(gallery: Gallery) -> None:
    for path in ("/", "/style.css", "/api/dataset", "/x" * 20 + "/", gallery.prefix[:-1] + "/", "//", "/%2e%2e/"):
        reply, body = ask(gallery, path, secret=False)
        assert (reply.status, body) == (404, b"not found"), path
    assert len(gallery.prefix) >= 20


def test_listens_on_loopback_only(gallery: Gallery) -> None:
    assert gallery.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost:80:80", "", "@localhost"]
)
def test_foreign_host_names_are_refused(gallery: Gallery, host: str) -> None:
    reply, body = ask(gallery, "/api/dataset", headers={"Host": host})
    assert reply.status == 421
    assert b"town" not in body


@pytest.mark.parametrize("host", ["localhost:9999", "127.0.0.1", "[::1]:8080", "LOCALHOST"])
def test_the_far_end_of_a_tunnel_may_have_another_port(gallery: Gallery, host: str) -> None:
    assert ask(gallery, "/api/dataset", headers={"Host": host})[0].status == 200


def test_two_host_headers_are_refused(gallery: Gallery) -> None:
    with socket.create_connection(("127.0.0.1", gallery.server_port), timeout=20) as raw:
        raw.sendall(f"GET {gallery.prefix}/ HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 421")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
def test_only_get_and_head(gallery: Gallery, method: str) -> None:
    reply, _ = ask(gallery, "/", method)
    assert reply.status == 405
    assert reply.headers["Allow"] == "GET, HEAD"


def test_unknown_methods_and_noise_get_a_plain_error(gallery: Gallery) -> None:
    assert ask(gallery, "/", "BREW")[0].status == 501
    with socket.create_connection(("127.0.0.1", gallery.server_port), timeout=20) as raw:
        raw.sendall(b"\x16\x03\x01 <script> nonsense\r\n\r\n")
        answer = raw.recv(2000)
    assert b"<script>" not in answer


def test_a_body_does_not_pass_for_the_next_request(gallery: Gallery) -> None:
    smuggled = f"GET {gallery.prefix}/api/dataset HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with socket.create_connection(("127.0.0.1", gallery.server_port), timeout=20) as raw:
        head = f"GET {gallery.prefix}/icon.svg HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(smuggled)}\r\n\r\n"
        raw.sendall((head + smuggled).encode())
        answer = b""
        while chunk := raw.recv(65536):
            answer += chunk
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    "path",
    [
        "/../manifest.json",
        "/%2e%2e/manifest.json",
        "/..%2f..%2fmanifest.json",
        "/server.py",
        "/static/../server.py",
        "/file/VERSION/..%2f..%2fmanifest.json/0",
        "/file/VERSION/base.%2e%2e/0",
        "/file/VERSION/base.image/-1",
        "/file/VERSION/base.image/99",
        "/file/VERSION/base.image/0%00",
        "/thumb/VERSION/base.image/10000/0",
        "/thumb/VERSION/seen.text/160/0",
        "/ids/VERSION/nothing/0",
        "/api/row/..%2f..",
        "/api/nothing",
    ],
)
def test_no_path_leads_anywhere_else(gallery: Gallery, path: str) -> None:
    reply, body = ask(gallery, path.replace("VERSION", version(gallery)))
    assert reply.status in (400, 404), body
    assert b"recipe" not in body and b"import" not in body


def test_every_answer_carries_the_policy(gallery: Gallery) -> None:
    paths = [f"/{name}" for name in STATIC]
    paths += ["/api/dataset", "/api/rows", f"/file/{version(gallery)}/base.image/0", "/nothing", "/api/rows?sort=x"]
    for path in paths:
        reply, _ = ask(gallery, path)
        policy = reply.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy, path
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Referrer-Policy"] == "no-referrer"
        assert reply.headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_page_and_scripts_name_no_other_place() -> None:
    folder = Path(__file__).parents[2] / "semiocity" / "ui" / "browse"
    for name, _ in STATIC.values():
        text = (folder / name).read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text and "innerHTML" not in text and "eval(" not in text, name


# ---------------------------------------------------------------- what is given


def test_rows_come_in_pages(gallery: Gallery) -> None:
    everything = get(gallery, "/api/rows?size=500")
    assert (everything["total"], everything["pages"]) == (40, 1)
    keys = [row["key"] for row in everything["rows"]]
    paged = [get(gallery, f"/api/rows?size=15&page={page}") for page in (1, 2, 3)]
    assert [row["key"] for page in paged for row in page["rows"]] == keys
    assert get(gallery, "/api/rows?size=15&page=99")["page"] == 3, "beyond the end is the last page"
    failed = [row["failed"] for row in everything["rows"] if row["failed"]]
    assert failed == [{"seen": "permanent"}, {"seen": "retry"}]


def test_a_row_with_all_that_is_known(gallery: Gallery, town: Path) -> None:
    dataset = Dataset.open(town)
    key = dataset.reader("base", 1).keys[4]
    row = get(gallery, f"/api/row/{key}?in.base.split=train")
    assert (row["shard"], row["place"]) == (1, 4)
    seen = row["columns"]["seen"]
    assert seen["scalars"]["short"] == "Street number 14 ÉCOLE in the square"
    assert seen["fields"]["text"]["text"].endswith("only in the full text")
    assert seen["fields"]["boxes"]["value"][1]["label"] == "car"
    assert seen["sha256"] == dataset.shard_entries("seen")[1]["sha256"]
    assert seen["parents"]["base"]["sha256"] == dataset.shard_entries("base")[1]["sha256"]
    facts = get(gallery, "/api/dataset")["dataset"]["columns"]["seen"]
    assert facts["stage"] == {"name": "look", "version": 2, "args": {"prompt": "what is seen?"}}
    assert (facts["model"], facts["revision"]) == ("0123456789abcdef", "aaaaaaaaaa")


def test_neighbours_are_those_of_the_query(gallery: Gallery) -> None:
    keys = [row["key"] for row in get(gallery, "/api/rows?sort=-seen.score&in.base.split=val")["rows"]]
    for i, key in enumerate(keys):
        row = get(gallery, f"/api/row/{key}?sort=-seen.score&in.base.split=val")
        assert (row["position"], row["total"]) == (i, len(keys))
        assert (row["previous"] or {}).get("key") == (keys[i - 1] if i else None)
        assert (row["next"] or {}).get("key") == (keys[i + 1] if i + 1 < len(keys) else None)
    outside = get(gallery, f"/api/row/{keys[0]}?in.base.split=train")
    assert outside["position"] is outside["next"] is None


def test_failures_are_told_with_their_reason(gallery: Gallery) -> None:
    rows = get(gallery, "/api/rows?size=500")["rows"]
    for number, kind, reason in (
        (FAILED_FOR_GOOD, "permanent", f"cannot be read: {ATTACK}"),
        (FAILED_FOR_NOW, "retry", "out of memory"),
    ):
        seen = get(gallery, f"/api/row/{rows[number]['key']}")["columns"]["seen"]
        assert seen["tombstone"] == {"kind": kind, "reason": reason}
        assert seen["fields"] == {}
        assert ask(gallery, f"/file/{version(gallery)}/seen.text/{number}")[0].status == 404


def test_files_are_the_bytes_in_the_shards(gallery: Gallery, town: Path) -> None:
    view = Dataset.open(town).view(["base.image", "base.label", "base.meta"])
    for field, media in (("image", "image/png"), ("label", "image/png"), ("meta", "application/json")):
        reply, body = ask(gallery, f"/file/{version(gallery)}/base.{field}/21")
        assert body == view.read(21)[f"base.{field}"]
        assert reply.headers["Content-Type"] == media
        assert "immutable" in reply.headers["Cache-Control"]
    reply, _ = ask(gallery, f"/file/{version(gallery)}/base.label/21?save=1")
    assert reply.headers["Content-Disposition"] == f'attachment; filename="{view.key(21)}.label.png"'
    reply, body = ask(gallery, f"/file/{version(gallery)}/base.image/21", "HEAD")
    assert body == b"" and int(reply.headers["Content-Length"]) == len(view.read(21)["base.image"])


def test_addresses_of_another_state_are_gone(gallery: Gallery) -> None:
    assert ask(gallery, "/file/0000000000/base.image/0")[0].status == 410


def test_wrong_queries_get_the_sentence(gallery: Gallery) -> None:
    reply, body = ask(gallery, "/api/rows?in.base.spilt=val")
    assert reply.status == 400
    assert "did you mean base.split?" in json.loads(body)["error"]


def test_every_layer_has_thumbnails(gallery: Gallery) -> None:
    layers = get(gallery, "/api/dataset")["dataset"]["layers"]
    assert {"base.image", "base.label", "base.label+", "base.instance+", "seen.rle+"} <= {one["name"] for one in layers}
    for layer in layers:
        reply, _ = ask(gallery, f"/thumb/{version(gallery)}/{quote(layer['name'], safe='')}/160/0")
        assert reply.status == 200 and reply.headers["Content-Type"].startswith("image/"), layer


def test_many_at_once(gallery: Gallery) -> None:
    wrong: list[Any] = []

    def look(worker: int) -> None:
        for row in range(40):
            reply, body = ask(gallery, f"/thumb/{version(gallery)}/base.image/240/{(row * 7 + worker) % 40}")
            if reply.status != 200 or not body:
                wrong.append((reply.status, body))

    threads = [threading.Thread(target=look, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_progress_is_told_until_the_index_is_there(own_town: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    monkeypatch.setattr(Library, "_report", lambda self, done, shards: go_on.wait(20))
    library = Library(own_town)
    server = Gallery(library)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        state = get(server, "/api/dataset")
        assert state["building"]["shards"] == 4 and "dataset" not in state
        assert ask(server, "/api/rows")[0].status == 503
        go_on.set()
        library.wait()
        state = get(server, "/api/dataset")
        assert state["dataset"]["rows"] == 40 and "building" not in state
    finally:
        go_on.set()
        server.shutdown()
        server.server_close()
