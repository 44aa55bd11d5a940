"""The page of `fer-pll app` fetches no address, whatever a client names and wherever."""

import json
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gradio_beside import served

# Gradio itself refuses addresses of this machine. Here it takes them for those of public hosts, one of them a host
# that it trusts, which shows in the two requests at the start.
APP = """
import asyncio, sys
import safehttpx
from gradio import processing_utils
import fer_pll_cli
async def public(host):
    return "127.0.0.1"
safehttpx.async_validate_url = public
processing_utils.async_transport = None
processing_utils.PUBLIC_HOSTNAME_WHITELIST = ["localhost"]
for host in ("127.0.0.1", "localhost"):
    asyncio.run(processing_utils.async_ssrf_protected_get(f"http://{host}:{sys.argv[1]}/start/{host}"))
raise SystemExit(fer_pll_cli.main(["app"]))
"""
REFUSED = "this page fetches no address"
START = ["/start/127.0.0.1", "/start/localhost"]


@pytest.fixture
def host() -> Iterator[tuple[int, list[str]]]:
    """The port of a server of images, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


class Client:
    """Asks a page what a browser would not ask it."""

    def __init__(self, page: str) -> None:
        self.page = page

    def ask(self, path: str, body: object = None, method: str | None = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.page + path, data, {"Content-Type": "application/json"}, method=method or ("POST" if data else "GET")
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def join(self, function: int, data: list[object], session: str) -> tuple[int, str]:
        """Through the queue, as the page itself asks."""
        return self.ask(
            "gradio_api/queue/join",
            {"fn_index": function, "data": data, "session_hash": session, "event_data": None, "trigger_id": None},
        )

    def upload(self) -> str:
        """The path on the server of a text that was uploaded."""
        form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="text.png"\r\n\r\ntext\r\n--x--\r\n'
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        with urllib.request.urlopen(urllib.request.Request(f"{self.page}gradio_api/upload", form, headers)) as answer:
            return json.load(answer)[0]

    def answer(self, session: str, data: list[object], more: Iterator[object]) -> bool:
        """Whether the answer of a session says that no address is fetched. Sends more where it waits for more."""
        with urllib.request.urlopen(f"{self.page}gradio_api/queue/data?session_hash={session}", timeout=60) as lines:
            for line in lines:
                event = json.loads(line[6:]) if line.startswith(b"data: ") else {"msg": ""}
                if event["msg"] == "process_streaming":  # as of a webcam
                    for end in ("", "/close"):
                        self.ask(f"gradio_api/stream/{event['event_id']}{end}", {"data": [next(more), *data[1:]]})
                if event["msg"] in ("process_completed", "close_stream"):
                    return REFUSED in json.dumps(event)
        return False


@pytest.mark.long
def test_no_address_is_fetched(host, tmp_path):
    port, asked = host
    names = iter(range(10_000))

    def references(upload: str) -> Iterator[dict[str, object]]:
        for path, url in (("127.0.0.1", ""), ("localhost", "localhost"), ("", "127.0.0.1")):
            name = f"{port}/{next(names)}.png"
            reference = {"path": f"http://{path}:{name}" if path else upload, "meta": {"_type": "gradio.FileData"}}
            yield reference | ({"url": f"http://{url}:{name}"} if url else {})

    with served("-c", APP, str(port), log=tmp_path / "log", cwd=tmp_path) as page:
        assert asked == START
        client = Client(page)
        upload = client.upload()
        config = json.loads(client.ask("config")[1])
        functions = [each for each in config["dependencies"] if each["backend_fn"] and each["inputs"]]
        assert {"photograph", "frame", "video", "why"} <= {each["api_name"] for each in functions}
        refused = 0
        for function in functions:
            data: list[object] = [None] * len(function["inputs"])
            for place in range(len(data)):
                for reference in references(upload):
                    data[place] = reference
                    session = f"session-{next(names)}"
                    status, said = client.join(function["id"], data, session)
                    assert status == 200, said
                    refused += client.answer(session, data, references(upload))
                    _, link = client.ask(f"gradio_api/deep_link?session_hash={session}")  # to what the session shows
                    client.ask(f"?deep_link={json.loads(link)}")
                data[place] = None
            for call in ("call", "call/v2", "run", "api"):
                data[0] = next(references(upload))
                _, said = client.ask(f"gradio_api/{call}/{function['api_name']}", {"data": data})
                if "event_id" in said:
                    event = json.loads(said)["event_id"]
                    refused += REFUSED in client.ask(f"gradio_api/call/{function['api_name']}/{event}")[1]
        assert refused > len(functions)  # it says so, and does not only fail
        for reference in references(upload):
            for route in ("file=", "file/", "proxy="):
                for method in ("GET", "HEAD"):
                    address = reference.get("url", reference["path"])
                    assert client.ask(f"gradio_api/{route}{address}", method=method)[0] >= 400
        assert client.ask("gradio_api/run-history/buckets")[0] == 404
        assert client.ask("")[0] == 200  # it still answers
    assert asked == START
