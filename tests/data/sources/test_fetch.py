"""Fetching by address against a local server that is slow, lies, redirects, never ends, breaks off and asks to slow down:
nothing hangs, nothing leaves its limits, and the second run goes on where the first stopped."""

import contextlib
import gzip
import http.server
import io
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import requests
from PIL import Image
from test_exports import COUNT, counts, plain, shop, taken

from makelib.data.sources import fetch as fetching
from makelib.data.sources.fetch import Refused, Store, check, fetch, public
from makelib.data.sources.files.health import health_report


def jpeg(number):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, 9, 9)).save(buffer, "JPEG")
    return buffer.getvalue()


class Shop(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.server.asked.append(self.path)
        with contextlib.suppress(OSError):
            getattr(self, self.path.strip("/").split("/")[0].split("?")[0], self.photo)()

    def reply(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def photo(self):
        self.reply(200, jpeg(len(self.path)), Content_Type="text/html")  # it lies, and the photograph is good

    def lies(self):
        self.reply(200, b"<html>none here</html>", Content_Type="image/jpeg")

    def gone(self):
        self.reply(404)

    def loopback(self):
        self.reply(302, Location=f"http://127.0.0.2:{self.server.server_port}/photo/secret")

    def local(self):
        self.reply(302, Location="/photo/here")

    def around(self):
        self.reply(302, Location="/around")

    def file(self):
        self.reply(302, Location="file:///etc/passwd")

    def endless(self):
        self.send_response(200)
        self.end_headers()
        for _ in range(100_000):
            self.wfile.write(b"x" * 65536)

    def slow(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        for _ in range(100):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.1)

    def mute(self):
        time.sleep(4)

    def drips(self):  # a byte of its headers now and then: never late by the time between two
        for letter in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 2000:
            self.wfile.write(bytes([letter]))
            time.sleep(0.2)

    def headers(self):
        self.send_response(200)
        for number in range(2000):
            self.send_header(f"X-{number}", "x" * 60)
        self.end_headers()

    def packed(self):
        self.reply(200, gzip.compress(bytes(2**24)), Content_Encoding="gzip")

    def wait(self):
        self.server.released.wait(60)
        self.photo()

    def breaks(self):
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(jpeg(1))
        self.close_connection = True

    def busy(self):
        self.server.busy += 1
        if self.server.busy < 3:
            self.reply(429, Retry_After="1")
        else:
            self.photo()

    def always(self):
        self.reply(503, Retry_After="0")

    def together(self):
        with contextlib.suppress(threading.BrokenBarrierError):
            self.server.barrier.wait(20)  # all of them at once, or none has its photograph
            return self.photo()
        self.reply(404)


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shop) as server:
        server.asked, server.busy, server.daemon_threads, server.released = [], 0, True, threading.Event()
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(fetching, "LONGEST", 1.0)
    monkeypatch.setattr(fetching, "MOST_BYTES", 2**20)
    monkeypatch.setattr(fetching, "TIMEOUT", (2, 2))


def at(server, path):
    return f"http://127.0.0.1:{server.server_port}/{path}"


def run(server, tmp_path, *paths, allow=("127.0.0.1",)):
    store = Store(tmp_path / "store", tmp_path / "missing.jsonl")
    fetch({path: at(server, path) for path in paths}, store, allow)
    return store


@pytest.mark.parametrize(
    ("path", "reason", "for_good"),
    [
        ("lies", "is not an image", True),
        ("gone", "status 404", True),
        ("loopback", "is no https address", True),
        ("around", "redirects without end", True),
        ("file", "no address", True),
        ("endless", "larger than 1 MiB", True),
        ("slow", "Timeout", False),
        ("mute", "Timeout|ConnectionError", False),
        ("drips", "ConnectionError", False),
        ("headers", "ConnectionError", False),
        ("packed", "is not an image", True),
        ("breaks", "ConnectionError|Chunked", False),
        ("always", "asks to come back later", False),
    ],
)
def test_what_cannot_be_had_has_a_reason_and_nothing_hangs(server, tmp_path, path, reason, for_good):
    began = time.monotonic()
    store = run(server, tmp_path, path, "photo/1")
    assert time.monotonic() - began < 60
    assert re.search(reason, store.missing[path])
    assert not store.path(path).exists()
    assert store.path("photo/1").read_bytes() == jpeg(len("/photo/1"))
    assert "/photo/secret" not in server.asked
    asked = len(server.asked)
    run(server, tmp_path, path, "photo/1")
    assert (len(server.asked) == asked) == for_good  # what is final or here is not asked for again


@pytest.mark.parametrize(("hosts", "at_once"), [(("127.0.0.1", "localhost"), 8), (("127.0.0.1",), 4)])
def test_eight_at_a_time_and_four_of_one_host(server, tmp_path, monkeypatch, hosts, at_once):
    monkeypatch.setattr(fetching, "LONGEST", 60.0)
    monkeypatch.setattr(fetching, "TIMEOUT", (30, 30))
    server.barrier = threading.Barrier(at_once)
    store = Store(tmp_path / "store", tmp_path / "missing.jsonl")
    addresses = {
        f"{host}/{number}": f"http://{host}:{server.server_port}/together/{number}"
        for number in range(4)
        for host in hosts
    }
    fetch(addresses, store, hosts)
    assert all(store.path(key).is_file() for key in addresses)
    assert (fetching.CONNECTIONS, fetching.PER_HOST) == (8, 4)


def test_a_host_that_asks_to_slow_down_is_obeyed(server, tmp_path):
    began = time.monotonic()
    store = run(server, tmp_path, "busy/1")
    assert store.path("busy/1").is_file()
    assert time.monotonic() - began >= 2
    assert server.asked == ["/busy/1"] * 3


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("7", 7),
        ("100000", 60),
        ("soon", None),
        ("", None),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 60),
    ],
)
def test_retry_after_is_seconds_or_a_date(told, seconds):
    assert fetching._seconds(told) == ("" if seconds is None else str(float(seconds)))


KILLED = """
import sys, pathlib
from makelib.data.sources.fetch import Store, fetch
store = Store(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
fetch({path: sys.argv[3] + path for path in sys.argv[4:]}, store, ("127.0.0.1",))
"""


def test_a_fetch_that_was_killed_goes_on_where_it_was(server, tmp_path):
    done, left = [f"photo/{i}" for i in range(3)] + ["gone/1"], [f"wait/{i}" for i in range(2)]
    store = Store(tmp_path / "store", tmp_path / "missing.jsonl")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(store.folder), str(tmp_path / "missing.jsonl"), at(server, ""), *done, *left],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    try:
        until = time.monotonic() + 100
        while time.monotonic() < until:
            listed = tmp_path / "missing.jsonl"
            told = listed.is_file() and listed.read_text().endswith("\n")
            if told and len(server.asked) == 6 and all(store.path(key).is_file() for key in done[:3]):
                break
            time.sleep(0.05)
    finally:
        child.kill()
        child.wait()
    server.released.set()
    asked = len(server.asked)
    assert asked == 6
    again = run(server, tmp_path, *done, *left)
    assert sorted(server.asked[asked:]) == ["/wait/0", "/wait/1"]
    assert again.missing == {"gone/1": "status 404"}
    assert all(again.path(key).read_bytes() == jpeg(len(f"/{key}")) for key in (*done[:3], *left))


def test_a_redirect_within_what_is_allowed_is_followed(server, tmp_path):
    assert run(server, tmp_path, "local").path("local").is_file()


def test_private_hosts_are_for_those_who_name_them(server, tmp_path, monkeypatch):
    assert run(server, tmp_path, "photo/1", allow=()).missing == {"photo/1": "is no https address"}
    assert server.asked == []
    # a public name that resolves to a private address: the connection is looked at before anything is sent
    monkeypatch.setattr(fetching, "check", lambda *_: None)
    with requests.Session() as session:
        session.mount("http://", fetching._Guarded(()))
        with pytest.raises(Refused, match="private"):
            fetching.get(session, f"http://localhost:{server.server_port}/photo/1")
    assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "https://127.0.0.1/a", "https://localhost/a", "https://[::1]/a", "https://10.0.0.1/a", "https://192.168.1.1/", "http://a.example/a",
        "https://169.254.169.254/latest", "https://[::ffff:10.0.0.1]/", "ftp://a.example/a", "https:///a", "https://db.internal/", "https://[bad",
    ],
)  # fmt: skip
def test_addresses_that_are_refused(url):
    with pytest.raises(Refused):
        check(url)


def test_addresses_that_are_not():
    check("https://cdn.shop.example/a.jpg?v=1")
    check("http://LOCALHOST:8000/a", ["localhost"])
    assert public("93.184.216.34")


def test_an_import_fetches_and_goes_on_where_it_was(server, tmp_path):
    rows = [plain(i, image=at(server, f"gone/{i}" if i < 5 else f"photo/{'x' * i}")) for i in range(COUNT)]
    folder = shop(tmp_path / "raw", rows)
    assert counts(taken(folder, tmp_path / "out"))[1] == 0
    catalog = taken(folder, tmp_path / "out", fetch=True, allow_hosts=["127.0.0.1"])
    assert counts(catalog) == (COUNT, COUNT - 5, 0)
    assert "5 status 404" in health_report(catalog)
    asked = len(server.asked)
    assert counts(taken(folder, tmp_path / "again", fetch=True, allow_hosts=["127.0.0.1"])) == (COUNT, COUNT - 5, 0)
    assert len(server.asked) == asked
