"""What the model cards of InternVL2 show, call by call, on a tiny checkpoint of each kind, against ``Chat``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest
import torch
from transformers import AutoTokenizer as LibraryTokenizer
from transformers import GenerationConfig, TextIteratorStreamer

from internvl_chat.constants import GROUNDING_TOKENS
from internvl_chat.data.record import Turn
from internvl_chat.errors import ConfigError, DataError
from internvl_chat.infer.card import AutoModel, AutoTokenizer, load_image, load_video
from internvl_chat.infer.chat import Chat
from internvl_chat.infer.chat_model import ChatModel
from internvl_chat.infer.load import load

GREEDY = dict(max_new_tokens=12, do_sample=False)  # noqa: C408 (as the cards write it)
CLIP = Path(__file__).parents[1] / "goldens/videos/clip.mp4"
KINDS = ("qwen2", "qwen3", "qwen3_moe", "llama", "phi3", "internlm2")


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, tiny_folder: Callable[[str], Path]) -> Path:
    return tiny_folder(request.param)


@pytest.fixture(scope="module")
def model(path: Path) -> ChatModel:
    return AutoModel.from_pretrained(
        path, torch_dtype=torch.float32, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True
    ).eval()


@pytest.fixture(scope="module")
def tokenizer(path: Path) -> object:
    return AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)


@pytest.fixture(scope="module")
def chat(model: ChatModel) -> Callable[[], Chat]:
    return lambda: Chat(model)


def image(model: ChatModel, path: Path, max_num: int) -> torch.Tensor:
    return load_image(path, input_size=model.tiles.size, max_num=max_num)


def test_pure_text_in_two_rounds(model, tokenizer, chat) -> None:
    ours = chat()
    expected = [ours.ask("Hello, who are you?", **GREEDY), ours.ask("Can you tell me a story?", **GREEDY)]
    response, history = model.chat(tokenizer, None, "Hello, who are you?", GREEDY, history=None, return_history=True)
    assert response == expected[0]
    assert history == [("Hello, who are you?", response)]
    before = list(history)
    response, longer = model.chat(
        tokenizer, None, "Can you tell me a story?", GREEDY, history=history, return_history=True
    )
    assert response == expected[1]
    assert longer == [*before, ("Can you tell me a story?", response)]
    assert history == before, "the caller's list is his"


def test_one_picture_in_one_round_and_in_two(model, tokenizer, chat, pictures) -> None:
    pixel_values = image(model, pictures[0], model.tiles.max_tiles).to(torch.float32)
    ours = chat()
    expected = [ours.ask("Please describe it.", pictures[:1], **GREEDY), ours.ask("Write a poem.", **GREEDY)]
    assert model.chat(tokenizer, pixel_values, "<image>\nPlease describe it.", GREEDY) == expected[0]
    assert model.chat(tokenizer, pixel_values, "Please describe it.", GREEDY) == expected[0], "the tag is put first"
    response, history = model.chat(
        tokenizer, pixel_values, "<image>\nPlease describe it.", GREEDY, history=None, return_history=True
    )
    assert history == [("<image>\nPlease describe it.", expected[0])]
    response = model.chat(tokenizer, pixel_values, "Write a poem.", GREEDY, history=history)
    assert response == expected[1]


def test_several_pictures_as_one(model, tokenizer, chat, pictures) -> None:
    """Combined: the tiles of both belong to one ``<image>``."""
    pixel_values = torch.cat([image(model, picture, 2) for picture in pictures[:2]])
    combined = model.chat(tokenizer, pixel_values, "<image>\nDescribe the two.", GREEDY)
    row = model.encoder.encode_prompt([Turn("human", "<image>\nDescribe the two.")], [len(pixel_values)])
    out = model.generate(
        input_ids=torch.from_numpy(row)[None], pixel_values=pixel_values, eos_token_id=list(model.stop_ids), **GREEDY
    )[0].tolist()
    end = next((i for i, t in enumerate(out) if t in model.stop_ids), len(out))
    shown = [token for token in out[:end] if token not in model.hidden_ids]
    assert combined == tokenizer.decode(shown).strip()


def test_several_pictures_apart_in_two_rounds(model, tokenizer, chat, pictures) -> None:
    limit = model.tiles.shared_among(2).max_tiles
    tiles = [image(model, picture, limit) for picture in pictures[:2]]
    num_patches_list = [len(part) for part in tiles]
    question = "Image-1: <image>\nImage-2: <image>\nDescribe the two images in detail."
    ours = chat()
    expected = [ours.ask(question, pictures[:2], **GREEDY), ours.ask("What differs?", **GREEDY)]
    response, history = model.chat(
        tokenizer, torch.cat(tiles), question, GREEDY, num_patches_list=num_patches_list, history=None,
        return_history=True,
    )  # fmt: skip
    assert response == expected[0]
    response, history = model.chat(
        tokenizer, torch.cat(tiles), "What differs?", GREEDY, num_patches_list=num_patches_list, history=history,
        return_history=True,
    )  # fmt: skip
    assert (response, len(history)) == (expected[1], 2)


def test_a_batch(model, tokenizer, chat, pictures) -> None:
    tiles = [image(model, picture, model.tiles.max_tiles) for picture in pictures[:3]]
    num_patches_list = [len(part) for part in tiles]
    questions = ["<image>\nDescribe the image in detail.", "<image>\nWhat?", "<image>\nTell me, shortly, what is it?"]
    responses = model.batch_chat(
        tokenizer, torch.cat(tiles), num_patches_list=num_patches_list, questions=questions, generation_config=GREEDY
    )
    asked = [chat().ask(q, [picture], **GREEDY) for q, picture in zip(questions, pictures, strict=False)]
    assert responses == asked
    bare = [question.removeprefix("<image>\n") for question in questions]
    assert model.batch_chat(tokenizer, torch.cat(tiles), bare, GREEDY, image_counts=num_patches_list) == asked
    assert model.batch_chat(tokenizer, None, ["What?", "Who is it?"], GREEDY) == [
        chat().ask("What?", **GREEDY),
        chat().ask("Who is it?", **GREEDY),
    ]


def test_a_video_in_two_rounds(model, tokenizer, chat) -> None:
    pixel_values, num_patches_list = load_video(CLIP, input_size=model.tiles.size, num_segments=4, max_num=1)
    assert num_patches_list == [1] * 4
    video_prefix = "".join(f"Frame-{i + 1}: <image>\n" for i in range(len(num_patches_list)))
    ours = chat()
    expected = [ours.ask("What happens?", video=CLIP, num_segments=4, **GREEDY), ours.ask("And then?", **GREEDY)]
    response, history = model.chat(
        tokenizer, pixel_values, video_prefix + "What happens?", GREEDY, num_patches_list=num_patches_list,
        history=None, return_history=True,
    )  # fmt: skip
    assert response == expected[0]
    assert model.chat(
        tokenizer, pixel_values, "And then?", GREEDY, num_patches_list=num_patches_list, history=history
    ) == expected[1]  # fmt: skip


def test_streaming_output(model, tokenizer, chat, pictures) -> None:
    """With transformers' own streamer, in a thread, ended by the template's separator or by the streamer."""
    expected = chat().ask("What?", pictures[:1], **GREEDY)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True, timeout=60)
    thread = Thread(
        target=model.chat,
        kwargs=dict(  # noqa: C408
            tokenizer=tokenizer, pixel_values=image(model, pictures[0], model.tiles.max_tiles), question="What?",
            history=None, return_history=False, generation_config=dict(GREEDY, streamer=streamer),
        ),
    )  # fmt: skip
    thread.start()
    generated_text = ""
    for new_text in streamer:
        if new_text == model.conv_template.sep:
            break
        generated_text += new_text
    thread.join()
    for token in GROUNDING_TOKENS:  # special in the tokenizer: the streamer's loss
        expected = expected.replace(token, "")
    assert generated_text.strip() == expected.strip()


def test_a_batch_in_which_some_questions_have_tags(qwen, pictures) -> None:
    """As in the original, each question without one gets one, as long as there are pictures for them."""
    tiles = [image(qwen, picture, qwen.tiles.max_tiles) for picture in pictures[:2]]
    counts = [len(part) for part in tiles]
    alone = [Chat(qwen).ask(q, [p], **GREEDY) for q, p in zip(("A <image>?", "B?"), pictures, strict=False)]
    assert qwen.batch_chat(qwen.tokenizer, torch.cat(tiles), ["A <image>?", "B?"], GREEDY, counts) == alone
    text = Chat(qwen).ask("C?", **GREEDY)
    asked = qwen.batch_chat(
        qwen.tokenizer, torch.cat(tiles), ["A <image>?", "C?", "<image>\nB?"], GREEDY, counts, None, False
    )
    assert asked == [alone[0], text, alone[1]]


def test_ends_and_pads_of_the_users_own(qwen) -> None:
    """Whatever ends an answer: rows that are done are filled up, and that is not shown."""
    questions = ["What?", "Who is it?", "Where was it taken, and when?"]
    whole = [Chat(qwen).ask(q, **GREEDY) for q in questions]
    ids = qwen.tokenizer(whole[0])["input_ids"]
    found = qwen.batch_chat(qwen.tokenizer, None, questions, dict(GREEDY, pad_token_id=40))
    assert found == whole
    cut = qwen.batch_chat(qwen.tokenizer, None, questions, dict(GREEDY, eos_token_id=ids[3], pad_token_id=40))
    assert len(cut[0]) < len(whole[0])
    assert whole[0].startswith(cut[0][:3])


# -- what is particular to a call, on one kind ------------------------------------------------------------------------


@pytest.fixture()
def one(qwen) -> ChatModel:
    return qwen


def test_generation_settings_may_be_an_object_and_are_left_alone(one: ChatModel) -> None:
    settings = dict(GREEDY)
    text = one.chat(one.tokenizer, None, "What?", settings)
    assert settings == GREEDY
    assert one.chat(one.tokenizer, None, "What?", GenerationConfig(max_new_tokens=12)) == text
    torch.manual_seed(3)
    sampled = one.chat(one.tokenizer, None, "What?", dict(max_new_tokens=12, do_sample=True, temperature=3.0))  # noqa: C408
    assert sampled != text
    assert one.chat(one.tokenizer, None, "What?", dict(GREEDY, repetition_penalty=5.0)) != text


def test_a_system_message_of_ones_own(tiny_folder, one: ChatModel) -> None:
    told = load(tiny_folder("qwen2"), device="cpu", system_message="Answer in rhymes.")
    assert told.conv_template.system_message == "Answer in rhymes."
    assert told.chat(told.tokenizer, None, "What?", GREEDY) != one.chat(one.tokenizer, None, "What?", GREEDY)
    asked = Chat(one, system="Answer in rhymes.").ask("What?", **GREEDY)
    assert told.chat(told.tokenizer, None, "What?", GREEDY) == asked


def test_the_model_itself_is_reached(one: ChatModel) -> None:
    assert one.config is one.model.config
    assert one.eval() is one
    assert one.to(torch.float32) is one
    assert (one.device.type, one.dtype) == ("cpu", torch.float32)
    with pytest.raises(AttributeError, match="no attribute 'bogus'"):
        _ = one.bogus
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA device here"):
            one.cuda()


def test_verbose_logs_the_prompt_without_its_placeholders(one, pictures, caplog) -> None:
    with caplog.at_level("INFO", logger="internvl_chat"):
        text = one.chat(one.tokenizer, image(one, pictures[0], 3), "What?", GREEDY, verbose=True)
    assert "<img></img>\nWhat?" in caplog.text
    assert text in caplog.text


def test_what_does_not_belong_together(one: ChatModel, pictures: list[Path], tiny_folder) -> None:
    tiles = image(one, pictures[0], 3)
    for question, patches, message in (
        ("<image> <image>", None, "2 <image> in the conversation, pictures given: 1"),
        ("<image>", [1, len(tiles) - 1], "1 <image> in the conversation, pictures given: 2"),
        ("<image>", [1], rf"adds up to 1 tiles, pixel_values has {len(tiles)}"),
    ):
        with pytest.raises(DataError, match=message):
            one.chat(one.tokenizer, tiles, question, GREEDY, num_patches_list=patches)
    with pytest.raises(DataError, match="0 <image> in the conversation, pictures given: 1"):
        one.chat(one.tokenizer, tiles, "And?", GREEDY, history=[("What?", "This.")])
    with pytest.raises(DataError, match="3 <image> in the questions, pictures given: 2"):
        one.batch_chat(one.tokenizer, tiles, ["<image> <image>", "<image>"], GREEDY, [1, len(tiles) - 1])
    with pytest.raises(DataError, match=r"shape \(1, 3, 448, 448\), this model's tiles are .* take input_size=56"):
        one.chat(one.tokenizer, load_image(pictures[0], max_num=1), "What?", GREEDY)
    for unlike in ({"IMG_START_TOKEN": "[img]"}, {"history": []}, {"return_history": True}):
        with pytest.raises(ConfigError, match=r"leave them out|knows no history"):
            one.batch_chat(one.tokenizer, tiles, ["What?"], GREEDY, **unlike)
    with pytest.raises(ConfigError, match="not the model's"):
        one.chat(load(tiny_folder("phi3"), device="cpu").tokenizer, None, "What?", GREEDY)
    same = LibraryTokenizer.from_pretrained(tiny_folder("qwen2"))
    assert one.chat(same, None, "What?", GREEDY) == one.chat(one.tokenizer, None, "What?", GREEDY)


def test_loading_takes_the_words_of_the_cards_and_no_others(tiny_folder) -> None:
    folder = tiny_folder("qwen2")
    assert AutoModel.from_pretrained(folder, torch_dtype=torch.bfloat16, use_flash_attn=False).dtype == torch.bfloat16
    with pytest.raises(ConfigError, match=r"no argument 'trust_remote_cod' here; did you mean 'trust_remote_code'"):
        AutoModel.from_pretrained(folder, trust_remote_cod=True)
    with pytest.raises(ConfigError, match="write load_in_8bit=True or load_in_4bit=True instead"):
        AutoModel.from_pretrained(folder, quantization_config=object())
    assert AutoModel.from_pretrained(folder, system_message="Rhyme.").conv_template.system_message == "Rhyme."
    with pytest.raises(ConfigError, match="no argument 'revision'"):
        AutoTokenizer.from_pretrained(folder, revision="main")


def test_the_short_way() -> None:
    import internvl_chat

    assert internvl_chat.load is load
    assert internvl_chat.Chat is Chat
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = internvl_chat.lod
