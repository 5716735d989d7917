"""Photographs by address: few at a time, politely, within limits, and never from inside the network unless a host is named.

What is fetched lies in files of its own, each whole or absent, with a list of what cannot be had for good; so a fetch that was
killed goes on where it was. Folders (`--fetch`) and public sets (`hub`) fetch by this code.
"""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import io
import ipaddress
import json
import socket
import threading
import time
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests
import urllib3
from PIL import Image

from makelib.runtime import atomic_file, progress

MOST_BYTES = 32 * 2**20
#: so many requests at a time, and of one host
CONNECTIONS, PER_HOST = 8, 4
#: seconds to connect and between bytes, seconds in all, and answers that mean "later"
TIMEOUT, LONGEST, LATER = (5, 15), 60.0, (429, 500, 502, 503, 504)
#: how often a host that says "later" is asked again, and the longest that one is waited for, seconds
AGAIN, LONGEST_WAIT = 3, 60.0
#: redirects that are followed, each checked as the first address was
REDIRECTS = 5
#: after so many failures in a row without an answer a host is down, and its other images are not asked for
PATIENCE = 20
USER_AGENT = "makelib (research on product search)"
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")


class Store:
    """Fetched photographs in a folder: a file each, and a line in `missing.jsonl` for each that cannot be had for good."""

    def __init__(self, folder: Path, listed: Path) -> None:
        self.folder, self._list, self._lock = folder, listed, threading.Lock()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.missing: dict[str, str] = {}
        for line in listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else ():
            with contextlib.suppress(ValueError):  # a line that was cut off
                self.missing.update(json.loads(line))

    def path(self, key: str) -> Path:
        return self.folder / hashlib.sha256(key.encode()).hexdigest()[:24]

    def lacks(self, key: str) -> bool:
        return key not in self.missing and not self.path(key).is_file()

    def keep(self, key: str, data: bytes) -> None:
        with atomic_file(self.path(key)) as draft:
            draft.write_bytes(data)

    def miss(self, key: str, reason: str, *, for_good: bool = True) -> None:
        with self._lock:
            self.missing[key] = reason
            if for_good:
                with open(self._list, "a", encoding="utf-8") as lines:
                    lines.write(json.dumps({key: reason}) + "\n")


class Refused(Exception):
    """An answer that asking again would not change."""


class Later(Exception):
    """The host asks to come back in so many seconds."""


def fetch(addresses: Mapping[str, str], store: Store, allow: Sequence[str] = ()) -> None:
    """Fetch what the store lacks of `addresses` (key -> address); a host that says "later" is obeyed, one that never answers
    is left alone. Only https, and only public hosts, but for those in `allow`."""
    wanted = [pair for pair in addresses.items() if store.lacks(pair[0])]
    silent: Counter[str] = Counter()  # host -> failures in a row without an answer
    slots = defaultdict(lambda: threading.BoundedSemaphore(PER_HOST))
    pause: dict[str, float] = {}  # host -> when it may be asked again
    with requests.Session() as session, ThreadPoolExecutor(CONNECTIONS) as pool:
        session.headers.update({"User-Agent": USER_AGENT, "Accept": "image/*", "Accept-Encoding": "identity"})
        for scheme in ("http://", "https://"):
            session.mount(scheme, _Guarded(tuple(map(str.casefold, allow))))

        def one(pair: tuple[str, str]) -> None:
            key, url = pair
            host = _host(url)
            with slots[host]:
                for attempt in range(AGAIN + 1):
                    if silent[host] >= PATIENCE:
                        return store.miss(key, f"{host} does not answer", for_good=False)
                    time.sleep(max(0.0, pause.get(host, 0.0) - time.monotonic()))
                    try:
                        store.keep(key, get(session, url, allow))
                    except Later as later:
                        pause[host] = time.monotonic() + float(str(later) or 2**attempt)
                        continue
                    except Refused as error:
                        store.miss(key, str(error))
                    except requests.RequestException as error:
                        silent[host] += 1
                        return store.miss(key, type(error).__name__, for_good=False)
                    silent[host] = 0
                    return None
                return store.miss(key, f"{host} asks to come back later", for_good=False)

        for _ in progress(pool.map(one, wanted), description="fetch", total=len(wanted), unit="img"):
            pass


def get(session: requests.Session, url: str, allow: Sequence[str] = ()) -> bytes:
    """The photograph at an address, redirects followed. Raises `Refused`, `Later`, `requests.RequestException`."""
    latest = time.monotonic() + LONGEST
    for _ in range(REDIRECTS + 1):
        check(url, allow)
        if time.monotonic() > latest:
            raise requests.Timeout(f"longer than {LONGEST:.0f} s")
        try:
            with session.get(url, timeout=TIMEOUT, stream=True, allow_redirects=False) as answer:
                if answer.is_redirect:
                    url = urllib.parse.urljoin(url, answer.headers["Location"])
                    continue
                if answer.status_code in LATER:
                    raise Later(_seconds(answer.headers.get("Retry-After", "")))
                if answer.status_code != 200:
                    raise Refused(f"status {answer.status_code}")
                return _body(answer, latest)
        except (requests.exceptions.InvalidURL, requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema):
            raise Refused("no address") from None
        except (requests.ConnectionError, urllib3.exceptions.HTTPError) as error:
            if _Private.__name__ in repr(error):
                raise Refused("leads to a private address") from None
            raise requests.ConnectionError(str(error)) from None
    raise Refused("redirects without end")


def _body(answer: requests.Response, latest: float) -> bytes:
    data = bytearray()
    while chunk := answer.raw.read1(
        2**16
    ):  # what is there: a whole portion of a slow answer would be waited for without end
        data += chunk
        if len(data) > MOST_BYTES:
            raise Refused(f"larger than {MOST_BYTES >> 20} MiB")
        if time.monotonic() > latest:
            raise requests.Timeout(f"longer than {LONGEST:.0f} s")
    told = answer.headers.get("Content-Length", "")
    if told.isdecimal() and len(data) < int(told):
        raise requests.ConnectionError("the answer broke off")
    try:  # the type by content: servers say what they like
        known = Image.open(io.BytesIO(data)).format in FORMATS
    except Exception:
        known = False
    if not known:
        raise Refused("is not an image")
    return bytes(data)


def _seconds(told: str) -> str:
    """`Retry-After`, seconds or a date, as seconds, at most `LONGEST_WAIT`; "" where it says nothing that can be read."""
    if not told.isdecimal():
        try:
            told = str(max(0.0, email.utils.parsedate_to_datetime(told).timestamp() - time.time()))
        except (TypeError, ValueError, OverflowError):
            return ""
    return str(min(float(told), LONGEST_WAIT))


def _host(url: str) -> str:
    with contextlib.suppress(ValueError):
        return (urllib.parse.urlsplit(url).hostname or "").casefold()
    return ""


def check(url: str, allow: Sequence[str] = ()) -> None:
    """Raise `Refused` for what is no https address of a public host, unless the host is in `allow`."""
    host = _host(url)
    scheme = url.split(":", 1)[0].casefold()
    if not host or scheme not in ("http", "https"):
        raise Refused("no address")
    if host in map(str.casefold, allow):
        return
    if scheme != "https":
        raise Refused("is no https address")
    with contextlib.suppress(ValueError):
        if not public(host):
            raise Refused("leads to a private address")
    if host == "localhost" or host.endswith((".localhost", ".local", ".internal")):
        raise Refused("leads to a private address")


def public(address: str) -> bool:
    """Whether an IP address is of the public internet. Raises `ValueError` for what is none."""
    found = ipaddress.ip_address(address.split("%")[0])
    found = getattr(found, "ipv4_mapped", None) or found
    return found.is_global and not found.is_multicast


class _Private(urllib3.exceptions.HTTPError):
    """A name that resolves to a private address."""


@contextlib.contextmanager
def _in_time(connection: Any) -> Iterator[None]:
    """Breaks a connection off that takes longer than `LONGEST`: a host that sends a byte of its handshake or headers now and then is
    never late by the time between bytes."""

    def break_off() -> None:
        with contextlib.suppress(AttributeError, OSError):
            connection.sock.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(LONGEST, break_off)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Guarded(requests.adapters.HTTPAdapter):
    """Looks at the address that was connected to, before anything is sent: a name may resolve to anything, at any time."""

    def __init__(self, allow: tuple[str, ...]) -> None:
        self._allow = allow
        super().__init__(pool_maxsize=CONNECTIONS, max_retries=0)

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)
        allow = self._allow

        def guarded(base: type) -> type:
            class Connection(base):
                def connect(self) -> None:
                    with _in_time(self):
                        super().connect()

                def getresponse(self) -> Any:
                    with _in_time(self):
                        return super().getresponse()

                def _new_conn(self) -> socket.socket:
                    made = super()._new_conn()
                    if self.host.strip("[]").casefold() not in allow and not public(made.getpeername()[0]):
                        made.close()
                        raise _Private(_Private.__name__)
                    return made

            return Connection

        pools = {}
        for scheme, pool in self.poolmanager.pool_classes_by_scheme.items():
            kind = guarded(pool.ConnectionCls)  # type: ignore[attr-defined]
            pools[scheme] = type(pool.__name__, (pool,), {"ConnectionCls": kind})
        self.poolmanager.pool_classes_by_scheme = pools
