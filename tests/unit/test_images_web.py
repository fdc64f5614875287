"""Images named by their address: what a browser opens is fetched, what is guarded stays closed."""

import gzip
import os
import shutil
import socket
import ssl
import subprocess
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dq_cluster.images import web
from dq_cluster.images.address import WebAddress, climbs, web_address
from dq_cluster.images.config import ImageLimits
from dq_cluster.images.decode import Reason, RejectError
from dq_cluster.images.inventory import fetch
from dq_cluster.images.web import is_public, retry_after

IMAGE = bytes(range(256)) * 10
LIMITS = ImageLimits(max_bytes=5000, max_seconds=5)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_PAUSE", 0.02)


class Handler(BaseHTTPRequestHandler):
    """What the first part of the path asks for; the server counts what came."""

    server: "Server"

    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def say(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.server.seen[self.path] += 1
        kind, _, rest = self.path[1:].partition("/")
        getattr(self, f"do_{kind}", lambda _: self.say(200, IMAGE))(rest)

    def do_agent(self, _: str) -> None:
        known = self.headers.get("User-Agent", "").startswith("dq-cluster/")
        self.say(200, IMAGE) if known else self.say(403)

    def do_status(self, rest: str) -> None:
        self.say(int(rest), b"<html>")

    def do_busy(self, rest: str) -> None:
        status, after = rest.split("/")
        again = self.server.seen[self.path] > 1
        headers = {"Retry_After": unquote(after)} if after != "-" else {}
        self.say(200, IMAGE) if again else self.say(int(status), b"busy", **headers)

    def do_to(self, rest: str) -> None:
        self.say(302, b"there", Location=unquote(rest))

    def do_round(self, _: str) -> None:
        self.say(301, Location="/round/")

    def do_gzip(self, _: str) -> None:
        self.say(200, gzip.compress(IMAGE), Content_Encoding="gzip")

    def do_deflate(self, _: str) -> None:
        self.say(200, zlib.compress(IMAGE), Content_Encoding="deflate")

    def do_bomb(self, _: str) -> None:
        self.say(200, gzip.compress(bytes(1 << 24)), Content_Encoding="gzip")

    def do_halfzip(self, _: str) -> None:
        self.say(200, gzip.compress(IMAGE)[:-9], Content_Encoding="gzip")

    def do_nozip(self, _: str) -> None:
        self.say(200, b"not compressed", Content_Encoding="gzip")

    def do_brotli(self, _: str) -> None:
        self.say(200, b"x", Content_Encoding="br")

    def do_big(self, _: str) -> None:
        self.say(200, bytes(6000))

    def do_chunked(self, rest: str) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for start in range(0, len(IMAGE), 500):
            piece = IMAGE[start : start + 500]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        if rest == "cut":
            self.close_connection = True
        else:
            self.wfile.write(b"0\r\n\r\n")

    def do_short(self, _: str) -> None:
        self.say(200, IMAGE[:500], Content_Length="2560")
        self.close_connection = True

    def do_hangup(self, _: str) -> None:
        if self.server.seen[self.path] < 3:
            self.close_connection = True
        else:
            self.say(200, IMAGE)

    def do_drip(self, _: str) -> None:
        self._drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x")

    def do_driphead(self, _: str) -> None:
        self._drip(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n")

    def _drip(self, head: bytes, drop: bytes) -> None:
        self.close_connection = True
        try:
            self.wfile.write(head)
            while True:  # until the reader has had enough
                self.wfile.write(drop)
                time.sleep(0.02)
        except OSError:
            pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int = 0) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), Handler)
        self.seen: Counter[str] = Counter()
        self.connections = 0
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"


def serve(host: str, port: int = 0) -> Iterator[Server]:
    with Server(host, port) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    yield from serve("127.0.0.1")


@pytest.fixture
def server6() -> Iterator[Server]:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    yield from serve("::1")


def outcome(uri: str, *allow: str, limits: ImageLimits = LIMITS) -> bytes | Reason:
    try:
        return fetch(uri, allow, limits)
    except RejectError as error:
        return error.reason


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("img/ok.jpg", "/img/ok.jpg"),
        ("", "/"),
        ("img/a b.jpg", "/img/a%20b.jpg"),
        ("img/a%20b.jpg", "/img/a%20b.jpg"),
        ("img/%zz 100%.jpg", None),
        ("img/pe\u00f1oles.jpg", "/img/pe%C3%B1oles.jpg"),
        ("img/\u30a2.jpg?q=\u00fc y", "/img/%E3%82%A2.jpg?q=%C3%BC%20y"),
        ('img/a"b<c>.jpg', "/img/a%22b%3Cc%3E.jpg"),
        ("img/[1]|{2}^'.jpg", None),
        ("img\\a\\b.jpg", "/img/a/b.jpg"),
        ("img/ok.jpg#frag?x=1", "/img/ok.jpg"),
        ("img/ok.jpg?w=100&h=2", "/img/ok.jpg?w=100&h=2"),
        ("img//ok.jpg", "/img//ok.jpg"),
        ("img/ok.jpg \r\n", "/img/ok.jpg"),
        ("agent/", None),
        ("to/%2Fimg%2Fok.jpg", "/img/ok.jpg"),
        ("to/%2Fimg%2Fa b.jpg", "/img/a%20b.jpg"),
        ("busy/503/1", None),
        ("busy/429/0", None),
        ("busy/429/Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("busy/502/-", None),
        ("busy/504/soon", None),
        ("hangup/", None),
        ("gzip/", None),
        ("deflate/", None),
        ("chunked/", None),
    ],
)
def test_what_a_browser_opens(server: Server, path: str, asked: str | None) -> None:
    assert outcome(server.url + path, server.url) == IMAGE
    if asked is not None:
        assert server.seen[asked]


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("status/404", Reason.MISSING),
        ("status/410", Reason.MISSING),
        ("status/403", Reason.UNREACHABLE),
        ("status/500", Reason.UNREACHABLE),
        ("status/304", Reason.UNREACHABLE),
        ("big/", Reason.TOO_LARGE),
        ("bomb/", Reason.TOO_LARGE),
        ("short/", Reason.TRUNCATED),
        ("chunked/cut", Reason.TRUNCATED),
        ("halfzip/", Reason.TRUNCATED),
        ("nozip/", Reason.CORRUPT),
        ("brotli/", Reason.UNREACHABLE),
        ("busy/503/3600", Reason.UNREACHABLE),  # later than the time allows: not waited for
        ("round/", Reason.UNREACHABLE),
        ("to/http:%2F%2F169.254.169.254%2Flatest", Reason.FORBIDDEN),
        ("to/%2F%2Fevil.example%2Fimg", Reason.FORBIDDEN),
        ("to/file:%2F%2F%2Fetc%2Fpasswd", Reason.FORBIDDEN),
        ("to/..%2F..%2Fsecret", Reason.FORBIDDEN),
        ("to/http:%2F%2F[", Reason.FORBIDDEN),
        ("a/../b.jpg", Reason.FORBIDDEN),
        ("a/%2e%2E/b.jpg", Reason.FORBIDDEN),
        ("a/%252e%252e/b.jpg", Reason.FORBIDDEN),
        ("a\\..\\b.jpg", Reason.FORBIDDEN),
        ("a/..%2fb.jpg", Reason.FORBIDDEN),
        ("a\nb.jpg", Reason.FORBIDDEN),
        ("a\0b.jpg", Reason.FORBIDDEN),
        ("x" * 70_000, Reason.FORBIDDEN),
    ],
)
def test_what_is_rejected(server: Server, path: str, reason: Reason) -> None:
    begin = time.monotonic()
    limits = ImageLimits(max_bytes=5000, max_seconds=60)
    assert outcome(server.url + path, server.url, limits=limits) is reason
    assert time.monotonic() - begin < 30


@pytest.mark.parametrize("path", ["drip/", "driphead/"])
def test_what_never_ends_is_given_up(server: Server, path: str) -> None:
    limits = ImageLimits(max_seconds=0.5, max_bytes=1 << 30)
    assert outcome(server.url + path, server.url, limits=limits) is Reason.UNREACHABLE


def test_redirects_stay_below_what_is_allowed(server: Server) -> None:
    inside = f"{server.url}to/"
    assert outcome(f"{inside}%2Fimg%2Fok.jpg", inside) is Reason.FORBIDDEN
    assert not server.seen["/img/ok.jpg"]


def test_connections_are_kept(server: Server) -> None:
    paths = ["a.jpg", "status/404", "to/%2Fa.jpg", "busy/503/0", "gzip/", "chunked/"]
    for path in paths * 5:
        outcome(server.url + path, server.url)
    assert server.seen["/a.jpg"] == 10
    assert server.connections == 1


def test_many_threads_share_the_connections(server: Server) -> None:
    paths = [f"img/{n}" for n in range(300)] + ["busy/503/0", "status/404", "short/", "bomb/"] * 5
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda path: outcome(server.url + path, server.url), paths))
    assert Counter(map(str, found)).most_common(1) == [(str(IMAGE), 305)]
    # A connection is lost with an answer that is not read to its end, and with nothing else.
    assert server.connections <= 16 + 5 * 4 + 5


def test_a_closed_connection_is_opened_anew(server: Server) -> None:
    assert outcome(f"{server.url}a", server.url) == IMAGE
    assert outcome(f"{server.url}short/", server.url) is Reason.TRUNCATED
    assert outcome(f"{server.url}a", server.url) == IMAGE


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("HTTP://127.0.0.1:{port}/img/a.jpg", IMAGE),
        (" http://127.0.0.1:{port}/img/a.jpg", IMAGE),
        ("http://127.0.0.1:{port}/im\tg/a.jpg", Reason.FORBIDDEN),
        ("http://user:pw@127.0.0.1:{port}/img/a.jpg", Reason.FORBIDDEN),
        ("http://127.0.0.1:{port}@evil.example/img/a.jpg", Reason.FORBIDDEN),
        ("http://127.0.0.1:{port}\\@evil.example/img/a.jpg", Reason.FORBIDDEN),
        ("http://127.0.0.1:{port}.evil.example/img/", Reason.FORBIDDEN),
        ("https://127.0.0.1:{port}/img/a.jpg", Reason.FORBIDDEN),
        ("http://127.0.0.1/img/a.jpg", Reason.FORBIDDEN),
        ("http://localhost:{port}/img/a.jpg", Reason.FORBIDDEN),  # leads to this machine
        ("http://127.1:{port}/img/a.jpg", Reason.FORBIDDEN),
        ("http://2130706433:{port}/img/a.jpg", Reason.FORBIDDEN),
        ("http://127.0.0.1:99999/img/a.jpg", Reason.UNREACHABLE),
        ("http://127.0.0.1:0/img/a.jpg", Reason.FORBIDDEN),
        ("http://127.0.0.1:x/img/a.jpg", Reason.FORBIDDEN),
        ("http://[::1", Reason.FORBIDDEN),
        ("http://", Reason.FORBIDDEN),
        ("http:///img/a.jpg", Reason.FORBIDDEN),
        ("http://" + "a" * 70 + ".example/img/", Reason.UNREACHABLE),
        ("http://a..b.example/", Reason.FORBIDDEN),
        ("//127.0.0.1:{port}/img/a.jpg", Reason.FORBIDDEN),
        ("ftp://127.0.0.1/img/a.jpg", Reason.FORBIDDEN),
        ("data:image/jpeg;base64,xx", Reason.FORBIDDEN),
        ("javascript:1", Reason.FORBIDDEN),
        ("http://169.254.169.254/latest/meta-data/", Reason.FORBIDDEN),
        ("s3://somebody-elses/x.jpg", Reason.FORBIDDEN),
        ("file:///etc/passwd", Reason.FORBIDDEN),
        ("/etc/passwd", Reason.FORBIDDEN),
        ("/data/pictures/../../etc/passwd", Reason.FORBIDDEN),
        ("", Reason.FORBIDDEN),
        ("\0", Reason.FORBIDDEN),
    ],
)
def test_addresses_and_their_guard(server: Server, uri: str, found: bytes | Reason) -> None:
    port = server.server_port
    allow = (
        f"http://127.0.0.1:{port}/img/",
        f"http://localhost:{port}/",
        f"http://127.1:{port}/",
        f"http://2130706433:{port}/",
        "http://127.0.0.1:99999/",
        "http://" + "a" * 70 + ".example/",
        "/data/pictures/",
    )
    assert outcome(uri.format(port=port), *allow) == found


def test_ipv6_by_number(server6: Server) -> None:
    assert outcome(f"{server6.url}a.jpg", server6.url) == IMAGE
    assert outcome(f"{server6.url}to/%2Fa.jpg", server6.url) == IMAGE
    mapped = server6.url.replace("::1", "::ffff:127.0.0.1")
    assert outcome(f"{mapped}a.jpg", server6.url) is Reason.FORBIDDEN


def test_nobody_there() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{unused.getsockname()[1]}/"
        assert outcome(f"{uri}x", uri) is Reason.UNREACHABLE


def test_certificates_are_checked(
    tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    ask = "req -x509 -newkey rsa:2048 -nodes -subj /CN=test -addext subjectAltName=IP:127.0.0.1"
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run([openssl, *ask.split(), *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    url = server.url.replace("http://", "https://")
    monkeypatch.setattr(web, "_pool", web._pool.__wrapped__)  # which looks at the certificates
    assert outcome(f"{url}a.jpg", url) is Reason.UNREACHABLE
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
    assert outcome(f"{url}a.jpg", url) == IMAGE
    assert outcome(f"{url}to/%2Fa.jpg", url) == IMAGE
    assert outcome(f"{url}to/{quote(server.url, safe='')}a.jpg", url) is Reason.FORBIDDEN


class TestNames:
    """A name server that says what the test wants; everything else is real."""

    @pytest.fixture
    def names(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
        known: dict[str, list[str]] = {}
        monkeypatch.setattr(web, "_pool", web._pool.__wrapped__)  # no kept connection

        look_up_really = socket.getaddrinfo

        def look_up(
            host: str, port: int, *args: int, **kwargs: int
        ) -> Sequence[tuple[object, ...]]:
            if host[0].isdigit() or ":" in host:
                return look_up_really(host, port, *args, **kwargs)
            if host not in known:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(0, 0, 0, "", (number, port)) for number in known[host]]

        monkeypatch.setattr(web.socket, "getaddrinfo", look_up)
        return known

    def test_every_address_of_a_host_is_tried(
        self, names: dict[str, list[str]], server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(web, "is_public", lambda number: True)
        url = f"http://pictures.example:{server.server_port}/"
        names["pictures.example"] = ["::1", "127.0.0.2", "127.0.0.1"]
        assert outcome(f"{url}a.jpg", url) == IMAGE

    def test_a_name_of_another_alphabet(
        self, names: dict[str, list[str]], server: Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(web, "is_public", lambda number: True)
        names["xn--bcher-kva.example"] = ["127.0.0.1"]
        url = f"http://B\u00fccher.example:{server.server_port}/"
        assert outcome(f"{url}a.jpg", url) == IMAGE
        assert outcome(f"http://xn--bcher-kva.example:{server.server_port}/a.jpg", url) == IMAGE

    @pytest.mark.parametrize(
        "number", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "fe80::1%1"]
    )
    def test_a_private_address_among_public_ones(
        self, names: dict[str, list[str]], number: str
    ) -> None:
        names["pictures.example"] = ["93.184.216.34", number]
        url = "http://pictures.example/"
        assert outcome(f"{url}a.jpg", url) is Reason.FORBIDDEN

    def test_an_unknown_name(self, names: dict[str, list[str]]) -> None:
        assert outcome("http://no.example/x", "http://no.example/") is Reason.UNREACHABLE


@pytest.mark.parametrize(
    ("number", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("::ffff:93.184.216.34", True),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("0.0.0.0", False),
        ("100.64.0.1", False),
        ("224.0.0.1", False),
        ("ff02::1", False),
        ("::", False),
    ],
)
def test_public_addresses(number: str, public: bool) -> None:
    assert is_public(number) is public


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        (" 120 ", 120),
        ("Mon, 02 Mar 2026 10:00:30 GMT", 30),
        ("Mon, 02 Mar 2026 12:00:30 +0200", 30),
        ("Mon, 02 Mar 2026 09:00:00 GMT", 0),
        ("Mon, 99 Mar 2026 09:00:00 GMT", None),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("\u0661", None),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after(value, datetime(2026, 3, 2, 10, tzinfo=UTC)) == seconds


@given(st.text(max_size=40))
def test_addresses_are_read_once_and_for_all(text: str) -> None:
    """Reading what was read changes nothing, and nothing that was read climbs or raises."""
    try:
        address = web_address(f"http://h.example/{text}")
    except RejectError:
        return
    assert isinstance(address, WebAddress)
    assert (address.host, address.port) == ("h.example", 80)
    assert address.target.isascii()
    assert not climbs(address.target.partition("?")[0])
    assert web_address(f"http://h.example{address.target}") == address


class TestStorage:
    """Rows that name files."""

    def test_only_whole_paths_to_files(self, tmp_path: Path) -> None:
        folder = tmp_path / "pictures"
        folder.mkdir()
        (folder / "1.jpg").write_bytes(IMAGE)
        (tmp_path / "secret").write_bytes(b"secret")
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to(folder / "loop")
        allow = (f"{folder}/", f"file://{folder}/", "pictures/", "file://pictures/", "~/")
        expected = {
            f"{folder}/1.jpg": IMAGE,
            f"file://{folder}/1.jpg": IMAGE,
            f"{folder}/2.jpg": Reason.MISSING,
            f"{folder}/{'x' * 300}": Reason.MISSING,
            f"{folder}/1.jpg/x": Reason.MISSING,
            f"{folder}/loop": Reason.MISSING,
            f"{folder}/a\0b": Reason.MISSING,
            f"{folder}/pipe": Reason.FORBIDDEN,
            f"{folder}/": Reason.FORBIDDEN,
            f"{folder}": Reason.FORBIDDEN,
            f"{folder}/../secret": Reason.FORBIDDEN,
            f"{folder}/x?/../../secret": Reason.FORBIDDEN,
            f"{folder}/x#/../../secret": Reason.FORBIDDEN,
            "pictures/1.jpg": Reason.FORBIDDEN,
            "file://pictures/1.jpg": Reason.FORBIDDEN,
            "~/1.jpg": Reason.FORBIDDEN,
        }
        assert {uri: outcome(uri, *allow) for uri in expected} == expected
