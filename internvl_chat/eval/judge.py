"""A language model that compares answers, behind an OpenAI-compatible address; its replies are kept in a file."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from internvl_chat.errors import ConfigError, InternVLError, first_line
from internvl_chat.eval.task import Answered, Judge, NoScore
from internvl_chat.log import get_logger

log = get_logger(__name__)

KEY = "OPENAI_API_KEY"
ADDRESS = "OPENAI_BASE_URL"
# What a server without keys is sent: the client wants one.
_NO_KEY = "none"
# Questions that are with the judge at the same time.
_AT_ONCE = 8
# Each pause is so many times as long as the one before.
_GROWTH = 4.0
_LONGEST_PAUSE = 60.0
_USER = re.compile(r"//[^/@]*@")
# Settings that some models do not take, and the tokens that those may think before they reply.
_REFUSABLE = ("temperature", "max_tokens")
_THOUGHT = 8192
_Subject = TypeVar("_Subject")
_Outcome = TypeVar("_Outcome")


class JudgeError(InternVLError):
    """The judge does not answer. What it said before is kept."""


class OpenAIJudge:
    """A model behind a chat-completions address. Threads may share one.

    ``base_url``: None = that of OpenAI; ``api_key``: None for a server that asks for none. ``cache``: JSONL file of
    replies; what was asked before in the same words, by whichever run, is not asked again. ``tries``: of one question,
    when the server is busy, fails or does not answer within ``timeout`` seconds; ``pause``: seconds before the second
    try, later ones are longer. Raises ConfigError without the ``openai`` package.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key: str | None = None,
        *,
        cache: Path,
        tries: int = 3,
        timeout: float = 60.0,
        pause: float = 2.0,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ConfigError("a judge needs the openai package; pip install openai") from error
        self._model = model
        self._openai = openai
        self._key = (api_key or "").strip() or _NO_KEY
        # The client's own tries would multiply with ours.
        self._client = openai.OpenAI(api_key=self._key, base_url=base_url, timeout=timeout, max_retries=0)
        # An address may hold a password.
        self._where = _USER.sub("//", str(self._client.base_url)).partition("?")[0]
        self.name = f"{model} at {self._where}"
        self._tries = max(tries, 1)
        self._pause = pause
        self._cache = cache
        self._lock = threading.Lock()
        self._refused: frozenset[str] = frozenset()
        self._replies = _read_cache(cache)

    def ask(self, text: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024) -> str:
        """Its reply. Raises JudgeError when it cannot be had."""
        key = _key_of(self._where, self._model, system, text, temperature, max_tokens)
        with self._lock:
            if key in self._replies:
                return self._replies[key]
        messages: list[Any] = [] if system is None else [{"role": "system", "content": system}]
        messages.append({"role": "user", "content": text})
        reply = self._persist(messages, temperature, max_tokens)
        if reply:  # an empty one may be a passing whim of the server
            with self._lock:
                self._replies[key] = reply
                _append(self._cache, {"key": key, "judge": self.name, "reply": reply, "sum": _sum_of(key, reply)})
        return reply

    def _persist(self, messages: list[Any], temperature: float, max_tokens: int) -> str:
        openai = self._openai
        passing = (openai.RateLimitError, openai.InternalServerError, openai.APITimeoutError, openai.APIConnectionError)
        for attempt in range(1, self._tries + 1):
            try:
                return self._text_of(self._request(messages, temperature, max_tokens))
            except passing as error:
                if attempt == self._tries:
                    what = f"does not answer ({self._said(error)}), tried {attempt} times"
                    mend = "its replies so far are kept: the same command, later, at this address goes on with the rest"
                    raise JudgeError(f"{self._name()} {what}; {mend}") from None
                time.sleep(min(self._pause * _GROWTH ** (attempt - 1), _LONGEST_PAUSE))
            except (openai.OpenAIError, ValueError, TypeError) as error:
                # The library's own messages quote requests; the chain would show them.
                raise JudgeError(f"{self._name()} refuses ({self._said(error)}); check {self._mend(error)}") from None
        raise AssertionError("unreachable")

    def _request(self, messages: list[Any], temperature: float, max_tokens: int) -> Any:
        """One request. Settings that the model refuses are left out from then on."""
        while True:
            refused = self._refused  # other threads may add to it
            settings: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
            if "max_tokens" in refused:
                settings["max_completion_tokens"] = max_tokens + _THOUGHT
            settings = {name: value for name, value in settings.items() if name not in refused}
            try:
                return self._client.chat.completions.create(model=self._model, messages=messages, **settings)
            except self._openai.BadRequestError as error:
                named = {name for name in _REFUSABLE if f"'{name}'" in str(error) and name in settings}
                if not named:
                    raise
                self._refused |= named

    def _text_of(self, reply: Any) -> str:
        """Raises JudgeError if it is no chat completion: servers of other kinds answer with pages."""
        try:
            content = reply.choices[0].message.content
        except (AttributeError, IndexError, TypeError) as error:
            what = "its reply is no chat completion"
            raise JudgeError(f"{self._name()}: {what} ({first_line(error)}); check {ADDRESS}") from None
        return content if isinstance(content, str) else ""

    def _name(self) -> str:
        return f"judge {self.name}"

    def _said(self, error: Exception) -> str:
        """What went wrong, without the key: servers quote some of it, libraries all."""
        if isinstance(error, self._openai.AuthenticationError):
            return "the key is not accepted" if self._key != _NO_KEY else "it wants a key"
        # "Connection error." alone says little.
        cause = error.__cause__ if isinstance(error, self._openai.APIConnectionError) else None
        told = first_line(cause or error)
        if self._key != _NO_KEY:
            for written in (self._key, repr(self._key)[1:-1]):
                told = told.replace(written, "***")
        return told[:300]

    def _mend(self, error: Exception) -> str:
        if isinstance(error, (self._openai.AuthenticationError, self._openai.PermissionDeniedError)):
            return KEY
        return "the name of the model (--judge)" if isinstance(error, self._openai.NotFoundError) else "the settings"


def open_judge(model: str | None, cache: Path, env: Mapping[str, str]) -> Judge | None:
    """The judge that is named, with key and address of the environment; None without a name.

    Raises ConfigError for a name without both.
    """
    key, address = env.get(KEY) or None, env.get(ADDRESS) or None
    if not model:
        return None
    if key is None and address is None:
        raise ConfigError(f"--judge {model}: set {KEY}, or {ADDRESS} for a server of your own, or leave --judge out")
    return OpenAIJudge(model, address, key, cache=cache)


def refusal(task_name: str) -> str:
    """What a user has to do about a task that needs a judge when there is none."""
    return (
        f"{task_name} is scored by a judge, and there is none; give --judge MODEL and set {KEY}, or {ADDRESS} for a "
        "server of your own, or give --no_judge for the answers only"
    )


def judge_of(run: Answered, task_name: str) -> Judge:
    """The judge of a run. Raises NoScore if there is none."""
    if run.judge is None:
        raise NoScore(refusal(task_name))
    return run.judge


def each(action: Callable[[_Subject], _Outcome], subjects: Sequence[_Subject]) -> list[_Outcome]:
    """``action`` of each subject in order, several at a time. The first error ends it, what has not begun included."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            return list(pool.map(action, subjects))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


class Overheard:
    """A judge of whom it is noted whether he ever says anything; threads may share one."""

    def __init__(self, judge: Judge) -> None:
        self.name = judge.name
        self._judge, self._lock = judge, threading.Lock()
        self._asked = self._silent = 0

    def ask(self, text: str, *, system: str | None = None, temperature: float = 0.0, max_tokens: int = 1024) -> str:
        """Its reply. Raises JudgeError when it cannot be had."""
        reply = self._judge.ask(text, system=system, temperature=temperature, max_tokens=max_tokens)
        with self._lock:
            self._asked += 1
            self._silent += not reply.strip()
        return reply

    def check(self, task_name: str) -> None:
        """Raise JudgeError if all replies were empty: what it was to decide is no zero."""
        if self._asked and self._silent == self._asked:
            raise JudgeError(
                f"{task_name}: all {self._asked} replies of {self.name} are empty (a model that thinks first may not "
                "come to its reply); take another judge"
            )


def _key_of(where: str, model: str, system: str | None, text: str, temperature: float, max_tokens: int) -> str:
    asked = json.dumps([where, model, system, text, float(temperature), int(max_tokens)])
    return hashlib.sha256(asked.encode()).hexdigest()


def _sum_of(key: str, reply: str) -> str:
    return hashlib.sha256(f"{key}{reply}".encode(errors="surrogatepass")).hexdigest()[:16]


def _read_cache(path: Path) -> dict[str, str]:
    """Replies by key; damaged lines are left out, so that they are asked again.

    Raises ConfigError for a file that cannot be read.
    """
    replies: dict[str, str] = {}
    damaged = 0
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)}); it keeps the judge's replies") from error
    for line in content.split(b"\n"):
        try:
            record = json.loads(line)
            key, reply = str(record["key"]), str(record["reply"])
            if record["sum"] != _sum_of(key, reply):
                raise ValueError("changed")
            replies[key] = reply
        except (ValueError, KeyError, TypeError):
            damaged += bool(line.strip())
    if damaged:
        log.warning("%s: %d lines are damaged; what they reply to is asked again", path, damaged)
    return replies


def _append(path: Path, record: Mapping[str, str]) -> None:
    """One line in one write, behind whatever another process or a kill has left. Raises JudgeError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            end = file.seek(0, 2)
            if end:
                file.seek(end - 1)
            whole = not end or file.read(1) == b"\n"
            file.write((b"" if whole else b"\n") + json.dumps(record).encode() + b"\n")
    except OSError as error:  # a reply that is not kept would have to be paid for again
        raise JudgeError(f"{path} cannot be written ({first_line(error)}); it keeps the judge's replies") from error
