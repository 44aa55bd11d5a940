"""Downloads of single files, bounded in bytes and in time, by http and https only."""

import http.client
import time
import urllib.error
import urllib.request
from queue import Empty, SimpleQueue
from threading import Thread

from .errors import DataError

OVERALL = 20
"""A whole download may take so many times as long as one answer of the server."""

_BLOCK = 2**16


def is_url(source: object) -> bool:
    """Whether this is text that `download` takes."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def download(url: str, limit: int, timeout: float | None = 30) -> bytes:
    """The file at a URL.

    Redirections are followed to http and https only.

    Args:
        url: begins with `http://` or `https://`.
        limit: the most bytes.
        timeout: seconds to wait for each answer of the server. All together takes at most `OVERALL` times as long.

    Raises:
        DataError: the file cannot be had, is too large, or takes too long; the message names the URL.
    """
    name = url if len(url) < 100 else url[:80] + "..."
    deadline = None if timeout is None else time.monotonic() + OVERALL * timeout
    answers: SimpleQueue[bytes | Exception] = SimpleQueue()
    # In a thread, because a server can send a header letter by letter: each answer is in time, all together never end.
    Thread(target=_fetch, args=(url, limit, timeout, deadline, answers), daemon=True).start()
    try:
        answer = answers.get(timeout=None if timeout is None else OVERALL * timeout + 1)
    except Empty:
        answer = TimeoutError("the server is too slow")
    if isinstance(answer, Exception):
        raise DataError(f"{name}: cannot be downloaded ({answer or type(answer).__name__})") from answer
    if len(answer) > limit:
        raise DataError(f"{name}: more than {limit // 2**20} MiB; download it yourself and give its path")
    return answer


def _fetch(
    url: str, limit: int, timeout: float | None, deadline: float | None, answers: "SimpleQueue[bytes | Exception]"
) -> None:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "fer-pll"})
        content = bytearray()
        with _opener().open(request, timeout=timeout) as stream:
            while len(content) <= limit and (block := stream.read1(_BLOCK)):
                content += block
                if deadline is not None and time.monotonic() > deadline:
                    raise TimeoutError("the server is too slow")
        answers.put(bytes(content))
    except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
        answers.put(error)
    except BaseException as error:
        answers.put(RuntimeError(str(error)))
        raise


def _opener() -> urllib.request.OpenerDirector:
    """As urllib's own, without its handlers for ftp, file and data, which a redirection could ask for."""
    opener = urllib.request.OpenerDirector()
    proxies = {scheme: proxy for scheme, proxy in urllib.request.getproxies().items() if scheme in ("http", "https")}
    for handler in (
        urllib.request.ProxyHandler(proxies),
        urllib.request.UnknownHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener
