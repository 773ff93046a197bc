"""Rows that say how tokens are written: unit length, alike where spelling is alike, silent at the start."""

import pytest
import torch
from tiny import tiny_clip, tiny_lm, tiny_processor, tiny_speech_model, tiny_tokenizer, tiny_whisper_config
from transformers import WhisperModel

from rbalign.errors import DataError
from rbalign.speechlm.connector import from_parts, new_model, save_connector, start_from
from rbalign.speechlm.letters import LONGEST, letter_rows, spelled

PIECES = [" France", " france", "france", " Frances", " Spain", "a", "", " internationalisation", " café", "!"]


def test_rows_have_unit_length_and_tell_tokens_apart():
    rows = letter_rows(spelled(PIECES), 256)
    assert rows.shape == (len(PIECES), 256)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(len(PIECES)))
    alike = rows @ rows.T
    assert alike.fill_diagonal_(0).max() < 0.97
    assert alike[0, 1] > 0.75  # only the capital differs
    assert alike[0, 3] > alike[0, 4] + 0.3  # one letter more is nearer than another name
    assert torch.equal(rows, letter_rows(spelled(PIECES), 256))


def test_codes_keep_space_capital_and_the_first_letters():
    codes = spelled(PIECES)
    assert codes.shape == (len(PIECES), 1 + LONGEST)
    assert codes[:5, 0].tolist() == [3, 1, 0, 3, 3]
    assert codes[0, 1:7].tolist() == [6, 18, 1, 14, 3, 5]
    assert (codes[7, 1:] > 0).all()
    assert codes[8, 4] == codes[9, 1] == 27


def lettered(tmp_path, letters=32, width=32):
    folder = tmp_path / "whisper"
    WhisperModel(tiny_whisper_config()).save_pretrained(folder)
    tokens = list(range(40, 90))
    pieces = tiny_tokenizer().batch_decode([[token] for token in tokens])
    shape = {"adapter_width": width, "adapter_heads": 4, "ctc_letters": letters}
    return new_model(folder, tiny_lm(), tokens, pieces if letters else (), seed=1, **shape)


def heard(model):
    inputs = tiny_processor()(audio=[tiny_clip(1.0, 3), tiny_clip(0.7, 4)], return_tensors="pt")
    with torch.no_grad():
        states = model.encode_audio(inputs["input_features"], inputs["feature_lengths"])
        return model.adapt(states), model.transcribe(states)


def test_letters_start_silent_and_then_speak(tmp_path):
    plain, model = lettered(tmp_path, letters=0), lettered(tmp_path)
    start_from_states = {k: v for k, v in plain.state_dict().items() if k.startswith(("encoder.", "adapter."))}
    model.load_state_dict(start_from_states, strict=False)
    for one, other in zip(heard(plain)[0], heard(model)[0], strict=True):
        torch.testing.assert_close(one, other)
    with torch.no_grad():
        model.adapter.spell.weight.normal_()
    assert heard(plain)[1] != heard(model)[1]


def test_a_connector_with_letters_is_saved_and_taken_over(tmp_path):
    model = lettered(tmp_path)
    with torch.no_grad():
        model.adapter.spell.weight.normal_(std=0.1)
    save_connector(model, tmp_path / "connector")
    again = from_parts(tmp_path / "connector", tiny_lm())
    assert torch.equal(again.adapter.ctc_spelling, model.adapter.ctc_spelling)
    assert heard(again)[1] == heard(model)[1]
    other = lettered(tmp_path)
    other.adapter.ctc_token_ids.add_(1)
    kept = other.adapter.ctc_token_ids.clone()
    start_from(other, tmp_path / "connector")
    assert torch.equal(other.adapter.ctc_token_ids, kept), "the new run's own tokens"
    torch.testing.assert_close(other.adapter.spell.weight, model.adapter.spell.weight, atol=1e-3, rtol=1e-2)
    with pytest.raises(DataError, match="no connector to start from"):
        start_from(other, tmp_path / "nowhere")
    with pytest.raises(DataError, match="other shapes"):
        start_from(lettered(tmp_path, width=64), tmp_path / "connector")


def test_the_old_connector_has_no_letters():
    assert tiny_speech_model().adapter.letters == 0
