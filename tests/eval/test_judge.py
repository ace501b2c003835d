"""The judge's client against a server of this machine that speaks the protocol."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.eval.judge import JudgeError, OpenAIJudge, Overheard, each, judge_of, open_judge, refusal
from internvl_chat.eval.task import Answered, NoScore
from tests.eval.judges import FakeJudge

pytest.importorskip("openai")
KEY = "sk-secret-4711"


def completion(text: str | None) -> str:
    message = {"role": "assistant", "content": text}
    return json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "finish_reason": "stop", "message": message}]})  # fmt: skip


class Server(ThreadingHTTPServer):
    """``plan``: (status, body) of each request in turn, the last for all later ones; ``seen``: what was asked.

    ``most``: requests that were there at the same time.
    """

    daemon_threads = True

    def __init__(self, plan: list[tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.seen, self.keys, self.kind, self.wait = plan, [], [], "application/json", 0.0
        self.lock = threading.Lock()
        self.together = self.most = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Any

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.seen.append(body)
            self.server.keys.append(self.headers["Authorization"])
            status, text = self.server.plan[min(len(self.server.seen), len(self.server.plan)) - 1]
            self.server.together += 1
            self.server.most = max(self.server.most, self.server.together)
        if self.server.wait:
            time.sleep(self.server.wait)
        with self.server.lock:
            self.server.together -= 1
        content = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", self.server.kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers: list[Server] = []

    def start(*plan: tuple[int, str]) -> Server:
        server = Server(list(plan))
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def judge(server: Server, cache: Path, **settings: Any) -> OpenAIJudge:
    return OpenAIJudge("m", server.address, KEY, cache=cache, **{"pause": 0.01, **settings})


ERROR = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}", "type": "x", "code": "y"}})


def test_a_reply_and_what_was_asked(serve: Any, tmp_path: Path) -> None:
    server = serve((200, completion("8 7\nwhy")))
    client = judge(server, tmp_path / "deep/cache.jsonl")
    assert client.ask("Q", system="S", temperature=0.2, max_tokens=99) == "8 7\nwhy"
    (request,) = server.seen
    assert request["messages"] == [{"role": "system", "content": "S"}, {"role": "user", "content": "Q"}]
    assert (request["model"], request["temperature"], request["max_tokens"]) == ("m", 0.2, 99)
    assert server.keys == [f"Bearer {KEY}"]


def test_what_was_asked_is_not_asked_again(serve: Any, tmp_path: Path) -> None:
    server = serve((200, completion("one")), (200, completion("two")), (200, completion("three")))
    cache = tmp_path / "cache.jsonl"
    assert judge(server, cache).ask("Q") == "one"
    later = judge(server, cache)
    assert later.ask("Q") == "one"
    assert later.ask("Q", temperature=0.5) == "two"
    assert later.ask("Q", system="") == "three"
    assert len(server.seen) == 3
    assert KEY not in cache.read_text()
    other = OpenAIJudge("other", server.address, KEY, cache=cache)
    assert other.ask("Q") == "three"
    assert len(server.seen) == 4


def test_a_model_that_thinks_takes_other_settings(serve: Any, tmp_path: Path) -> None:
    def refusal_of(name: str) -> tuple[int, str]:
        return 400, json.dumps({"error": {"message": f"Unsupported: '{name}' does not do.", "param": name}})

    server = serve(refusal_of("max_tokens"), refusal_of("temperature"), (200, completion("a")), (200, completion("b")))
    client = judge(server, tmp_path / "cache.jsonl", tries=1)
    assert [client.ask("Q", max_tokens=9), client.ask("R", max_tokens=9)] == ["a", "b"]
    settings = [{name: body[name] for name in body if name not in ("model", "messages")} for body in server.seen]
    assert settings == [
        {"temperature": 0.0, "max_tokens": 9}, {"temperature": 0.0, "max_completion_tokens": 8201},
        {"max_completion_tokens": 8201}, {"max_completion_tokens": 8201},
    ]  # fmt: skip
    server = serve(refusal_of("temperature"))
    with pytest.raises(JudgeError, match="refuses"):
        judge(server, tmp_path / "other.jsonl").ask("Q")
    assert len(server.seen) == 2


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(serve: Any, tmp_path: Path, status: int) -> None:
    server = serve((status, ERROR), (status, "no JSON"), (200, completion("at last")))
    assert judge(server, tmp_path / "cache.jsonl").ask("Q") == "at last"
    assert len(server.seen) == 3


def test_a_server_that_stays_broken(serve: Any, tmp_path: Path) -> None:
    server = serve((500, ERROR))
    client = judge(server, tmp_path / "cache.jsonl", tries=4)
    with pytest.raises(
        JudgeError, match=r"judge m at http://127.*does not answer .*tried 4 times.*the same command"
    ) as told:
        client.ask("Q")
    assert len(server.seen) == 4
    assert KEY not in str(told.value)
    assert not (tmp_path / "cache.jsonl").exists()


def test_pauses_grow(serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("internvl_chat.eval.judge.time.sleep", pauses.append)
    with pytest.raises(JudgeError):
        judge(serve((429, ERROR)), tmp_path / "c", tries=6, pause=1.0).ask("Q")
    assert pauses == [1.0, 4.0, 16.0, 60.0, 60.0]


def test_a_wrong_key_is_tried_once_and_never_told(serve: Any, tmp_path: Path) -> None:
    server = serve((401, ERROR))
    with pytest.raises(JudgeError, match=r"the key is not accepted.*check OPENAI_API_KEY") as told:
        judge(server, tmp_path / "cache.jsonl").ask("Q")
    assert len(server.seen) == 1
    assert KEY not in str(told.value)
    assert told.value.__cause__ is None
    assert told.value.__suppress_context__


def test_a_model_that_is_not_there(serve: Any, tmp_path: Path) -> None:
    server = serve((404, ERROR))
    with pytest.raises(JudgeError, match="the name of the model") as told:
        judge(server, tmp_path / "cache.jsonl").ask("Q")
    assert len(server.seen) == 1
    assert KEY not in str(told.value)


@pytest.mark.parametrize("key", ["sk-secret\n-4711", "sk-secret-…"])
def test_a_key_that_cannot_be_sent_is_not_told(serve: Any, tmp_path: Path, key: str) -> None:
    client = OpenAIJudge("m", serve((200, "")).address, key, cache=tmp_path / "c", tries=1)
    with pytest.raises(JudgeError) as told:
        client.ask("Q")
    assert "secret" not in str(told.value)
    assert told.value.__suppress_context__


@pytest.mark.parametrize(
    ("body", "kind"),
    [("<html>hello</html>", "text/html"), ("not JSON", "application/json"), ("{}", "application/json"),
     ('{"choices": []}', "application/json"), ("[]", "application/json")],
)  # fmt: skip
def test_a_reply_that_is_none(serve: Any, tmp_path: Path, body: str, kind: str) -> None:
    server = serve((200, body))
    server.kind = kind
    with pytest.raises(JudgeError):
        judge(server, tmp_path / "cache.jsonl").ask("Q")
    assert len(server.seen) == 1


def test_an_empty_reply_is_not_kept(serve: Any, tmp_path: Path) -> None:
    server = serve((200, completion(None)), (200, completion("")), (200, completion("x")))
    client = judge(server, tmp_path / "cache.jsonl")
    assert [client.ask("Q") for _ in range(3)] == ["", "", "x"]


def test_a_silent_server(serve: Any, tmp_path: Path) -> None:
    server = serve((200, completion("late")))
    server.wait = 0.5
    with pytest.raises(JudgeError, match="tried 2 times"):
        judge(server, tmp_path / "cache.jsonl", timeout=0.05, tries=2).ask("Q")
    assert len(server.seen) == 2


def test_nobody_at_the_address(tmp_path: Path) -> None:
    client = OpenAIJudge("m", "http://me:hush@127.0.0.1:9/v1?a=hush", KEY, cache=tmp_path / "c", tries=2, pause=0.01)
    with pytest.raises(JudgeError, match=r"at http://127.0.0.1:9/v1.* does not answer .*tried 2 times") as told:
        client.ask("Q")
    assert "hush" not in str(told.value)


def test_a_line_that_a_kill_cut(serve: Any, tmp_path: Path) -> None:
    server = serve((200, completion("one")), (200, completion("two")), (200, completion("three")))
    cache = tmp_path / "cache.jsonl"
    client = judge(server, cache)
    assert [client.ask("A"), client.ask("B")] == ["one", "two"]
    cache.write_bytes(cache.read_bytes()[:-9])
    client = judge(server, cache)
    assert [client.ask("A"), client.ask("B")] == ["one", "three"]
    assert [judge(server, cache).ask(text) for text in "AB"] == ["one", "three"]
    assert len(server.seen) == 3


def test_many_at_once(serve: Any, tmp_path: Path) -> None:
    server = serve((200, completion("same")))
    server.wait = 0.05
    cache = tmp_path / "cache.jsonl"
    client = judge(server, cache)
    assert each(client.ask, [f"Q{number}" for number in range(32)]) == ["same"] * 32
    assert 1 < server.most <= 8
    assert len([json.loads(line) for line in cache.read_text().splitlines()]) == 32


def test_the_first_error_ends_it() -> None:
    done: list[int] = []

    def act(number: int) -> int:
        if number == 0:
            raise JudgeError("gone")
        time.sleep(0.01)
        done.append(number)
        return number

    with pytest.raises(JudgeError, match="gone"):
        each(act, list(range(500)))
    assert len(done) < 100
    assert each(act, [2, 1]) == [2, 1]


def test_which_judge_is_opened(serve: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache.jsonl"
    assert open_judge(None, cache, {"OPENAI_API_KEY": KEY}) is None
    for env in ({}, {"OPENAI_API_KEY": ""}):
        with pytest.raises(ConfigError, match="--judge m: set OPENAI_API_KEY, or OPENAI_BASE_URL"):
            open_judge("m", cache, env)
    server = serve((200, completion("x")))
    found = open_judge("m", cache, {"OPENAI_BASE_URL": server.address})
    assert found is not None
    assert found.name.startswith("m at http")
    assert found.ask("Q") == "x"
    assert server.keys == ["Bearer none"]


def test_without_a_judge() -> None:
    for word in ("mmhal", "OPENAI_API_KEY", "OPENAI_BASE_URL", "--judge MODEL", "--no_judge"):
        assert word in refusal("mmhal")
    with pytest.raises(NoScore, match="mmhal is scored by a judge"):
        judge_of(Answered((), ()), "mmhal")
    assert issubclass(JudgeError, InternVLError)
    assert issubclass(NoScore, InternVLError)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    with pytest.raises(ConfigError, match="pip install openai"):
        OpenAIJudge("m", cache=tmp_path / "c")


def test_a_cache_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="judge's replies"):
        OpenAIJudge("m", "http://127.0.0.1:9/v1", KEY, cache=tmp_path)


def test_another_server_is_another_judge(serve: Any, tmp_path: Path) -> None:
    """Servers of one's own often call whatever they serve by the same name."""
    first, second = serve((200, completion("0.5"))), serve((200, completion("1.0")))
    assert judge(first, tmp_path / "cache.jsonl").ask("Q") == "0.5"
    assert judge(second, tmp_path / "cache.jsonl").ask("Q") == "1.0"


def test_a_kept_reply_that_has_changed_is_asked_for_again(serve: Any, tmp_path: Path) -> None:
    server, cache = serve((200, completion("0.5"))), tmp_path / "cache.jsonl"
    judge(server, cache).ask("Q")
    cache.write_text(cache.read_text().replace("0.5", "0.9"))
    assert judge(server, cache).ask("Q") == "0.5"
    assert len(server.seen) == 2


def test_replies_that_cannot_be_kept(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    client = judge(serve((200, completion("0.5"))), tmp_path / "file" / "cache.jsonl")
    with pytest.raises((JudgeError, ConfigError), match="keeps the judge's replies"):
        client.ask("Q")


def test_silence_is_no_judgement() -> None:
    said = Overheard(FakeJudge({"1": "", "2": "yes"}))
    assert [said.ask("1"), said.ask("2")] == ["", "yes"]
    said.check("mine")
    silent = Overheard(FakeJudge({"": ["", " \n"]}))
    silent.check("mine")
    assert [silent.ask("1"), silent.ask("2")] == ["", " \n"]
    with pytest.raises(JudgeError, match="mine: all 2 replies of fake are empty"):
        silent.check("mine")
