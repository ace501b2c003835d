"""InternVLChatModel.forward and generate: pictures, loss, dummy tile, refusals."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from internvl_chat.errors import ConfigError
from internvl_chat.model.chat import normalize_tiles
from internvl_chat.model.loss import ChunkedLMHead

MODULES = (
    "vision_model",
    "mlp1",
    "language_model.model.embed_tokens",
    "language_model.model",
    "language_model.lm_head",
)


def test_uint8_tiles_are_normalised_inside(tiny_model):
    model = tiny_model()
    tiles = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    floats = (tiles.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(normalize_tiles(tiles, "imagenet"), floats)
    with torch.no_grad():
        features = model.extract_feature(tiles)
        assert features.shape == (2, model.config.num_image_token, model.config.hidden_size)
        torch.testing.assert_close(features, model.extract_feature(floats), atol=1e-5, rtol=1e-5)
        model.config.normalize_type = "siglip"
        assert (model.extract_feature(tiles) - features).abs().max() > 1e-3


def test_loss_is_the_weighted_sum_over_the_denominator(tiny_model, make_sample):
    model = tiny_model().train()
    sample = make_sample(model, 25, 2, 1)
    ids, labels = sample["input_ids"][None], sample["labels"][None]
    weights = torch.rand(labels.shape)
    inputs = {"input_ids": ids, "labels": labels, "pixel_values": sample["pixel_values"]}
    logits = model(**inputs, return_logits=True).logits
    ce = F.cross_entropy(logits[0, :-1], labels[0, 1:], ignore_index=-100, reduction="none")
    supervised = labels[0, 1:] != -100
    expected = (ce * weights[0, 1:] * supervised).sum()
    for denominator in (7.0, torch.tensor(7.0), 7):
        loss = model(**inputs, loss_weight=weights, num_items_in_batch=denominator).loss
        torch.testing.assert_close(loss, expected / 7, atol=1e-6, rtol=1e-6)
    by_weight = expected / (weights[0, 1:] * supervised).sum()
    torch.testing.assert_close(model(**inputs, loss_weight=weights).loss, by_weight)
    torch.testing.assert_close(model(**inputs).loss, ce.sum() / supervised.sum())
    assert model(**inputs).logits is None


def test_gradients_of_the_chunked_loss_equal_those_through_logits(tiny_model, make_sample):
    model = tiny_model().train()
    sample = make_sample(model, 25, 2, 1)
    inputs = {"input_ids": sample["input_ids"][None], "labels": sample["labels"][None]}
    inputs["pixel_values"] = sample["pixel_values"]
    grads = []
    for return_logits in (True, False):
        model.zero_grad()
        model(**inputs, return_logits=return_logits).loss.backward()
        grads.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, expected in grads[0].items():
        torch.testing.assert_close(grads[1][name], expected, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize("supervised", [True, False])
def test_text_only_batch_gives_every_parameter_a_gradient(tiny_model, make_sample, supervised):
    """Under ZeRO and DDP a rank without pictures must still take part in every collective."""
    model = tiny_model().train()
    calls: list[str] = []
    for name in MODULES:
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.append(name))
    sample = make_sample(model, 12, 0, 1)
    labels = sample["labels"][None] if supervised else torch.full((1, 12), -100)
    loss = model(input_ids=sample["input_ids"][None], labels=labels).loss
    assert (loss > 0) == supervised and torch.isfinite(loss)
    loss.backward()
    assert calls == list(MODULES)
    calls.clear()
    pictures = make_sample(model, 25, 2, 1)
    model(input_ids=pictures["input_ids"][None], labels=pictures["labels"][None], pixel_values=pictures["pixel_values"])
    assert calls == list(MODULES)  # the order counts too: under ZeRO-3 each call gathers weights from all ranks
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.abs().sum() == 0 for p in model.vision_model.parameters())
    assert all(p.grad.abs().sum() == 0 for p in model.mlp1.parameters())
    with torch.no_grad():
        calls.clear()
        model(input_ids=sample["input_ids"][None])
    assert "vision_model" not in calls  # nothing to learn, nothing to run


def test_image_flags_leave_tiles_out(tiny_model, make_sample):
    model = tiny_model().train()
    sample = make_sample(model, 25, 2, 1)
    inputs = {"input_ids": sample["input_ids"][None], "labels": sample["labels"][None]}
    expected = model(**inputs, pixel_values=sample["pixel_values"]).loss
    junk = torch.cat([sample["pixel_values"], torch.zeros(1, 3, 56, 56, dtype=torch.uint8)])
    for flags in (torch.tensor([1, 1, 0]), torch.tensor([[1], [1], [0]])):
        torch.testing.assert_close(model(**inputs, pixel_values=junk, image_flags=flags).loss, expected)
    text = make_sample(model, 12, 0, 1)
    inputs = {"input_ids": text["input_ids"][None], "labels": text["labels"][None]}
    plain = model(**inputs).loss
    flagged = model(**inputs, pixel_values=junk[:1], image_flags=torch.tensor([0])).loss
    torch.testing.assert_close(flagged, plain)


@pytest.mark.parametrize("tiles", [0, 1, 3])
def test_placeholder_mismatch_names_both_counts(tiny_model, make_sample, tiles):
    model = tiny_model().train()
    sample = make_sample(model, 25, 2, 1)
    pixels = torch.zeros(tiles, 3, 56, 56, dtype=torch.uint8) if tiles else None
    per_tile = model.config.num_image_token
    message = f"{2 * per_tile} image placeholders in the text but {tiles * per_tile} image features"
    with pytest.raises(ValueError, match=message):
        model(input_ids=sample["input_ids"][None], labels=sample["labels"][None], pixel_values=pixels)
    with pytest.raises(ValueError, match=message):
        model.generate(pixels, sample["input_ids"][None])


def test_unknown_placeholder_is_a_config_error(tiny_model, make_sample):
    model = tiny_model()
    sample = make_sample(model, 25, 2, 1)
    model.config.img_context_token_id = None
    with pytest.raises(ConfigError, match="img_context_token_id"):
        model(input_ids=sample["input_ids"][None], pixel_values=sample["pixel_values"])
    assert model(input_ids=sample["input_ids"][None]).logits is not None  # text alone needs no placeholder


def test_contradicting_inputs_are_refused(tiny_model):
    model = tiny_model()
    ids = torch.ones(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="one of them"):
        model()
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="one of them"):
        model(input_ids=ids, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="need input_ids"):
        model(inputs_embeds=embeds, pixel_values=torch.zeros(1, 3, 56, 56))
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, model(input_ids=ids).logits)


def test_padding_does_not_count(tiny_model, make_sample):
    """The loss of a padded batch is that of its samples, whatever the padding holds and on which side it is."""
    model = tiny_model().train()
    samples = [make_sample(model, 20, 1, 1), make_sample(model, 12, 1, 2)]
    parts = [
        model(
            input_ids=s["input_ids"][None],
            labels=s["labels"][None],
            pixel_values=s["pixel_values"],
            num_items_in_batch=1,
        ).loss
        for s in samples
    ]
    pixels = torch.cat([s["pixel_values"] for s in samples])
    filler = torch.zeros(8, dtype=torch.long)
    ignored = torch.full((8,), -100)
    for left in (False, True):
        order = (lambda a, b: torch.cat([b, a])) if left else (lambda a, b: torch.cat([a, b]))
        ids = torch.stack([samples[0]["input_ids"], order(samples[1]["input_ids"], filler)])
        labels = torch.stack([samples[0]["labels"], order(samples[1]["labels"], ignored)])
        mask = torch.stack([torch.ones(20), order(torch.ones(12), torch.zeros(8))]).long()
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        out = model(
            input_ids=ids,
            labels=labels,
            attention_mask=mask,
            pixel_values=pixels,
            position_ids=positions,
            num_items_in_batch=1,
        )
        torch.testing.assert_close(out.loss, sum(parts), atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("llm", ["qwen2", "phi3"])
def test_generate_equals_repeated_forward(tiny_model, make_sample, llm):
    model = tiny_model(llm)
    sample = make_sample(model, 20, 2, 1)
    ids, pixels = sample["input_ids"][None], sample["pixel_values"]
    new = model.generate(pixels, ids, max_new_tokens=6, do_sample=False, eos_token_id=None)
    grown = ids
    with torch.no_grad():
        for _ in range(6):
            logits = model(input_ids=grown, pixel_values=pixels, logits_to_keep=1).logits
            assert logits.shape[1] == 1
            grown = torch.cat([grown, logits[:, -1].argmax(-1, keepdim=True)], 1)
        features = model.extract_feature(pixels)
    assert torch.equal(new, grown[:, 20:])
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    again = model.generate(input_ids=ids, visual_features=features, **options)
    assert torch.equal(again, new)


def test_generate_left_padded_batch(tiny_model, make_sample):
    model = tiny_model()
    samples = [make_sample(model, 20, 2, 1), make_sample(model, 13, 1, 2)]
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    alone = [model.generate(s["pixel_values"], s["input_ids"][None], **options) for s in samples]
    ids = torch.stack([samples[0]["input_ids"], torch.cat([torch.zeros(7).long(), samples[1]["input_ids"]])])
    mask = torch.tensor([[1] * 20, [0] * 7 + [1] * 13])
    both = model.generate(torch.cat([s["pixel_values"] for s in samples]), ids, mask, **options)
    assert torch.equal(both, torch.cat(alone))


def test_vocabulary_resize_keeps_the_chunked_head(tiny_model, make_sample):
    model = tiny_model().train()
    before = model.config.llm_config.vocab_size
    model.resize_token_embeddings(before + 5)
    assert model.config.llm_config.vocab_size == before + 5
    assert isinstance(model.get_output_embeddings(), ChunkedLMHead)
    sample = make_sample(model, 12, 0, 1)
    assert torch.isfinite(model(input_ids=sample["input_ids"][None], labels=sample["labels"][None]).loss)
    model.language_model.resize_token_embeddings(before + 7)  # behind our back: the head is adopted again on use
    assert torch.isfinite(model(input_ids=sample["input_ids"][None], labels=sample["labels"][None]).loss)


def test_bfloat16_training_step(tiny_model, make_sample, pack):
    model = tiny_model().to(torch.bfloat16).train()
    row = pack([make_sample(model, 21, 2, 1), make_sample(model, 13, 0, 2)])
    loss = model(**row).loss
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in model.parameters())
    full = tiny_model().train()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = full(**row).loss
    mixed.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in full.parameters())
    assert abs(mixed.item() - full(**row).loss.item()) < 0.05
