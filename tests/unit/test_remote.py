"""Models of OpenAI-style servers, against a server of our own."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.unit.labelled import write_rows
from trivium.cli.main import run as command
from trivium.errors import TriviumError
from trivium.inference import remote
from trivium.inference.remote import RemoteModel


class Server:
    """Answers with the last word of the message; `replies` come first: (status, headers, body)."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], dict[str, str]]] = []
        self.replies: list[tuple[int, dict[str, str], bytes]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((body, dict(self.headers)))
                message = {"content": body["messages"][-1]["content"].split()[-1]}
                reply = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"prompt_tokens": 3}}
                status, headers, data = outer.replies.pop(0) if outer.replies else (200, {}, json.dumps(reply).encode())
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.place = f"http://127.0.0.1:{self.server.server_port}/v1#tiny"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in remote.KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(remote, "wait", lambda headers, attempt: 0.0)
    made = Server()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_answers_come_in_order_with_the_settings_that_were_given(server: Server) -> None:
    prompts = [f"say word{number}" for number in range(12)]
    options = {"max_new_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": "x", "seed": 7}
    answers = list(RemoteModel(server.place).answers(prompts, n=2, **options))
    assert [answer.text for answer in answers] == [f"word{number}" for number in range(12) for _ in range(2)]
    assert {answer.prompt_tokens for answer in answers} == {3}
    body = server.asked[0][0]
    sent = {name: body[name] for name in ("model", "max_tokens", "temperature", "top_p", "stop")}
    assert sent == {"model": "tiny", "max_tokens": 5, "temperature": 0.5, "top_p": 0.9, "stop": "x"}
    assert sorted({body["seed"] for body, _ in server.asked}) == [7, 8]


def test_it_waits_and_tries_again(server: Server) -> None:
    server.replies = [(429, {"Retry-After": "1"}, b"slow down"), (503, {}, b"")]
    assert next(iter(RemoteModel(server.place, at_once=1).answers(["say yes"]))).text == "yes"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        ((401, {}, b'{"error": "bad key secret-key"}'), "status 401"),
        ((200, {}, b"<html>"), "not JSON"),
        ((200, {}, b'{"object": "list"}'), "not that of an OpenAI-style"),
        ((307, {"Location": "http://127.0.0.1:1/"}, b""), "status 307"),
    ],
)
def test_what_is_no_answer_is_an_error_without_the_key(
    server: Server, reply: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIVIUM_API_KEY", "secret-key")
    server.replies = [reply]
    with pytest.raises(TriviumError, match=said) as caught:
        list(RemoteModel(server.place).answers(["say yes"]))
    assert server.asked[0][1]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_wrong_places_and_settings(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TriviumError, match="not named"):
        RemoteModel("http://localhost/v1")
    with pytest.raises(TriviumError, match="top_k has no effect"):
        list(RemoteModel(server.place).answers(["x"], top_k=3))
    with pytest.raises(TriviumError, match="cannot be reached"):
        list(RemoteModel("http://127.0.0.1:1/v1#m").answers(["x"]))
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(TriviumError, match="unencrypted"):
        RemoteModel("http://example.org/v1#m")


def test_waiting_follows_the_server_and_grows() -> None:
    headers = Message()
    assert remote.wait(headers, 1) < remote.wait(headers, 3)
    headers["Retry-After"] = "7"
    assert remote.wait(headers, 1) == 7


def test_as_teacher_and_baseline_from_the_command_line(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prompts.txt").write_text("say one\nsay two\n")
    assert command(["generate", server.place, "--file", str(tmp_path / "prompts.txt"), "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["prompt"], row["text"]) for row in rows] == [("say one", "one"), ("say two", "two")]
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"source": "a b", "target": "b"}, {"source": "c d", "target": "x"}])
    assert command(["eval", server.place, str(pairs), "--output", str(tmp_path / "found"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["metrics"]["exact"]["value"] == 0.5
    assert (tmp_path / "found" / "predictions.jsonl").is_file()
    assert command(["eval", server.place, str(pairs), "--name", "x"]) == 2
