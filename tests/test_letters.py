"""Rows that say how tokens are written, and the branch that hears letters: both silent at the start."""

import pytest
import torch
from tiny import tiny_clip, tiny_lm, tiny_processor, tiny_speech_model, tiny_tokenizer, tiny_whisper_config
from transformers import WhisperModel

from rbalign.errors import DataError, UsageError
from rbalign.speechlm.configuration import RbaSpeechConfig
from rbalign.speechlm.connector import from_parts, new_model, save_connector, start_from
from rbalign.speechlm.letters import LONGEST, letter_rows, spelled
from rbalign.speechlm.speller import ALPHABET, SYMBOLS, letters_of, spelling_loss
from rbalign.train.connect_tasks import CtcTask

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


def lettered(tmp_path, letters=32, width=32, speller=0):
    folder = tmp_path / "whisper"
    WhisperModel(tiny_whisper_config()).save_pretrained(folder)
    tokens = list(range(40, 90))
    pieces = tiny_tokenizer().batch_decode([[token] for token in tokens])
    shape = {"adapter_width": width, "adapter_heads": 4, "ctc_letters": letters, "ctc_speller_layers": speller}
    return new_model(folder, tiny_lm(), tokens, pieces if letters else (), seed=1, **shape)


def heard(model):
    inputs = tiny_processor()(audio=[tiny_clip(1.0, 3), tiny_clip(0.7, 4)], return_tensors="pt")
    with torch.no_grad():
        states = model.encode_audio(inputs["input_features"], inputs["feature_lengths"])
        return model.adapt(states), model.transcribe(model.hear(states))


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


def test_a_clips_letters_are_those_of_its_tokens():
    def symbols(*word, start=True):
        codes = [ord(letter) - 96 for letter in word]
        return [codes[0] + ALPHABET * start, *codes[1:]]

    wanted = [*symbols(*"france"), *symbols(*"france", start=False), *symbols(*"caf")]
    assert letters_of(spelled([" France", "france", "!", " café", ""])).tolist() == wanted
    assert max(wanted) < SYMBOLS


def test_a_speller_starts_silent_learns_letters_and_is_saved(tmp_path):
    plain, model = lettered(tmp_path), lettered(tmp_path, speller=1)
    own = {k: v for k, v in plain.state_dict().items() if k.startswith(("encoder.", "adapter."))}
    model.load_state_dict(own, strict=False)
    for one, other in zip(heard(plain)[0], heard(model)[0], strict=True):
        torch.testing.assert_close(one, other)

    inputs = tiny_processor()(audio=[tiny_clip(2.0, 3), tiny_clip(1.4, 4)], return_tensors="pt")
    sound = {name: inputs[name] for name in ("input_features", "feature_lengths")}
    labels = torch.tensor([[3, 9, 12], [20, 4, -100]])
    task = CtcTask(model, train_encoder=False).train()
    optimizer = torch.optim.Adam(model.adapter.parameters(), lr=1e-2)
    spelling = []
    for _ in range(40):
        task(**sound, labels=labels)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            frames = model.adapter.frames(model.encode_audio(**sound))
            letters = [letters_of(model.adapter.ctc_spelling[row[row >= 0]]) for row in labels]
            spelling.append(float(spelling_loss(frames.spelt, letters)))
    assert spelling[-1] < 0.6 * spelling[0]
    model.eval()
    assert model.adapter.speller.tell.weight.abs().sum() > 0
    save_connector(model, tmp_path / "connector")
    assert heard(from_parts(tmp_path / "connector", tiny_lm()))[1] == heard(model)[1]


def test_a_spelt_clip_does_not_depend_on_its_batch_mates(tmp_path):
    model = lettered(tmp_path, speller=1)
    torch.nn.init.normal_(model.adapter.speller.tell.weight)
    clips = [tiny_clip(seconds, i) for i, seconds in enumerate((0.5, 0.54, 0.58, 0.62, 1.4))]
    frames = set()
    with torch.no_grad():
        together = model.adapter.frames(model.encode_audio(**tiny_processor()(audio=clips, return_tensors="pt")))
        for i, clip in enumerate(clips):
            alone = model.adapter.frames(model.encode_audio(**tiny_processor()(audio=[clip], return_tensors="pt")))
            length = int(alone.lengths[0])
            torch.testing.assert_close(together.hidden[i, :length], alone.hidden[0], atol=1e-4, rtol=1e-4)
            frames.add(int(alone.spelt.lengths[0]) % 2)
    assert frames == {0, 1}, "an odd number of the speller's frames is where padding would tell something"


def test_training_tells_some_clips_by_letters_alone(tmp_path):
    model = lettered(tmp_path, speller=1)
    inputs = tiny_processor()(audio=[tiny_clip(1.0, i) for i in range(24)], return_tensors="pt")
    states = model.encode_audio(inputs["input_features"], inputs["feature_lengths"])
    width = model.config.text_config.hidden_size
    told = model.adapter.train().frames(states).hidden[..., :width].abs().sum((1, 2)) > 0
    assert 0 < int(told.sum()) < 24
    assert bool((model.adapter.eval().frames(states).hidden[..., :width].abs().sum((1, 2)) > 0).all())


def test_a_speller_needs_letters_and_an_even_stack():
    with pytest.raises(UsageError, match="even adapter_stack and letters"):
        RbaSpeechConfig(ctc_speller_layers=1)
    with pytest.raises(UsageError, match="even adapter_stack and letters"):
        RbaSpeechConfig(ctc_speller_layers=1, ctc_letters=8, adapter_stack=3)
