"""The speech LLM: padding changes nothing, one placeholder becomes the clip, saving and PEFT work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import tiny_clip, tiny_lm, tiny_processor, tiny_speech_model
from transformers import AutoModel, AutoProcessor, WhisperFeatureExtractor
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from rbalign.errors import DataError, UsageError
from rbalign.speechlm.connector import from_parts, save_connector
from rbalign.speechlm.encoder import EncoderStates
from rbalign.speechlm.processing import collate_features, log_mel

ADAPTERS = ["ctc", "mlp"]
CLIPS = [tiny_clip(1.3), tiny_clip(2.515, 1), tiny_clip(0.93, 2)]
PROMPT = "<|im_start|>user\n<|audio|><|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def processor():  # type: ignore[no-untyped-def]
    return tiny_processor()


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_clip_does_not_depend_on_its_batch_mates(adapter: str, processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model(adapter)
    together = model.encode_audio(**processor(audio=CLIPS))
    adapted = model.adapt(together)
    for index, clip in enumerate(CLIPS):
        alone = model.encode_audio(**processor(audio=[clip]))
        assert torch.allclose(together.row(index), alone.row(0), atol=1e-5)
        assert torch.allclose(adapted[index], model.adapt(alone)[0], atol=1e-4)
    assert together.hidden[2, int(together.lengths[2]) :].abs().max() == 0


def test_stacked_rows_equal_the_batch(processor) -> None:  # type: ignore[no-untyped-def]
    states = tiny_speech_model().encode_audio(**processor(audio=CLIPS))
    again = EncoderStates.stack([states.row(index) for index in range(3)])
    assert torch.equal(again.hidden, states.hidden)
    assert torch.equal(again.lengths, states.lengths)


def test_features_equal_whispers_own_on_the_unpadded_clip() -> None:
    extractor = WhisperFeatureExtractor()
    for clip in CLIPS:
        expected = extractor(clip, sampling_rate=16000, padding="do_not_pad", return_tensors="np").input_features[0]
        assert np.abs(log_mel(clip, extractor).numpy() - expected).max() < 1e-4


def test_a_full_window_goes_through_whispers_own_encoder_unchanged() -> None:
    model = tiny_speech_model()
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    original = WhisperEncoder(model.config.audio_config).eval()
    original.load_state_dict(model.encoder.state_dict())
    ours = model.encode_audio(features, torch.tensor([3000])).hidden
    assert torch.allclose(ours, original(features).last_hidden_state, atol=1e-5)


def test_audio_beyond_thirty_seconds_is_refused(processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model()
    assert model.encode_audio(**processor(audio=[tiny_clip(30.0)])).hidden.shape[1] == 1500
    with pytest.raises(DataError, match=r"30\.1 s is longer"):
        model.encode_audio(**processor(audio=[tiny_clip(30.1)]))


def test_a_very_short_clip_still_gives_a_position(processor) -> None:  # type: ignore[no-untyped-def]
    for adapter in ADAPTERS:
        model = tiny_speech_model(adapter)
        (position,) = model.adapt(model.encode_audio(**processor(audio=[tiny_clip(0.005)])))
        assert len(position) >= 1
    with torch.no_grad():
        model = tiny_speech_model("ctc")
        model.adapter.blank.bias.fill_(1e4)  # blank wins everywhere
        states = model.encode_audio(**processor(audio=CLIPS))
        assert [len(row) for row in model.adapt(states)] == [1, 1, 1]
        assert [len(row) for row in model.transcribe(model.hear(states))] == [1, 1, 1]


def test_ctc_positions_are_posterior_weighted_embeddings(processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model()
    states = model.encode_audio(**processor(audio=CLIPS[:1]))
    frames = model.adapter.frames(states)
    weight = model.get_input_embeddings().weight
    centred = torch.nn.functional.normalize(weight - weight.mean(0), dim=-1)
    logits = frames.hidden[0] @ centred.T
    everything = torch.cat([logits, frames.blank[0][:, None]], dim=-1).softmax(-1)
    kept = everything[:, -1] < model.config.blank_threshold
    best = logits.argmax(-1)
    positions, start = [], None
    for frame in range(len(best) + 1):
        same = start is not None and frame < len(best) and kept[frame] and best[frame] == best[start]
        if start is not None and not same:
            tokens = everything[start:frame, :-1].sum(0)  # weights (1 - blank) x P(token | not blank)
            positions.append(tokens / tokens.sum() @ weight)
            start = None
        if start is None and frame < len(best) and kept[frame]:
            start = frame
    (adapted,) = model.adapt(states)
    assert len(adapted) == len(positions) > 1
    assert torch.allclose(adapted, torch.stack(positions), atol=1e-4)
    assert len(model.transcribe(model.hear(states))[0]) == len(positions)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_placeholder_becomes_the_clip(adapter: str, processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model(adapter)
    texts = ["Hi there. <|audio|> and <|audio|>?", PROMPT]
    inputs = processor(text=texts, audio=CLIPS, padding_side="right")
    clips = model.adapt(model.encode_audio(inputs.input_features, inputs.feature_lengths))
    output = model(**inputs)
    ids = [processor.tokenizer(part, add_special_tokens=False, return_tensors="pt").input_ids[0]
           for part in ("Hi there. ", " and ", "?", *PROMPT.split("<|audio|>"))]  # fmt: skip
    text = [model.embed(part) for part in ids]
    rows = [torch.cat([text[0], clips[0], text[1], clips[1], text[2]]), torch.cat([text[3], clips[2], text[4]])]
    for row, logits in zip(rows, output.logits, strict=True):
        alone = model.language_model(inputs_embeds=row[None]).logits[0]
        assert torch.allclose(logits[: len(row)], alone, atol=1e-4)


def test_placeholders_and_clips_must_match(processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model()
    with pytest.raises(UsageError, match=r"1 <\|audio\|> placeholders for 2 clips"):
        model(**processor(text=[PROMPT], audio=CLIPS[:2]))
    with pytest.raises(UsageError, match=r"1 <\|audio\|> placeholders for 0 clips"):
        model.generate(**processor(text=[PROMPT]), max_new_tokens=1)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_generate_is_greedy_forward_whatever_the_batch(adapter: str, processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model(adapter)
    generated = model.generate(**processor(text=[PROMPT] * 3, audio=CLIPS), max_new_tokens=6, do_sample=False)
    before, after = (processor.tokenizer(p, add_special_tokens=False).input_ids for p in PROMPT.split("<|audio|>"))
    for index, clip in enumerate(CLIPS):
        states = model.encode_audio(**processor(audio=[clip]))
        prompts = model.audio_prompts(model.adapt(states), before, after)
        row = torch.cat([prompts.shared, prompts.rows[0]])
        for token in generated[index]:
            best = model.language_model(inputs_embeds=row[None]).logits[0, -1].argmax()
            assert token == best
            if token == model.language_model.config.eos_token_id:
                break
            row = torch.cat([row, model.embed(best[None])])


def test_text_alone_goes_to_the_llm(processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model()
    inputs = processor(text=["How do birds fly?", "Tell me a story"])
    direct = model.language_model.generate(**inputs, max_new_tokens=5, do_sample=False)
    ours = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert torch.equal(ours, direct[:, inputs.input_ids.shape[1] :])
    assert torch.allclose(model(**inputs).logits, model.language_model(**inputs).logits, atol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_labels_train_adapter_and_encoder_through_the_llm(adapter: str, processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model(adapter)
    inputs = processor(text=[PROMPT + "fine"] * 2, audio=CLIPS[:2], padding_side="right")
    labels = inputs.input_ids.clone()
    labels[:, :-2] = -100
    features = inputs.input_features.requires_grad_(True)
    output = model(**inputs, labels=labels)
    logits = model(**inputs).logits
    clips = model.adapt(model.encode_audio(features, inputs.feature_lengths))
    losses = []
    for index, clip in enumerate(clips):
        length = int(inputs.attention_mask[index].sum()) - 1 + len(clip)
        losses.append(torch.nn.functional.cross_entropy(logits[index, length - 3 : length - 1], labels[index, -2:]))
    assert output.loss.item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-5)
    output.loss.backward()
    assert features.grad is not None
    assert features.grad.abs().max() > 0
    assert model.adapter.project.weight.grad.abs().max() > 0
    assert model.encoder.conv1.weight.grad.abs().max() > 0


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_saved_and_loaded_by_the_auto_classes(adapter: str, processor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model(adapter)
    inputs = processor(text=[PROMPT] * 3, audio=CLIPS)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, read = AutoModel.from_pretrained(tmp_path).eval(), AutoProcessor.from_pretrained(tmp_path)
    assert torch.equal(again(**read(text=[PROMPT] * 3, audio=CLIPS)).logits, model(**inputs).logits)


def test_lora_reaches_the_llm_and_switches_off(processor) -> None:  # type: ignore[no-untyped-def]
    model = tiny_speech_model()
    inputs = processor(text=[PROMPT] * 3, audio=CLIPS)
    before = model(**inputs).logits
    targets = r"language_model\..*\.(q_proj|v_proj)"
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    assert not torch.allclose(tuned(**inputs).logits, before, atol=1e-3)
    assert tuned.generate(**inputs, max_new_tokens=2).shape == (3, 2)
    with tuned.disable_adapter():
        assert torch.allclose(tuned(**inputs).logits, before, atol=1e-6)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_connector_shares_the_llm_in_memory(adapter: str, processor, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    lm = tiny_lm()
    attention = lm.config._attn_implementation
    weights = {name: value.clone() for name, value in lm.state_dict().items()}
    model = tiny_speech_model(adapter, seed=5, language_model=lm)
    save_connector(model, tmp_path)
    again = from_parts(tmp_path, lm)
    assert again.language_model is lm
    assert lm.config._attn_implementation == attention
    assert all(torch.equal(value, weights[name]) for name, value in lm.state_dict().items())
    inputs = processor(text=[PROMPT] * 3, audio=CLIPS)
    states, expected = again.encode_audio(**processor(audio=CLIPS)), model.encode_audio(**processor(audio=CLIPS))
    assert torch.allclose(states.hidden, expected.hidden, atol=0.02)  # float16 on disk
    assert again.generate(**inputs, max_new_tokens=2).shape == (3, 2)


def test_connector_refuses_another_llm_and_a_bare_folder(tmp_path: Path) -> None:
    save_connector(tiny_speech_model(), tmp_path / "connector")
    with pytest.raises(DataError, match="other LLM weights"):
        from_parts(tmp_path / "connector", tiny_lm(seed=9))
    with pytest.raises(DataError, match="width 32 and 320 tokens, not 32 and 400"):
        from_parts(tmp_path / "connector", tiny_lm(vocab_size=400))
    with pytest.raises(DataError, match="no connector"):
        from_parts(tmp_path, tiny_lm())
    with pytest.raises(UsageError, match="from_parts"):
        AutoModel.from_pretrained(tmp_path / "connector")


def test_features_are_zero_beyond_each_clip() -> None:
    batch = collate_features([torch.ones(80, 3), torch.ones(80, 5)])
    assert batch["feature_lengths"].tolist() == [3, 5]
    assert batch["input_features"].sum((1, 2)).tolist() == [240.0, 400.0]
