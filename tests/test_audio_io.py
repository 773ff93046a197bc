import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rbalign.audio.io import Limits, read_audio, to_flac
from rbalign.errors import DataError

SINE = (0.5 * np.sin(np.arange(16_000) / 10)).astype(np.float32)


def encoded(samples=SINE, rate=16_000, **kind):
    sink = io.BytesIO()
    soundfile.write(sink, samples, rate, **{"format": "WAV", **kind})
    return sink.getvalue()


def with_data_length(wav, length):
    at = wav.index(b"data") + 4
    return wav[:at] + struct.pack("<I", length) + wav[at + 4 :]


@settings(max_examples=50)
@given(hnp.arrays(np.float32, st.integers(1, 3000), elements=st.floats(-1, 1, width=32)))
def test_flac_keeps_every_sample_to_16_bits(samples):
    flac = to_flac(samples)
    heard = read_audio(flac)
    assert heard.dtype == np.float32
    assert heard.shape == samples.shape
    assert np.abs(heard - samples).max() <= 1.01 / 2**15
    assert to_flac(samples) == flac


@pytest.mark.parametrize("rate", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_any_rate_is_brought_to_the_wanted_one(rate):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(rate) / rate)
    heard = read_audio(encoded(tone, rate), rate=16_000)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
    assert len(heard) == 16_000
    assert np.abs(heard - expected)[500:-500].max() < 1e-3


@pytest.mark.parametrize("kind", [{"format": "FLAC"}, {"format": "OGG"}, {"format": "MP3"}, {"format": "AIFF"}])
def test_common_formats_are_read(kind, tmp_path):
    path = tmp_path / "clip"
    path.write_bytes(encoded(**kind))
    heard = read_audio(path)
    assert np.corrcoef(heard[2000:14_000], SINE[2000:14_000])[0, 1] > 0.99


def test_stereo_is_averaged():
    both = np.stack([SINE, np.zeros_like(SINE)], axis=1)
    np.testing.assert_allclose(read_audio(encoded(both)), SINE / 2, atol=1e-4)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (encoded(format="FLAC")[:-2000], r"cannot be read: .*lost sync"),
        (with_data_length(encoded(), 2**31), "header promises another length"),
        (with_data_length(encoded(), 100), "header promises another length"),
        (encoded()[:-4000], "header promises another length"),
        (with_data_length(encoded(), 0)[:44], "holds no samples"),
        (encoded(format="MP3")[:-600], r"ends after \d+ of 16000 frames"),
        (encoded(np.array([0, np.nan, 0.5]), subtype="FLOAT"), "not finite"),
        (encoded(np.zeros((100, 12))), "has 12 channels; the limit is 2"),
        (encoded(rate=4_000), "has 4000 Hz; the limits are 8000 to 192000 Hz"),
        (encoded(format="AU"), "is AU; rba reads AIFF, FLAC"),
        (b"RIFF", "cannot be read: Format not recognised"),
        (b"", "cannot be read: Format not recognised"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # bytes of a float WAV hold the second they were made in
)
def test_damage_is_refused_by_name(tmp_path, content, problem):
    path = tmp_path / "clip.wav"
    path.write_bytes(content)
    with pytest.raises(DataError, match=problem) as told:
        read_audio(path)
    assert str(path) in str(told.value)
    with pytest.raises(DataError, match=rf"^audio bytes .*{problem}"):
        read_audio(content)


def test_length_is_judged_from_the_header_before_anything_is_decoded(monkeypatch):
    flac = bytearray(encoded(format="FLAC"))
    at = flac.index(b"fLaC") + 4 + 4 + 10  # STREAMINFO: rate, channels, bits, then 36 bits of total samples
    head = int.from_bytes(flac[at : at + 8], "big") & ~((1 << 36) - 1)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    for frames, seconds in ((7_200 * 16_000, "7200"), (2**36 - 1, "4294967")):
        flac[at : at + 8] = (head | frames).to_bytes(8, "big")
        with pytest.raises(DataError, match=rf"is {seconds} s long; the limit is 600 s"):
            read_audio(bytes(flac))
    with pytest.raises(DataError, match="is 1 s long; the limit is 0 s"):
        read_audio(encoded(), limits=Limits(max_seconds=0.4))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.wav is no file"):
        read_audio(tmp_path / "nowhere.wav")


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros((5, 2)), np.array([0.0, np.inf])])
def test_what_is_no_clip_is_not_encoded(samples):
    with pytest.raises(DataError, match="are no clip"):
        to_flac(samples.astype(np.float32))
