"""The conversation on stdin and stdout: every command, lines put together, figures, what is saved."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from internvl_chat.data.record import Turn, parse_record
from internvl_chat.errors import ConfigError
from internvl_chat.infer.answer import prompt_ids
from internvl_chat.infer.ask_line import Reading, ask_line
from internvl_chat.infer.batch import Answer, answers
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.load import Loaded
from internvl_chat.infer.pictures import Video
from internvl_chat.infer.repl import HELP, NO_MEMORY, Repl
from internvl_chat.infer.settings import check_settings, read_settings
from internvl_chat.infer.transcript import Round, to_line, to_markdown
from internvl_chat.infer.typed import LONG, read_typed

EIGHT = {"max_new_tokens": 8}


@pytest.fixture()
def talk(qwen: Loaded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``talk(lines)`` -> (stdout, stderr) of a conversation in which these lines are typed."""

    def talk(lines: str, system: str | None = None, chat: Chat | None = None, **options: Any) -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert Repl(chat or Chat(qwen, system), EIGHT, **options).run() == 0
        return capsys.readouterr()

    return talk


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GIF of 9 frames, in a folder with a space in its name."""
    path = tmp_path_factory.mktemp("my clips") / "a clip.gif"
    frames = [Image.new("RGB", (40, 30), (25 * number, 255 - 25 * number, 90)) for number in range(9)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)
    return path


def typed(text: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return list(read_typed(""))


# -- what is typed ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n\n  b  \n", ["a", "b"]),
        ("one \\\ntwo\\\nthree\nfour\n", ["one \ntwo\nthree", "four"]),
        ('"""\nfirst\n\n/clear\nlast \\\n"""\nnext\n', ["first\n\n/clear\nlast \\", "next"]),
        ('"""first\nlast"""\nnext', ["first\nlast", "next"]),
        ('"""alone"""\nnext', ["alone", "next"]),
        ('say """ in between\nnext', ['say """ in between', "next"]),
        ('"""\nnever closed\nbut said\n', ["never closed\nbut said"]),
        ("goes on\\\n", ["goes on"]),
        ('"""\n\n"""\nnext', ["next"]),
    ],
)
def test_lines_are_put_together(text: str, expected: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(text, monkeypatch) == expected


def test_a_pasted_block_is_one_question() -> None:
    """On a real terminal: what arrives between the marks of a paste is not sent line by line."""
    code = (
        "from internvl_chat.infer.typed import read_typed\nfor text in read_typed('> '): print(ascii(text), flush=True)"
    )
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(Path(__file__).parents[2]), "INPUTRC": os.devnull}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-c", code], environment)
    shown = _read_until(terminal, b"> ")
    if b"\x1b[?2004h" not in shown:
        os.write(terminal, b"\x04")
        os.waitpid(child, 0)
        pytest.skip("this Python's line editor does not bracket pastes")
    os.write(terminal, b"\x1b[200~two\nlines\x1b[201~ more\n")
    wanted = b"'two\\nlines more'"
    shown = _read_until(terminal, wanted)
    # Before the next prompt the terminal is not in the line editor's hands, and would keep the Ctrl-D to itself.
    if b"> " not in shown[shown.index(wanted) :]:
        _read_until(terminal, b"> ")
    os.write(terminal, b"\x04")
    assert os.waitpid(child, 0)[1] == 0
    os.close(terminal)


def _read_until(terminal: int, wanted: bytes, seconds: float = 60) -> bytes:
    found, end = b"", time.monotonic() + seconds
    while wanted not in found:
        assert time.monotonic() < end, found
        found += os.read(terminal, 4096)
    return found


# -- the conversation -------------------------------------------------------------------------------------------------


def test_a_conversation(talk: Callable[..., Any], qwen: Loaded, pictures: list[Path], clip: Path) -> None:
    """Pictures, a video, several rounds: the answers of ``Chat.ask``, and nothing else but what was attached."""
    lines = (
        f"First?\n\n/image '{pictures[1]}'\n/image {pictures[0]}\nSecond <image>,\\\nor <image>?\nThird?\n"
        f"/video {clip} 3\nFourth?\n/video '{clip}'\nFifth <video>?\n/clear\nFirst?\n/quit\nnever read\n"
    )
    out, err = talk(lines, images=[str(pictures[0])], num_segments=2)
    chat = Chat(qwen)
    said: list[str] = [
        chat.ask("First?", pictures[:1], **EIGHT),
        "[picture 1: 60 x 190]",
        "[picture 2: 230 x 110]",
        chat.ask("Second <image>,\nor <image>?", [pictures[1], pictures[0]], **EIGHT),
        chat.ask("Third?", **EIGHT),
        "[video: 3 frames of 40 x 30]",
        chat.ask("Fourth?", video=clip, num_segments=3, **EIGHT),
        "[video: 2 frames of 40 x 30]",
        chat.ask("Fifth <video>?", video=clip, num_segments=2, **EIGHT),
        Chat(qwen).ask("First?", **EIGHT),
        "",
    ]
    assert out == "\n".join(said)
    assert err == ""


def test_undo_takes_back_what_is_attached(talk: Callable[..., Any], qwen: Loaded, pictures: list[Path]) -> None:
    out, _ = talk(f"Hi\n/image {pictures[0]}\n/undo\nWhat?\n")
    chat = Chat(qwen)
    first, second = chat.ask("Hi", **EIGHT), chat.ask("What?", **EIGHT)
    assert out.splitlines()[-1] == second.splitlines()[-1]
    assert out.startswith(first)
    assert "[nothing is attached]" in out


def test_undo(talk: Callable[..., Any], qwen: Loaded, pictures: list[Path]) -> None:
    out, err = talk(f"/undo\nHi\n/image {pictures[0]}\nWrong?\n/undo\nRight?\n", system="Be kind.")
    chat = Chat(qwen, "Be kind.")
    first = chat.ask("Hi", **EIGHT)
    wrong = Chat(qwen, "Be kind.")
    wrong.ask("Hi", **EIGHT)
    bad = wrong.ask("Wrong?", pictures[:1], **EIGHT)
    marks = ["[picture 1: 230 x 110]", bad, "[forgotten: <image> Wrong?]"]
    assert out == "\n".join([first, *marks, chat.ask("Right?", **EIGHT), ""])
    assert err == "error: nothing was asked yet\n"


def test_errors_end_nothing_and_keep_what_is_attached(
    talk: Callable[..., Any], qwen: Loaded, pictures: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "there.md").write_text("mine")
    attempts = {
        "/image nowhere.png": "'nowhere.png' does not exist",
        "<image> <image>?": "2 <image> in the question",
        "/imag x": "did you mean '/image'",
        "/image": "needs a path",
        "/video": "needs a path",
        "/video nowhere.mp4 4": "'nowhere.mp4' does not exist",
        f"/save {tmp_path}/new.jsonl": "nothing was asked yet",
        "/save notes.txt": ".jsonl or .md",
        "/set temperatur 1": "did you mean 'temperature'",
        "/set temperature x": "temperature = 'x': must be a number",
        "/set top_p 2": "top_p 2 is not in (0, 1]",
        "/set top_p": "top_p is not set",
        f"/save {'long' * 100}.md": "nothing was asked yet",
    }
    out, err = talk("\n".join([f"/image {pictures[0]}", *attempts, "Hm?", f"/save {tmp_path}/there.md"]) + "\n")
    errors = err.splitlines()
    assert len(errors) == len(attempts) + 1
    for line, (typed_line, message) in zip(errors, attempts.items(), strict=False):
        assert line.startswith("error: ")
        assert message in line, typed_line
    assert "is there already" in errors[-1]
    assert (tmp_path / "there.md").read_text() == "mine"
    assert out.endswith(Chat(qwen).ask("Hm?", pictures[:1], **EIGHT) + "\n")


def test_what_generate_refuses_ends_nothing(talk: Callable[..., Any], qwen: Loaded) -> None:
    out, err = talk("/set exponential_decay_length_penalty 3\nHm?\n/set exponential_decay_length_penalty\nHm?\n")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out.endswith(f"max_new_tokens=8\n{Chat(qwen).ask('Hm?', **EIGHT)}\n")


def test_whatever_goes_wrong_ends_nothing(talk: Callable[..., Any], qwen: Loaded) -> None:
    class Failing(Chat):
        error: Exception = KeyError("what nobody thought of")

        def ask(self, question: str, *args: object, **kwargs: object) -> Any:
            if question != "Hm?":
                raise self.error
            return super().ask(question, *args, **kwargs)  # type: ignore[call-overload]

    good = Chat(qwen).ask("Hm?", **EIGHT)
    out, err = talk("/set forced_eos_token_id 99999\nHm?\n/set forced_eos_token_id\nFail\nHm?\n", chat=Failing(qwen))
    assert out.endswith(f"max_new_tokens=8\n{good}\n")
    assert [line.split(" ")[:2] for line in err.splitlines()] == [
        ["error:", "forced_eos_token_id"], ["error:", "'what"],
    ]  # fmt: skip
    Failing.error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    out, err = talk("Fail\nHm?\n", chat=Failing(qwen))
    assert (out, err) == (f"{good}\n", f"error: {NO_MEMORY}\n")
    Failing.error = BrokenPipeError()
    with pytest.raises(BrokenPipeError):
        talk("Fail\n", chat=Failing(qwen))


def test_an_empty_system_message_is_saved(talk: Callable[..., Any], qwen: Loaded, tmp_path: Path) -> None:
    """Without it the line would be asked again with the template's."""
    talk(f"Hm?\n/save {tmp_path}/said.jsonl\n", system="")
    line = (tmp_path / "said.jsonl").read_text(encoding="utf-8")
    assert json.loads(line)["conversations"][0] == {"from": "system", "value": ""}
    asked = ask_line(line, Reading(qwen.tiles))
    assert asked.question.turns[0] == Turn("system", "")


def test_beams_of_the_checkpoint_are_not_streamed(
    talk: Callable[..., Any], qwen: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = "Say a long word."
    plain = Chat(qwen).ask(question, **EIGHT)
    beams = Chat(qwen).ask(question, num_beams=3, **EIGHT)
    monkeypatch.setattr(qwen.model.language_model.generation_config, "num_beams", 3)
    out, err = talk(f"{question}\n/clear\n/set num_beams 1\n{question}\n")
    assert (out, err) == (f"{beams}\nmax_new_tokens=8 num_beams=1\n{plain}\n", "")
    assert beams != plain


@pytest.mark.parametrize("word", ["/quit", "/exit", "/quit now"])
def test_quit(talk: Callable[..., Any], word: str) -> None:
    assert talk(f"{word}\n/help\n") == ("", "")


def test_settings(talk: Callable[..., Any], qwen: Loaded) -> None:
    out, err = talk("/set\n/set max_new_tokens=3\nHm?\n/set num_beams  3\n/clear\nHm?\n/set max_new_tokens\n")
    assert err == ""
    assert (
        out.splitlines()
        == "\n".join(
            [
                "max_new_tokens=8",
                "max_new_tokens=3",
                Chat(qwen).ask("Hm?", max_new_tokens=3),
                "max_new_tokens=3 num_beams=3",
                Chat(qwen).ask("Hm?", max_new_tokens=3, num_beams=3),
                "num_beams=3",
            ]
        ).splitlines()
    )


def test_help(talk: Callable[..., Any]) -> None:
    assert talk("/help\n")[0].splitlines() == [*HELP.values(), LONG]
    assert all(line.startswith(name) for name, line in HELP.items())


def test_figures(talk: Callable[..., Any], qwen: Loaded) -> None:
    """The number of tokens is that of the answer, its end marker included."""
    out, err = talk("Hm?\n", stats=True)
    (_, answer), *_ = answers(qwen, [ask_line({"question": "Hm?"}, Reading(qwen.tiles)).question], **EIGHT)
    assert isinstance(answer, Answer)
    match = re.fullmatch(r"\[(\d+) tokens, (\d+\.\d) tokens/s, first after (\d+\.\d\d) s\]\n", err)
    assert match, err
    assert int(match[1]) == answer.tokens
    assert float(match[2]) > 0
    assert out == answer.text + "\n"


def test_ctrl_c_leaves_at_the_prompt_and_stops_an_answer(
    talk: Callable[..., Any], qwen: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Chat):
        def ask(self, *args: object, **kwargs: object) -> Iterator[str]:  # type: ignore[override]
            yield "I was"
            raise KeyboardInterrupt

    out, _ = talk("Hm?\n/undo\n/help\n", chat=Interrupted(qwen))
    assert out.startswith("I was\n[stopped")
    assert "/image PATH" in out

    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupt)
    talk("")


# -- what is saved ----------------------------------------------------------------------------------------------------


def test_saved_to_train_on_and_to_ask_again(
    talk: Callable[..., Any], qwen: Loaded, pictures: list[Path], clip: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The line is of the training format, and asked again it gives the last answer."""
    monkeypatch.chdir(pictures[0].parent)
    path = tmp_path / "said.jsonl"
    lines = f"/image {pictures[1].name}\nFirst?\n/video {clip} 3\nSecond?\n/save {path}\nThird?\n/save '{path}'\n"
    out, err = talk(lines, system="Be kind.")
    assert err == ""
    assert out.endswith(f"[saved: {path}]\n")
    (line,) = path.read_text(encoding="utf-8").splitlines()
    record = parse_record(line)
    chat = Chat(qwen, "Be kind.")
    said = [
        chat.ask("First?", pictures[1:2], **EIGHT),
        chat.ask("Second?", video=clip, num_segments=3, **EIGHT),
        chat.ask("Third?", **EIGHT),
    ]
    texts = ["Be kind.", "<image>\nFirst?", said[0], "<video>\nSecond?", said[1], "Third?", said[2]]
    assert [turn.text for turn in record.turns] == texts
    assert record.images == (str(pictures[1].resolve()),)
    assert [video.name for video in record.videos] == [str(clip.resolve())]
    asked = ask_line(line, Reading(qwen.tiles))
    assert asked.reference == said[2]
    (_, again), *_ = answers(qwen, [asked.question], **EIGHT)
    assert isinstance(again, Answer)
    assert again.text == said[2]


def test_the_page(pictures: list[Path]) -> None:
    rounds = [
        Round("<image>\nWhat?", (str(pictures[0]),), None, "A dog."),
        Round("<video>\nAnd?", (), Video("a b.mp4", 4), "Two."),
    ]
    page = to_markdown(rounds, "Be kind.")
    assert page.splitlines()[::2][0] == "*Be kind.*"
    for part in (f"![picture](<{pictures[0]}>)", "**Question:** \\<image>\nWhat?", "**Answer:** A dog.", "/a b.mp4>)"):
        assert part in page
    two = [Round("a", (), Video("a.mp4", 2), "b"), Round("c", (), Video("b.mp4", 3), "d")]
    assert json.loads(to_line(two))["num_segments"] == [2, 3]


# -- decoding arguments -----------------------------------------------------------------------------------------------


def test_decoding_arguments() -> None:
    words = ["top_k=5", "temperature=0.5", "do_sample=True", "stop_strings=end", "suppress_tokens=[1, 2]", "min_p=null"]
    assert read_settings(words) == {
        "top_k": 5, "temperature": 0.5, "do_sample": True, "stop_strings": "end", "suppress_tokens": [1, 2],
        "min_p": None,
    }  # fmt: skip
    for word, message in (
        ("top_k", "write NAME=VALUE"),
        ("topk=3", "did you mean 'top_k'"),
        ("top_k=3.5", "must be a whole number"),
        ("use_cache=1", "must be true or false"),
        ("repetition_penalty=true", "must be a number"),
        ("num_return_sequences=2", "cannot be set here"),
        ("streamer=1", "is no decoding argument"),
        ("_from_model_config=1", "is no decoding argument"),
        ("max_new_tokens=0", "no room for an answer"),
        ("cache_implementation=nonsense", "cache_implementation"),
        ("penalty_alpha=0.6", "penalty_alpha cannot be set here: transformers left it to code from the hub"),
        ("guidance_scale=2", "guidance_scale cannot be set here: it needs the prompt's ids"),
        ("assistant_early_exit=1", "assistant_early_exit cannot be set here"),
        ("output_scores=true", "output_scores cannot be set here: the answer is a text"),
        ("bad_words_ids=3", "bad_words_ids = '3': must be a list"),
        ("max_length=9", "use max_new_tokens"),
        ("top_k=NaN", "top_k = 'NaN': must be finite"),
        ("repetition_penalty=Infinity", "must be finite"),
        ("max_new_tokens=1e400", "must be finite"),
        ("watermarking_config=1", "watermarking_config cannot be set here"),
        ("num_beams=0", "num_beams 0: at least 1"),
        ("stop_strings=[1]", "a text or a list of texts"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            read_settings([word])
    assert read_settings(["stop_strings=12", 'bad_words_ids=[[3, 4]]']) == {
        "stop_strings": "12", "bad_words_ids": [[3, 4]],
    }  # fmt: skip
    check_settings({"temperature": 0.0, "top_p": 0.5})


def test_arguments_that_are_refused_do_fail_in_generate(qwen: Loaded) -> None:
    """Should a later transformers have them again, or these models take them, this fails."""
    ids = torch.from_numpy(prompt_ids(qwen, [Turn("human", "Hm?")], []))[None]
    for name, value in (
        ("penalty_alpha", 0.6),
        ("guidance_scale", 2.0),
        ("dola_layers", "low"),
        ("token_healing", True),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            qwen.model.generate(input_ids=ids, **{name: value}, **EIGHT)
