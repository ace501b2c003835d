"""The page: its parts, and what each button does with the visitor's ``Session``. gradio is only known here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from internvl_chat.errors import ConfigError, InternVLError
from internvl_chat.infer.demo.look import CSS, EMPTY, HEADERS, LATEX, alert, heading, messages, theme, tiles_html
from internvl_chat.infer.demo.seen import Seen, what_is_seen
from internvl_chat.infer.demo.session import Model, Round, Session, Settings
from internvl_chat.infer.demo.visitors import Visitors

Message = dict[str, Any]  # what stands in the box: "text", and "files" (their paths here)
EMPTY_BOX: Message = {"text": "", "files": []}
# Visitors whose questions are taken at once; each waits for its turn in the line of a model.
MOST_AT_ONCE, LONGEST_QUEUE = 24, 64
_MOST_TOKENS = 4096  # of the control; --max_new_tokens may be above
# Seconds after which an upload is deleted, and between looks for such.
UPLOADS_KEPT, UPLOADS_CHECKED = 6 * 3600, 600


def import_gradio() -> Any:
    """The library. Raises ConfigError if it is not installed."""
    try:
        import gradio
    except ImportError as error:
        raise ConfigError(f"the page needs gradio ({error}); pip install gradio") from error
    return gradio


def make_page(visitors: Visitors, start: Settings) -> Any:
    """gradio's ``Blocks`` for one model, or two side by side. ``start``: where the controls stand at first."""
    gr = import_gradio()
    models = visitors.models
    kept = (UPLOADS_CHECKED, UPLOADS_KEPT)
    with gr.Blocks(
        title="internvl demo", analytics_enabled=False, fill_width=True, fill_height=True, delete_cache=kept
    ) as page:
        key = gr.State(lambda: Visitors.new_key(), delete_callback=visitors.drop, time_to_live=24 * 3600)
        gr.HTML(heading(models), elem_id="heading")
        with gr.Row(elem_id="desk"):
            with gr.Column(scale=4, min_width=300, elem_id="talk"):
                with gr.Row(elem_id="answers"):
                    talks = [_talk(gr, model, number, len(models) > 1) for number, model in enumerate(models)]
                notice = gr.HTML("", visible=False, elem_id="notice")
                box = gr.MultimodalTextbox(
                    file_types=["image", "video"], file_count="multiple", sources=["upload"], show_label=False,
                    placeholder="Ask, with pictures or a video if you like", autofocus=True, elem_id="question",
                    max_plain_text_length=100_000,
                )  # fmt: skip
                with gr.Row(elem_id="buttons"):
                    stop = gr.Button("Stop", variant="stop", interactive=False, size="sm", min_width=90)
                    again = gr.Button("Regenerate", size="sm", min_width=90)
                    clear = gr.Button("Clear", size="sm", min_width=90)
            with gr.Column(scale=1, min_width=280, elem_id="side"):
                controls = _controls(gr, models, start)
                with gr.Accordion("What the model sees", open=True):
                    show = gr.Button("Show tiles", size="sm", elem_id="show")
                    tiles = gr.HTML("", elem_id="tiles")
        actions = _Actions(gr, visitors)
        asked = {"outputs": [*talks, box, notice, stop], "show_progress": "hidden", "api_visibility": "private"}
        busy = {"concurrency_limit": MOST_AT_ONCE, "concurrency_id": "answers", **asked}
        at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        for event, action in ((box.submit, actions.ask), (again.click, actions.again)):
            # The box opens in an event of its own: what is sent before the browser knows of the end would be lost.
            event(action, [key, box, *controls], **busy).then(actions.open_box, None, box, **at_once)
        stop.click(actions.stop, [key], None, **at_once)
        clear.click(actions.clear, [key], [*talks, box, notice, stop, tiles], **at_once)
        seen = {"concurrency_limit": 2, "show_progress": "minimal", "api_visibility": "private"}
        show.click(actions.show, [key, box, *controls], tiles, **seen)
    page.queue(max_size=LONGEST_QUEUE)
    return page


def launch(page: Any, host: str, port: int, auth: tuple[str, str] | None, share: bool, upload_mb: int) -> str:
    """Serve the page from threads of this process; returns its address. Raises ConfigError if the port is taken."""
    from starlette.middleware import Middleware

    try:
        _, local, public = page.launch(
            server_name=f"[{host}]" if ":" in host else host, server_port=port, share=share, auth=auth, quiet=True,
            max_file_size=f"{upload_mb}mb",
            prevent_thread_lock=True, inline=False, inbrowser=False, show_error=True, footer_links=[],
            run_history=False, enable_monitoring=False, ssr_mode=False, mcp_server=False, pwa=False, strict_cors=True,
            allowed_paths=[], theme=theme(import_gradio()), css=CSS,
            app_kwargs={"middleware": [Middleware(AddHeaders)], "docs_url": None, "redoc_url": None},
        )  # fmt: skip
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"the page cannot be served on {host}:{port} ({error}); choose another --host or --port"
        ) from error
    if share and not public:
        page.close()
        raise ConfigError("--share found no tunnel to gradio's servers; leave it out, or check the network")
    return str(public or local)


class AddHeaders:
    """Adds ``HEADERS`` to every answer, so that no answer of a model can make a browser fetch from elsewhere."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request."""

        async def send_more(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        await self._app(scope, receive, send_more)


def _talk(gr: Any, model: Model, number: int, named: bool) -> Any:
    return gr.Chatbot(
        label=model.name, show_label=named, buttons=["copy"], placeholder=EMPTY, latex_delimiters=LATEX, min_height=260,
        height="max(300px, calc(100dvh - 270px))", layout="bubble", elem_id=f"chat{number}", min_width=280, scale=1,
        elem_classes="talk", group_consecutive_messages=True, allow_file_downloads=False, feedback_options=None,
    )  # fmt: skip


def _controls(gr: Any, models: Sequence[Model], start: Settings) -> list[Any]:
    """The controls in the order of the fields of ``Settings``."""
    room = max(model.loaded.model.config.llm_config.max_position_embeddings for model in models)
    longest = max(min(room, _MOST_TOKENS), start.max_new_tokens)
    dynamic = any(model.loaded.tiles.dynamic for model in models)
    with gr.Accordion("Settings", open=True):
        return [
            gr.Slider(0, 2, start.temperature, step=0.05, label="Temperature", info="0: always the likeliest token"),
            gr.Slider(0.05, 1, start.top_p, step=0.05, label="Top-p", info="above temperature 0"),
            gr.Slider(1, longest, start.max_new_tokens, step=1, label="Longest answer (tokens)"),
            gr.Slider(
                1, max(40, start.max_tiles), start.max_tiles, step=1, label="Tiles of a question",
                info="at most; its pictures share them", interactive=dynamic,
            ),
            gr.Slider(1, max(64, start.num_segments), start.num_segments, step=1, label="Frames of a video"),
        ]  # fmt: skip


class _Actions:
    """What the page does with a visitor's session. Values of ``values``: those of the controls."""

    def __init__(self, gr: Any, visitors: Visitors) -> None:
        self._gr = gr
        self._visitors = visitors

    def ask(self, key: str, message: Message | None, *values: float) -> Iterator[list[Any]]:
        """Stream the answers; after an error the question comes back into its box."""
        session, given = self._visitors.session(key), message or EMPTY_BOX
        yield from self._stream(
            session, lambda: session.ask(given["text"], given["files"], _settings(values)), EMPTY_BOX, given
        )

    def again(self, key: str, message: Message | None, *values: float) -> Iterator[list[Any]]:
        """Stream new answers to the last question; what stands in the box stays."""
        session, given = self._visitors.session(key), message or EMPTY_BOX
        yield from self._stream(session, lambda: session.ask_again(_settings(values)), given, given)

    def open_box(self) -> Any:
        """Let the next question be written. What stands in the box stays."""
        return self._gr.update(interactive=True)

    def stop(self, key: str) -> None:
        """End the answer that is being written."""
        self._visitors.session(key).stop()

    def clear(self, key: str) -> list[Any]:
        """Forget everything."""
        self._visitors.session(key).clear()
        return [*self._view(()), self._box(EMPTY_BOX, True), self._notice(), self._gr.update(interactive=False), ""]

    def show(self, key: str, message: Message | None, *values: float) -> str:
        """The tiles of what is attached, else of the last question that had something attached."""
        session, settings = self._visitors.session(key), _settings(values)
        files = (message or EMPTY_BOX)["files"] or next(
            (round.files for round in reversed(session.rounds) if round.files), ()
        )
        if not files:
            return "<p>Attach a picture or a video first.</p>"
        found: list[Seen] = []
        models = self._visitors.models
        ways = [(model.loaded.tiles, model.loaded.model.config.num_image_token) for model in models]
        try:
            for number, model in enumerate(models):
                if ways[number] in ways[:number]:
                    continue  # cut in the same way
                title = f"{model.name}: " if len(set(ways)) > 1 else ""
                seen = what_is_seen(files, settings.tiled(model.loaded), settings.num_segments)
                found += [replace(one, text=title + one.text) for one in seen]
        except InternVLError as error:
            return alert(str(error))
        return tiles_html(found)

    def _stream(
        self,
        session: Session,
        asking: Callable[[], Iterator[tuple[Round, ...]]],
        left: Message,
        returned: Message,
    ) -> Iterator[list[Any]]:
        """``left``: what stays in the box meanwhile; ``returned``: what stands there after an error."""
        writing, at_rest = self._gr.update(interactive=True), self._gr.update(interactive=False)
        before, kept = session.rounds, self._gr.update()
        try:
            for number, seen in enumerate(asking()):
                yield [*self._view(seen), kept if number else self._box(left, False), self._notice(), writing]
        except InternVLError as error:
            yield [*self._view(before), self._box(returned, False), self._notice(str(error)), at_rest]
            return
        yield [*self._view(session.rounds), kept, self._notice(), at_rest]  # none, if all was cleared meanwhile

    def _view(self, rounds: tuple[Round, ...]) -> list[list[dict[str, Any]]]:
        return [messages(rounds, number) for number in range(len(self._visitors.models))]

    def _box(self, value: Message, interactive: bool) -> Any:
        return self._gr.update(value=value, interactive=interactive)

    def _notice(self, error: str = "") -> Any:
        return self._gr.update(value=alert(error) if error else "", visible=bool(error))


def _settings(values: Sequence[float]) -> Settings:
    temperature, top_p, max_new_tokens, max_tiles, num_segments = values
    return Settings(float(temperature), float(top_p), int(max_new_tokens), int(max_tiles), int(num_segments))
