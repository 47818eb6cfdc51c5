"""``nexus-client serve`` as its clients meet it: OpenAI's and LangChain's own, a swap under load, a clean end."""

import base64
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import lmdb
import numpy as np
import pytest
from nexus_client.encoder_file import encoder_file
from nexus_client.index_build import building
from nexus_client.light import LightEncoder
from nexus_client.light_adapter import LightAdapter, pooled
from nexus_client.shelf import Shelf
from nexus_client.site import default_base
from nexus_common.layout import Layout

from tests.processes.harness import until
from tests.processes.serving import BIN, OUTSIDE, Serving
from tests.sites import make_site, put_model, some_vector, write_text

pytestmark = pytest.mark.processes
outside = pytest.mark.skipif(not OUTSIDE.exists(), reason="needs .venv-outside, which `make test` makes")
ANYWHERE = "0.0.0.0"  # noqa: S104
TEXTS = ["chest pain", "where is my card"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, graphs: Path) -> Iterator[Serving]:
    """A site with a federated model in use, a personal one with salience, and a model that is gone."""
    place = make_site(tmp_path_factory.mktemp("serve"), graphs)
    for number in range(1, 7):
        put_model(place, Layout(1), seed=number, kind="federated", number=number)
    put_model(place, Layout(0, 0))
    Shelf(place).choose("winter-6")
    with Serving(place) as made:
        until("there is an index", made.has_index)
        yield made


@pytest.fixture(scope="module")
def right(graphs: Path) -> np.ndarray:
    """What ``nexus`` must answer for TEXTS: version 6."""
    return embedded(graphs, LightAdapter(Layout(1), some_vector(Layout(1), 6)))


def embedded(graphs: Path, adapter: LightAdapter | None) -> np.ndarray:
    encoder = LightEncoder(encoder_file(default_base(), graphs, "int8"), default_base(), 1)
    x = np.stack([pooled(adapter, encoder.encode(ids, states=True)) for ids in encoder.pieces(TEXTS).ids])
    return x if adapter is None else adapter.project(x)


@outside
def test_openais_own_client_gets_vectors_models_and_errors(served: Serving, right: np.ndarray) -> None:
    script = f"""
import json, os, openai
client, found = openai.OpenAI(base_url=os.environ["URL"], api_key="none", max_retries=0), {{}}
answer = client.embeddings.create(model="nexus", input={TEXTS})
found["base64"] = [one.embedding for one in answer.data]
found["model"], found["usage"] = answer.model, answer.usage.model_dump()
answer = client.embeddings.create(model="nexus@6", input={TEXTS[0]!r}, encoding_format="float", dimensions=384)
found["float"] = answer.data[0].embedding
found["models"] = [one.id for one in client.models.list()]
for name, asked in {{"unknown": dict(model="gpt"), "gone": dict(model="nexus@winter-1"), "small": dict(dimensions=256),
                     "empty": dict(input=["x", ""]), "ids": dict(input=[[1, 2], [3]])}}.items():
    try:
        client.embeddings.create(**({{"model": "nexus", "input": "x"}} | asked))
    except openai.APIStatusError as problem:
        found[name] = [type(problem).__name__, problem.status_code, problem.code, problem.param, problem.message]
print(json.dumps(found))
"""
    found = json.loads(served.outside(script))
    np.testing.assert_allclose(found["base64"], right, atol=1e-6)
    np.testing.assert_allclose(found["float"], right[0], atol=1e-6)
    assert found["model"] == "nexus@winter-6"
    assert found["usage"] == {"prompt_tokens": 10, "total_tokens": 10, "cut_texts": 0}
    names = [f"nexus@winter-{number}" for number in (4, 5, 6)]
    assert found["models"][:5] == ["nexus", "nexus@base", *names]
    assert found["unknown"][:4] == ["NotFoundError", 404, "model_not_found", "model"]
    assert found["gone"][:4] == ["APIStatusError", 410, "model_gone", "model"]
    assert "embed your texts again" in found["gone"][4]
    assert found["small"][:2] == found["empty"][:2] == found["ids"][:2] == ["BadRequestError", 400]
    assert "check_embedding_ctx_length=False" in found["ids"][4]


@outside
def test_langchains_own_client_embeds_documents_and_questions(served: Serving, right: np.ndarray) -> None:
    script = f"""
import json, os
from langchain_openai import OpenAIEmbeddings
made = OpenAIEmbeddings(model="nexus", base_url=os.environ["URL"], api_key="none", check_embedding_ctx_length=False)
print(json.dumps([made.embed_documents({TEXTS}), made.embed_query({TEXTS[0]!r})]))
"""
    documents, query = json.loads(served.outside(script))
    np.testing.assert_allclose(documents, right, atol=1e-6)
    np.testing.assert_allclose(query, right[0], atol=1e-6)


def test_stored_base_vectors_are_mapped_to_a_model_that_does_not_pool_anew(
    served: Serving, right: np.ndarray, graphs: Path
) -> None:
    base = embedded(graphs, None)
    coded = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in base]
    for vectors in (base.tolist(), coded):
        done = served.http.post("/v1/adapt", json={"model": "nexus", "input": vectors})
        assert done.json()["model"] == "nexus@winter-6"
        np.testing.assert_allclose([one["embedding"] for one in done.json()["data"]], right, atol=1e-5)
    done = served.http.post("/v1/adapt", json={"model": personal(served), "input": coded})
    assert (done.status_code, done.json()["error"]["code"]) == (409, "needs_text")
    for wrong in ([[0.1] * 383], [["x"] * 384], ["!"], [3], [(2 * base[0]).tolist()], [[1e400] * 384], "x", [], [None]):
        body = json.dumps({"model": "nexus", "input": wrong}).encode()
        done = served.http.post("/v1/adapt", content=body)
        assert done.status_code == 400, wrong
        assert done.json()["error"]["param"] == "input"


def personal(served: Serving) -> str:
    """The whole name of the personal model, as clients ask for it."""
    names = [one["id"] for one in served.http.get("/v1/models").json()["data"]]
    return str(next(name for name in names if "personal" in name))


def test_a_kind_of_model_is_no_name_since_its_vectors_would_change_under_a_client(served: Serving) -> None:
    for route, given in (("embeddings", TEXTS[0]), ("adapt", [[1.0] + [0.0] * 383])):
        for kind, now in (("personal", personal(served)), ("federated", "nexus@winter-6")):
            done = served.http.post(f"/v1/{route}", json={"model": f"nexus@{kind}", "input": given})
            assert (done.status_code, done.json()["error"]["code"]) == (404, "model_not_found")
            assert f"it is {now} now: ask for that" in done.json()["error"]["message"]


def test_search_says_which_model_found_what_where(served: Serving) -> None:
    found = served.search("my chest hurts", 2)
    assert (found["model"], found["rows"], len(found["hits"])) == ("nexus@winter-6", 6, 2)
    best = found["hits"][0]
    assert (best["rank"], best["text"], best["file"], best["line"]) == (1, "advice on chest pain", "rows.jsonl", 1)
    for wrong in (
        {},
        {"q": ""},
        {"q": "x", "k": "0"},
        {"q": "x", "k": "101"},
        {"q": "x", "k": "²"},
        {"q": "x" * 10_001},
    ):
        done = served.http.get("/search", params=wrong)
        assert (done.status_code, done.json()["error"]["type"]) == (400, "invalid_request_error")


def test_what_is_asked_at_no_route_gets_404_with_those_that_there_are(served: Serving) -> None:
    done = served.http.get("/v2/embeddings")
    assert (done.status_code, done.json()["error"]["type"]) == (404, "invalid_request_error")
    routes = "/v1/embeddings, /v1/adapt, /v1/models, /search, /healthz, /metrics, /"
    assert done.json()["error"]["message"].endswith(f"there is {routes}")
    assert 'nexus_requests_total{route="other",status="404"}' in served.http.get("/metrics").text


def test_long_texts_are_cut_and_counted(served: Serving) -> None:
    usage = served.embed(["word " * 400, "short"])["usage"]
    assert (usage["prompt_tokens"], usage["cut_texts"]) == (256 + 3, 1)
    metrics = served.http.get("/metrics").text
    assert 'nexus_requests_total{route="/v1/embeddings",status="200"}' in metrics
    assert 'nexus_model_info{search="winter-6",served="winter-6"} 1.0' in metrics
    assert "nexus_index_rows 6.0" in metrics
    assert "word" not in metrics
    assert "torch" not in Path(f"/proc/{served.process.pid}/maps").read_text()


def test_a_swap_under_load_fails_no_request_and_mixes_nothing(tmp_path: Path, graphs: Path) -> None:
    place = make_site(tmp_path, graphs)
    shelf, first = Shelf(place), put_model(place, Layout(), seed=1)
    shelf.choose(first)
    with Serving(place) as served:
        until("there is an index", served.has_index)
        answers: list[tuple[str, bytes]] = []
        failures: list[str] = []
        names, over = [f"nexus@{first}"], threading.Event()

        def ask(route: str) -> None:
            with httpx.Client(base_url=served.url, trust_env=False, timeout=60) as http:
                while not over.is_set():
                    if route == "search":
                        done = http.get("/search", params={"q": "chest pain", "k": 1})
                    else:
                        asked = {"input": TEXTS[0], "model": names[-1], "encoding_format": "base64"}
                        done = http.post("/v1/embeddings", json=asked)
                    if done.status_code != 200:
                        failures.append(done.text)
                        continue
                    told = done.json()
                    what = told["hits"][0]["score"] if route == "search" else told["data"][0]["embedding"]
                    answers.append((f"{route} {told['model']}", str(what).encode()))

        threads = [threading.Thread(target=ask, args=(route,)) for route in ("search", "embed", "embed")]
        for thread in threads:
            thread.start()
        time.sleep(1)
        second = put_model(place, Layout(1), seed=2)
        write_text(place, [{"text": "advice on chest pain", "label": "x"}])  # and another index
        shelf.choose(second)
        until("search follows", lambda: any(name == f"search nexus@{second}" for name, _ in answers))
        names.append(f"nexus@{second}")
        time.sleep(1)
        over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert len(answers) > 200
        for route in ("search", "embed"):
            for name in (first, second):
                said = {what for asked, what in answers if asked == f"{route} nexus@{name}"}
                assert len(said) == 1, "one answer for each model, before and after"
        assert served.embed("x")["model"] == f"nexus@{first}", "a client's vectors change only when a person says so"
        shelf.pin(second)
        until("nexus changes", lambda: served.embed("x")["model"] == f"nexus@{second}")


def test_an_index_update_that_is_killed_leaves_the_old_index_answering(tmp_path: Path, graphs: Path) -> None:
    place = make_site(tmp_path, graphs)
    with Serving(place) as served:
        until("there is an index", served.has_index)
        write_text(place, [{"text": f"number {i} " + "and so on " * 15, "label": "x"} for i in range(400)])
        Shelf(place).pin("base")  # so that it looks at once
        until("an update begins", lambda: served.log.count("the index is updated") == 2)
        (pid,) = {pid for task in Path(f"/proc/{served.process.pid}/task").iterdir()
                  for pid in (task / "children").read_text().split()}  # fmt: skip
        (store,) = (place.index_folder / "vectors").iterdir()
        with lmdb.open(str(store), readonly=True) as vectors:
            until("a batch is kept", lambda: vectors.stat()["entries"] > 6)
        os.kill(int(pid), signal.SIGKILL)
        assert served.search("fever", 1)["rows"] == 6
        until("the death is noticed", lambda: "the index was not updated" in served.log)
        assert served.search("fever", 1)["hits"][0]["text"] == "advice on a child's fever"
        with building(place) as build:
            assert 0 < len(build.missing) < 400, "what was encoded is kept"
            build.run()
        until("the new index answers", lambda: served.search("number", 1)["rows"] == 400)


def test_it_ends_cleanly_on_sigterm_with_nothing_of_a_question_in_the_log(tmp_path: Path, graphs: Path) -> None:
    with Serving(make_site(tmp_path, graphs)) as served:
        until("there is an index", served.has_index)
        served.search("secretquestion")
        served.embed("secrettext")
        served.http.post("/v1/embeddings", content=b'{"input": "secretbroken')
        body = json.dumps({"model": "nexus", "input": ["secretlong " * 200] * 500}).encode()
        head = f"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        long = socket.create_connection(("127.0.0.1", served.port))
        long.sendall(head.encode() + body)  # and it is being answered when the end comes
        time.sleep(1)
        began = time.monotonic()
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(20) == 0
        assert time.monotonic() - began < 10
        long.close()
        assert "secret" not in served.log


def test_a_wider_address_needs_a_token_and_a_token_opens_it(tmp_path: Path, graphs: Path) -> None:
    place, token = make_site(tmp_path, graphs), "0123456789abcdef0123"
    file = tmp_path / "token"

    def refusal(*options: str) -> str:
        command = [str(BIN / "nexus-client"), "--home", str(tmp_path), "serve", "--port", "0", *options]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        return done.stderr

    assert "give --token-file FILE" in refusal("--host", ANYWHERE)
    assert "give --token-file FILE" in refusal("--name", "search.hospital.example")
    assert "leave it out" in refusal("--name", "search.hospital.example", "--host", ANYWHERE)
    assert "is no host name" in refusal("--name", "https://search.hospital.example")
    file.write_text(token)
    file.chmod(0o644)
    assert "chmod 600" in refusal("--token-file", str(file))
    file.chmod(0o600)
    with Serving(place, "--host", ANYWHERE, "--token-file", str(file), token=token) as served:
        until("there is an index", served.has_index)
        other = {"Host": "search.hospital.example"}
        assert served.http.get("/search?q=x", headers=other).status_code == 200
        for wrong in ("", "Bearer", "Bearer 0123456789abcdef012", token + "x"):
            for path in ("/search?q=x", "/metrics", "/v1/models"):
                done = served.http.get(path, headers={"Authorization": wrong})
                assert (done.status_code, done.json()["error"]["code"]) == (401, "invalid_api_key")
        assert "cannot listen on 127.0.0.1 port" in refusal("--port", str(served.port))
        for path in ("/healthz", "/"):
            assert served.http.get(path, headers={"Authorization": ""}).status_code == 200


def test_behind_a_proxy_it_answers_to_the_proxys_name_too(tmp_path: Path, graphs: Path) -> None:
    place, token, name = make_site(tmp_path, graphs), "0123456789abcdef0123", "search.hospital.example"
    file = tmp_path / "token"
    file.write_text(token)
    file.chmod(0o600)
    with Serving(place, "--name", name, "--token-file", str(file), token=token) as served:

        def status(host: str, origin: str | None = None) -> int:
            more = {} if origin is None else {"Origin": origin}
            return served.http.get("/v1/models", headers={"Host": host} | more).status_code

        assert [status(name), status(name, f"https://{name}"), status(f"{name}:443", f"https://{name}")] == [200] * 3
        assert [status("localhost"), status("127.0.0.1", "http://127.0.0.1")] == [200] * 2
        assert status(name, f"http://{name}") == 403, "a page in plain HTTP could be anybody's"
        assert [status(f"x.{name}"), status(name, f"https://{name}.evil.example"), status(name, "null")] == [403] * 3
        assert served.http.get("/v1/models", headers={"Host": name, "Authorization": ""}).status_code == 401
