"""Kokoro's convolutions with signed inputs: the same numbers, the same audio."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from rbalign.voices import convolutions
from rbalign.voices.convolutions import fastest, is_exact, probe, signed
from rbalign.voices.kokoro import KokoroSpeaker


def test_products_of_the_greatest_numbers_are_those_of_arithmetic():
    """By hand: 64 channels x 3 places of weight 255 times (input - 3); outside the clip the input is its zero point."""
    columns = np.repeat(np.array([0, 255, 1, 254, 128, 127]), 8) - 3
    padded = np.concatenate([[0], columns, [0]])
    expected = 255 * 64 * (padded[:-2] + padded[1:-1] + padded[2:])
    for form in (bytes, signed):
        if form is signed and not is_exact():
            pytest.skip("this processor saturates: the model stays as it is")
        np.testing.assert_array_equal(probe(form), np.broadcast_to(expected, (1, 16, 48)))


def test_a_processor_that_saturates_keeps_the_model_as_it_is(monkeypatch, tmp_path):
    given = tmp_path / "model.onnx"
    given.write_bytes(b"as it is")
    wrong = {bytes: 1, signed: 2}
    is_exact.cache_clear()
    monkeypatch.setattr(convolutions, "probe", lambda form: np.array(wrong.get(form, 1)))
    assert not is_exact()
    assert fastest(given) == b"as it is"
    is_exact.cache_clear()


@pytest.mark.assets
def test_kokoro_says_the_same_to_the_last_bit(assets_folder, monkeypatch):
    folder = assets_folder("kokoro")
    inputs = [
        node.input[0]
        for node in onnx.load_from_string(signed((folder / "model.onnx").read_bytes())).graph.node
        if node.op_type == "ConvInteger"
    ]
    assert len(inputs) == 87
    assert all(name.endswith("/signed") for name in inputs)
    clips = [KokoroSpeaker(folder).speak("Is it late?", "bf_emma")]
    monkeypatch.setattr("rbalign.voices.kokoro.fastest", lambda path: path.read_bytes())
    clips.append(KokoroSpeaker(folder).speak("Is it late?", "bf_emma"))
    np.testing.assert_array_equal(*clips)
