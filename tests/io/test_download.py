"""Downloads end, whatever the server does, and go nowhere but to http and https. All servers are real, on loopback."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from fer_pll.io.download import OVERALL, download, is_url
from fer_pll.io.errors import DataError
from fer_pll.io.images import ImageError, open_image

Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve) -> Iterator[tuple[str, list[bytes]]]:
    """A server that handles each connection with `serve`; its URL, and the requests that came."""
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def handle(connection: socket.socket) -> None:
            with connection:
                try:
                    requests.append(connection.recv(65536))
                    serve(connection)
                except OSError:
                    pass  # the client has gone

        def run() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=handle, args=(connection,), daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", requests
        listener.shutdown(socket.SHUT_RDWR)


def answering(body: bytes, status: str = "200 OK", *headers: str) -> Serve:
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers, "", ""])
    return lambda connection: connection.sendall(head.encode() + body)


def drip(start: bytes, pause: float) -> Serve:
    def serve(connection: socket.socket) -> None:
        connection.sendall(start)
        while True:
            connection.sendall(b"x")
            time.sleep(pause)

    return serve


def test_a_file():
    with server(answering(b"content")) as (url, requests):
        assert download(f"{url}/a.png?b=c", 100) == b"content"
    assert requests[0].startswith(b"GET /a.png?b=c HTTP/1.1\r\n")


def test_redirections_by_http():
    with (
        server(answering(b"content")) as (there, _),
        server(answering(b"", "302 Found", f"Location: {there}")) as (
            url,
            _,
        ),
    ):
        assert download(url, 100) == b"content"


@pytest.mark.parametrize("scheme", ["ftp", "file", "data", "gopher", "jar", "tcp"])
def test_no_redirection_to_anything_else(scheme):
    def listen(connection: socket.socket) -> None:
        connection.sendall(b"220 hello\r\n")

    with server(listen) as (there, requests):
        place = there.replace("http", scheme) if scheme != "data" else "data:text/plain,content"
        redirection = server(answering(b"", "302 Found", f"Location: {place}/etc/passwd"))
        with redirection as (url, _), pytest.raises(DataError, match=f"{url}: cannot be downloaded"):
            download(url, 100, timeout=2)
    assert requests == []


@pytest.mark.parametrize(
    "start",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: ",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
    ],
    ids=["body", "header", "chunk"],
)
def test_a_slow_server_is_given_up(start):
    """A letter each 0.02 seconds: every single wait is short enough."""
    with server(drip(b"HTTP/1.1 200 OK\r\n" + start, 0.02)) as (url, _):
        begin = time.monotonic()
        with pytest.raises(DataError, match="cannot be downloaded"):
            download(url, 2**20, timeout=0.1)
        assert time.monotonic() - begin < OVERALL * 0.1 + 5


def test_a_silent_server_is_given_up():
    with server(lambda connection: time.sleep(30)) as (url, _):
        begin = time.monotonic()
        with pytest.raises(DataError, match="cannot be downloaded"):
            download(url, 100, timeout=0.2)
        assert time.monotonic() - begin < 10


def test_too_many_bytes():
    def endless(connection: socket.socket) -> None:
        connection.sendall("\r\n".join(["HTTP/1.1 200 OK", "Connection: close", "", ""]).encode())
        while True:
            connection.sendall(bytes(65536))

    with server(endless) as (url, _), pytest.raises(DataError, match="more than 3 MiB"):
        download(url, 3 * 2**20, timeout=5)


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1",
        "http://127.0.0.1:99999/a.png",
        "http://127.0.0.1:1/a.png",
        "http://127.0.0.1:1/a\n.png",
        "http://a b/c.png",
        "http://",
        "http://127.0.0.1:1/" + "a" * 5000,
        "https://127.0.0.1:x/a.png",
    ],
)
def test_impossible_urls(url):
    with pytest.raises(DataError, match="cannot be downloaded"):
        download(url, 100, timeout=2)
    with pytest.raises(ImageError, match="cannot be downloaded"):
        open_image(url, timeout=2)


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "301 Moved"])
def test_an_error_of_the_server(status):
    with server(answering(b"<html>", status)) as (url, _), pytest.raises(DataError, match=status.split()[0]):
        download(url, 100, timeout=2)


def test_what_is_a_url():
    assert is_url("http://a/b.png") and is_url("HTTPS://a/b.png")
    assert not any(map(is_url, ("ftp://a/b", "file:///b", "http:a", "a.png", b"http://a", None, 5)))


def test_an_image():
    file = BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, "PNG")
    with server(answering(file.getvalue())) as (url, _):
        np.testing.assert_array_equal(np.asarray(open_image(f"{url}/x")).ravel(), np.arange(48))
