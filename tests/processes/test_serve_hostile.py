"""What hostile, broken and slow clients send to ``serve``: each is answered or cut off, and the next is served."""

import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from nexus_client.guard import MOST_BODY_BYTES

from tests.processes.harness import until
from tests.processes.serving import Serving
from tests.sites import make_site

pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> Iterator[Serving]:
    with Serving(make_site(tmp_path_factory.mktemp("hostile"), graphs)) as made:
        until("there is an index", made.has_index)
        yield made
        assert made.process.poll() is None
        assert "Traceback" not in made.log, made.log


@pytest.fixture(autouse=True)
def still_serves(served: Serving) -> Iterator[None]:
    yield
    assert served.embed("still there")["data"][0]["index"] == 0


def raw(served: Serving, data: bytes, seconds: float = 30) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", served.port), seconds) as sock:
        sock.sendall(data)
        found = b""
        try:
            while part := sock.recv(65536):
                found += part
        except ConnectionResetError:
            pass
        return found


def head(length: int | str, *lines: str) -> bytes:
    lines = (
        "POST /v1/embeddings HTTP/1.1",
        "Host: localhost",
        f"Content-Length: {length}",
        "Connection: close",
        *lines,
    )
    return "\r\n".join([*lines, "", ""]).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"3", b'"x"', b"{}", b"{", b"\xff\xfe", b'{"model":"nexus"}', b'{"input":"x"}',
        b'{"model":3,"input":"x"}', b'{"model":"nexus","input":{}}', b'{"model":"nexus","input":null}',
        b'{"model":"nexus","input":[]}', b'{"model":"nexus","input":[null]}', b'{"model":"nexus","input":["x",3]}',
        b'{"model":"nexus","input":" "}', b'{"model":"nexus","input":"x","encoding_format":"hex"}',
        b'{"model":"nexus","input":"x","dimensions":"384"}', b'{"model":"nexus","input":"x","dimensions":383}',
        b'{"model":"nexus","input":"\\ud800"}', b"[" * 100_000, b'{"a":' * 100_000,
        b'{"model":"nexus","input":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
        b'{"model":"nexus","input":' + json.dumps(["x"] * 2049).encode() + b"}",
        b'{"model":"nexus","input":"' + b"x" * 100_001 + b'"}',
        b'{"model":"' + b"x" * 5000 + b'","input":"x"}',
    ],
    ids=lambda body: f"{body[:50]!r}... {len(body)}",
)  # fmt: skip
def test_what_is_no_request_gets_400_in_openais_form(served: Serving, body: bytes) -> None:
    done = served.http.post("/v1/embeddings", content=body)
    assert done.status_code == 400, done.text
    assert set(done.json()["error"]) == {"message", "type", "param", "code"}
    assert len(done.text) < 1000


@pytest.mark.parametrize(
    "model", ["", "nexus@", "nexus@../../etc/passwd", "nexus@\u0000", "nexus@99", "base", "nexus@alone"]
)
def test_a_name_that_is_no_model_gets_404(served: Serving, model: str) -> None:
    done = served.http.post("/v1/embeddings", json={"model": model, "input": "x"})
    assert (done.status_code, done.json()["error"]["code"]) == (404, "model_not_found")


def test_odd_text_is_embedded(served: Serving) -> None:
    odd = ["\u0000", "\u202e\u200b", "😀 " * 1000, "ạ̈" * 3000, "x " * 50_000, "<script>", "\ufffd", "字"]
    found = served.embed(odd)
    assert len(found["data"]) == len(odd)
    assert found["usage"]["cut_texts"] >= 2


def test_bodies_that_are_too_long_or_of_unknown_length_are_not_read(served: Serving) -> None:
    assert b" 413 " in raw(served, head(MOST_BODY_BYTES + 1) + b"x" * 1_000_000)
    assert b" 413 " in raw(served, head(10**15))
    assert b" 411 " in raw(served, head("", "Transfer-Encoding: chunked").replace(b"Content-Length: \r\n", b""))
    for wrong in (head("x"), head(-1), b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nHost: " + b"x" * 100_000):
        assert b" 400 " in raw(served, wrong)


def test_too_much_at_once_gets_429_and_memory_stays_bounded(served: Serving) -> None:
    def memory() -> int:
        status = Path(f"/proc/{served.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) // 1024

    before, found = memory(), list[bytes]()
    body = json.dumps({"model": "nexus", "input": ["[" * 2000] * 1900}).encode()
    assert 3_500_000 < len(body) < MOST_BODY_BYTES

    def send() -> None:
        with socket.create_connection(("127.0.0.1", served.port), 60) as sock:
            sock.settimeout(3)
            try:
                sock.sendall(head(len(body)) + body[:-1])  # the last byte does not come
                found.append(sock.recv(65536))
            except TimeoutError:
                found.append(b"waits")
            except ConnectionError:
                found.append(b"cut off")  # what still came after the answer
            together.wait(60)  # a body that is let in counts until its connection ends

    together = threading.Barrier(20)
    threads = [threading.Thread(target=send) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = sum(b" 429 " in one for one in found)
    assert found.count(b"waits") == 4, "four bodies of 4 MB are let in"
    assert told + found.count(b"cut off") == 16
    assert told > 8
    assert memory() - before < 150


def test_clients_that_are_slow_are_cut_off_and_others_served_meanwhile(served: Serving) -> None:
    began, ended = time.monotonic(), list[float]()

    def trickle(data: bytes) -> None:
        with socket.create_connection(("127.0.0.1", served.port), 60) as sock:
            try:
                for byte in data:
                    sock.sendall(bytes([byte]))
                    sock.settimeout(0.5)
                    try:
                        if not sock.recv(1000):
                            break
                    except TimeoutError:
                        continue
            except OSError:
                pass
            ended.append(time.monotonic() - began)

    slow = [b"GET /search?q=x HTTP/1.1\r\nHost: localhost\r\n" + b"x" * 200, b"\r\n" * 200, head(200) + b" " * 200]
    threads = [threading.Thread(target=trickle, args=(data,)) for data in slow for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        asked = time.monotonic()
        served.search("fever")
        assert time.monotonic() - asked < 5
        time.sleep(0.2)
    assert max(ended) < 60


def test_many_connections_are_refused_and_not_crashed_on(served: Serving) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    held = [socket.create_connection(("127.0.0.1", served.port), 30) for _ in range(300)]
    try:
        held[-1].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 503 " in held[-1].recv(1000)
    finally:
        for sock in held:
            sock.close()
    until("there is room again", lambda: served.http.get("/healthz").status_code == 200)


@pytest.mark.parametrize(
    "headers",
    [{"Host": "evil.example"}, {"Host": "localhost.evil.example"}, {"Origin": "http://evil.example"},
     {"Origin": "null"}, {"Origin": "https://localhost"}, {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil"}],
    ids=str,
)  # fmt: skip
def test_a_web_page_elsewhere_reaches_nothing(served: Serving, headers: dict[str, str]) -> None:
    for path in ("/search?q=x", "/", "/metrics"):
        done = served.http.get(path, headers=headers)
        assert (done.status_code, done.json()["error"]["code"]) == (403, "wrong_host")


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_picture_in_a_page_elsewhere_asks_nothing(served: Serving, site: str) -> None:
    done = served.http.get("/search?q=x", headers={"Sec-Fetch-Site": site})  # which comes without an Origin
    assert (done.status_code, done.json()["error"]["code"]) == (403, "wrong_host")
    assert served.http.get("/", headers={"Sec-Fetch-Site": site}).status_code == 200, "a link to the search page works"
    assert served.http.get("/search?q=x", headers={"Sec-Fetch-Site": "same-origin", "Host": "LocalHost"}).is_success


def test_word_pieces_of_long_texts_take_bounded_memory(served: Serving) -> None:
    def most() -> float:
        return int(Path(f"/proc/{served.process.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    before = most()
    found = served.embed(["a b c d e f g h " * 6000] * 40)
    assert (len(found["data"]), found["usage"]["cut_texts"]) == (40, 40)
    assert most() - before < 150


def test_a_client_that_leaves_gets_no_more_turns(served: Serving) -> None:
    body = json.dumps({"model": "nexus", "input": ["word " * 250] * 1500}).encode()
    with socket.create_connection(("127.0.0.1", served.port), 30) as sock:
        sock.sendall(head(len(body)) + body)
        time.sleep(1)
    began = time.monotonic()
    served.embed("short")
    assert time.monotonic() - began < 10
    until("it was given up", lambda: 'status="499"' in served.http.get("/metrics").text, 20)
