"""transformers' own serving app around one InternVL model: its routes, its handlers, our prompts and decoding.

Imported when a server starts: the library's modules need fastapi.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.cli.serving.chat_completion import ChatCompletionHandler
from transformers.cli.serving.completion import CompletionHandler
from transformers.cli.serving.model_manager import ModelManager
from transformers.cli.serving.server import build_server
from transformers.cli.serving.utils import BaseHandler, GenerationState

from internvl_chat.errors import first_line
from internvl_chat.infer.load import quantization_of
from internvl_chat.infer.loaded import Loaded
from internvl_chat.infer.serve.checks import Wishes, check_fields, read_wishes
from internvl_chat.infer.serve.engine import Engine, Failure, Growing
from internvl_chat.infer.serve.faults import ApiError, wrong
from internvl_chat.infer.serve.gate import GONE, HOLD
from internvl_chat.infer.serve.prompts import Limits, Prepared, prepare_chat, prepare_text
from internvl_chat.log import get_logger
from internvl_chat.model.loading import ONE_AT_A_TIME

logger = get_logger(__name__)

# The library has more: what loads other models, or unloads this one, is not for clients.
METHODS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("POST",),
    "/v1/completions": ("POST",),
    "/v1/models": ("GET",),
    "/health": ("GET",),
}
# Pictures are cut by so many at once; the largest that is taken needs 1.2 GB meanwhile.
CUTTERS = 2


@dataclass(frozen=True)
class Settings:
    """What a server is started with. ``spread``: over all GPUs instead of ``device``. ``bits``: 8, 4, None = all.

    ``names``: under which clients may ask for the model, the first one is told them.
    """

    folder: Path
    names: tuple[str, ...]
    device: str = "cpu"
    spread: bool = False
    dtype: torch.dtype | str = torch.float32
    bits: int | None = None
    max_new_tokens: int = 1024


@dataclass(frozen=True)
class _Form:
    """How a route writes answers: JSON of ``whole(text, finish, usage)``, or events by ``chunk(**fields)``.

    Events: the fields ``first`` if any, texts as field ``piece``, the end; then ``account(usage)`` if it is asked for.
    """

    whole: Callable[[str, str, Any], dict[str, Any]]
    chunk: Callable[..., str]
    account: Callable[[Any], str]
    first: dict[str, Any] | None
    piece: str


class OneModel(ModelManager):
    """The library's manager with a single model, loaded at once and never unloaded before the end."""

    def __init__(self, settings: Settings, loaded: Loaded) -> None:
        self.settings = settings
        self.loaded = loaded
        self.engine = Engine(loaded)
        self.created = int(time.time())
        super().__init__(force_model="served")

    def _load_processor(self, model_id_and_revision: str, gguf_file: str | None = None) -> Any:
        """Prompts and answers go through our own encoder, not through a processor of transformers."""
        return self.loaded

    def _load_model(self, model_id_and_revision: str, *args: Any, **kwargs: Any) -> Any:
        """transformers' own InternVL model, in eval mode."""
        settings = self.settings
        with ONE_AT_A_TIME:
            model = AutoModelForImageTextToText.from_pretrained(
                settings.folder,
                dtype=settings.dtype,
                device_map="auto" if settings.spread else {"": settings.device},
                quantization_config=self.get_quantization_config(),
                local_files_only=True,
            )
        return model.eval()

    def get_quantization_config(self) -> Any:
        """Packed as ``load`` does it: what must stay in 16 bits does."""
        bits = self.settings.bits
        if bits is None:
            return None
        config = quantization_of(self.loaded.model.config, bits == 8, bits == 4, self.settings.dtype)
        theirs = {"mlp1": "model.multi_modal_projector", "vision_model": "model.vision_tower"}
        kept = config.llm_int8_skip_modules or []
        config.llm_int8_skip_modules = [theirs.get(name, name) for name in kept]
        return config

    @property
    def model(self) -> Any:
        """The loaded model."""
        return self.load_model_and_processor(self.process_model_name("served"))[0]

    def get_gen_models(self, cache_dir: str | None = None) -> list[dict[str, Any]]:  # type: ignore[override]
        """The served model, as OpenAI's list has it."""
        name = self.settings.names[0]
        return [{"id": name, "object": "model", "created": self.created, "owned_by": "internvl_chat"}]

    def shutdown(self) -> None:
        """End what is being generated, then free the model."""
        self.engine.stop()
        super().shutdown()


class _Asking(BaseHandler):
    """What both handlers share: checks, preparation beside the event loop, and an answer that grows."""

    manager: OneModel
    pool: ThreadPoolExecutor
    limits: Limits

    def set_up(self, manager: OneModel, pool: ThreadPoolExecutor) -> Any:
        """Set all that is needed; returns itself."""
        self.manager, self.pool = manager, pool
        self.limits = Limits.of(manager.loaded)
        return self

    def _check(self, body: dict[str, Any]) -> Wishes:
        check_fields(body, getattr(self._valid_params_class, "__mutable_keys__", ()))
        names = self.manager.settings.names
        asked = body.get("model", names[0])
        if not isinstance(asked, str):
            raise wrong("model: a text", "model")
        if asked not in names:
            message = f"there is no model {asked[:200]!r} here; this server has {names[0]!r}"
            raise ApiError(404, message, "model", "model_not_found")
        return read_wishes(body, len(self.manager.loaded.tokenizer))

    @property
    def name(self) -> str:
        """What clients are told the model is called."""
        return self.manager.settings.names[0]

    async def _respond(self, wishes: Wishes, prepare: Callable[[], Prepared], form: _Form) -> Any:
        """JSON, or events."""
        from fastapi.responses import JSONResponse, StreamingResponse

        answer, prepared = await self._start(prepare, wishes)
        if not wishes.stream:
            text = "".join([text async for text in _pieces(answer)])
            return JSONResponse(form.whole(text, answer.finish, _usage(answer, prepared)))

        async def events() -> AsyncIterator[str]:
            try:
                if form.first is not None:
                    yield form.chunk(**form.first)
                async for text in _pieces(answer):
                    yield form.chunk(**{form.piece: text})
                usage = _usage(answer, prepared)
                yield form.chunk(finish_reason=answer.finish, usage=usage if wishes.usage is None else None)
                if wishes.usage:
                    yield form.account(usage)
                yield "data: [DONE]\n\n"
            except ApiError as error:
                yield f"data: {json.dumps(error.object())}\n\n"
            finally:
                answer.close()

        return StreamingResponse(events(), media_type="text/event-stream")

    async def _start(self, prepare: Callable[[], Prepared], wishes: Wishes) -> tuple[Growing, Prepared]:
        """An answer in its queue. It is cancelled when the client goes away."""
        began = time.perf_counter()
        gone = GONE.get()
        prepared = await asyncio.get_running_loop().run_in_executor(self.pool, prepare)
        HOLD.get()(prepared.pixels.nbytes)
        model = self.manager.model
        config = self._config_of(wishes, model.generation_config, prepared.room)
        answer = self.manager.engine.start(model, prepared, config, wishes.stop, wishes.seed)
        answer.cancel_when(gone)
        logger.debug("prompt of %d tokens ready after %.3f s", len(prepared.ids), time.perf_counter() - began)
        return answer, prepared

    def _config_of(self, wishes: Wishes, base: GenerationConfig, room: int) -> GenerationConfig:
        """The library's reading of a request; greedy unless a temperature is given, as ``Chat`` is."""
        body = {"max_tokens": min(room, wishes.max_tokens or self.manager.settings.max_new_tokens)}
        config = self._build_generation_config(body, base)
        loaded = self.manager.loaded
        config.update(eos_token_id=list(loaded.stop_ids), pad_token_id=loaded.pad_id)
        config.update(
            do_sample=wishes.temperature > 0, temperature=wishes.temperature or 1.0, top_p=wishes.top_p or 1.0
        )
        if wishes.top_k is not None:
            config.top_k = wishes.top_k
        if wishes.penalty != 1.0:
            config.repetition_penalty = wishes.penalty
        if wishes.logit_bias:
            config.sequence_bias = [[[number], bias] for number, bias in wishes.logit_bias.items()]
        return config


async def _pieces(answer: Growing) -> AsyncIterator[str]:
    """Text as it grows. Raises ApiError if generation fails; cancels it if nobody reads on."""
    try:
        while (item := await answer.queue.get()) is not None:
            if isinstance(item, Failure):
                raise ApiError(item.status, item.message)
            yield item
    finally:
        answer.close()


class ChatHandler(_Asking, ChatCompletionHandler):
    """``/v1/chat/completions``."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """JSON, or events if the request says ``stream``. Raises ApiError."""
        wishes, messages = self._check(body), body.get("messages")
        form = _Form(
            whole=lambda text, finish, usage: self._build_completion(
                request_id, text, self.name, finish_reason=finish, usage=usage
            ),
            chunk=lambda **given: self._build_chunk_sse(request_id, model=self.name, **given),
            account=lambda usage: _account(request_id, "chat.completion.chunk", self.name, usage),
            first={"role": "assistant", "content": ""},
            piece="content",
        )
        return await self._respond(
            wishes, lambda: prepare_chat(messages, self.manager.loaded, self.limits, wishes.max_tokens), form
        )


class TextHandler(_Asking, CompletionHandler):
    """``/v1/completions``: a prompt as it stands, without pictures."""

    async def handle_request(self, body: dict[str, Any], request_id: str) -> Any:
        """JSON, or events if the request says ``stream``. Raises ApiError."""
        from openai.types import Completion, CompletionChoice

        def whole(text: str, finish: Any, usage: Any) -> dict[str, Any]:
            choice = CompletionChoice(text=text, index=0, logprobs=None, finish_reason=finish)
            made = Completion(
                id=request_id,
                created=int(time.time()),
                model=self.name,
                choices=[choice],
                object="text_completion",
                usage=usage,
            )
            return made.model_dump(exclude_none=True)

        wishes, prompt = self._check(body), body.get("prompt")
        form = _Form(
            whole=whole,
            chunk=lambda **given: self._build_chunk_sse(request_id, self.name, **given),
            account=lambda usage: _account(request_id, "text_completion", self.name, usage),
            first=None,
            piece="text",
        )
        return await self._respond(
            wishes, lambda: prepare_text(prompt, self.manager.loaded, self.limits, wishes.max_tokens), form
        )


def _usage(answer: Growing, prepared: Prepared) -> Any:
    from openai.types.completion_usage import CompletionUsage

    asked, made = len(prepared.ids), answer.tokens
    return CompletionUsage(prompt_tokens=asked, completion_tokens=made, total_tokens=asked + made)


def _account(request_id: str, kind: str, model: str, usage: Any) -> str:
    """The event of a stream that has the number of tokens, and no choice."""
    fields = {"id": request_id, "object": kind, "created": int(time.time()), "model": model, "choices": []}
    return f"data: {json.dumps({**fields, 'usage': usage.model_dump(exclude_none=True)})}\n\n"


def build_app(manager: OneModel) -> Any:
    """The library's app with our handlers, without the routes that are not for clients. A Gate belongs before it."""
    state = GenerationState()
    pool = ThreadPoolExecutor(CUTTERS, "internvl-cut")
    chat = ChatHandler(manager, state).set_up(manager, pool)
    text = TextHandler(manager, state).set_up(manager, pool)
    none = cast(Any, None)  # their routes go
    app = build_server(manager, chat, text, none, none, none, state)
    app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", "") in METHODS]
    _tell_errors(app)
    return app


def _no_json(reason: str | None) -> ApiError:
    because = f" ({reason})" if reason else ""
    return wrong(f"the body must be a JSON object in UTF-8{because}", code="invalid_json")


def _tell_errors(app: Any) -> None:
    """All errors leave the app as OpenAI's error object."""
    from fastapi import Response
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException

    def respond(error: ApiError) -> Any:
        return Response(error.body(), error.status, error.headers, "application/json")

    async def ours(_: Any, error: Any) -> Any:
        return respond(error)

    async def library(_: Any, error: Any) -> Any:
        if error.status_code == 400:  # of the library: only for a body that breaks the JSON reader
            return respond(_no_json(first_line(error.__cause__ or error)))
        return respond(ApiError(error.status_code, str(error.detail)))

    async def body(_: Any, error: Any) -> Any:
        found = error.errors()[0]
        reason = found.get("ctx", {}).get("error")
        return respond(_no_json(reason and f"{reason} at character {found['loc'][-1]}"))

    async def unknown(_: Any, error: Any) -> Any:
        return respond(ApiError(500, "the server has failed; its log says more"))

    app.add_exception_handler(ApiError, ours)
    app.add_exception_handler(HTTPException, library)
    app.add_exception_handler(RequestValidationError, body)
    app.add_exception_handler(Exception, unknown)
