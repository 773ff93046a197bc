"""Channels: one spelling, what each step does to a clip, measured back, and the order of several."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rbalign.audio import signal
from rbalign.audio.channel import SNR_DB, Surroundings, babble, needs_talkers, noise_files, transmit
from rbalign.config.views import Step, canonical_channel, canonical_delivery, parse_channel, parse_delivery
from rbalign.errors import DataError, UsageError

RATE = 16_000
TIME = np.arange(4 * RATE) / RATE
TONE = (0.05 * np.sin(2 * np.pi * 200 * TIME) * (1 + np.sin(2 * np.pi * 3 * TIME))).astype(np.float32)
"""Four seconds, as loud and soft as syllables, quiet enough that no sum is turned down."""
TALKERS = [signal.change_speed(np.roll(TONE, 700 * n), 0.8 + 0.1 * n) for n in range(5)]

amounts = st.integers(-2000, 4000).map(lambda n: n / 100)
shares = st.integers(10, 5000).map(lambda n: n / 100)
steps = st.one_of(
    st.builds(
        Step,
        st.just("noise"),
        st.sampled_from([None, "white", "pink", "brown", "babble"]),
        st.none() | amounts,
    ),
    st.builds(Step, st.sampled_from(["room", "telephone"])),
    st.builds(Step, st.just("gain"), st.none(), amounts),
    st.builds(Step, st.sampled_from(["clipping", "packet-loss"]), st.none(), shares),
)
channels = st.lists(steps, max_size=4).map(lambda several: "+".join(map(str, several)) or "clean")
clips = hnp.arrays(np.float32, st.integers(1, 5000), elements=st.floats(-1, 1, width=32))


def generator(seed=0):
    return np.random.default_rng(seed)


def snr(samples, heard):
    noise = heard.astype(np.float64) - samples
    return 10 * np.log10(np.mean(np.square(samples, dtype=np.float64)) / np.mean(noise**2))


# ---- the language ----------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.lists(steps, min_size=1, max_size=4))
def test_every_channel_has_one_spelling_that_reads_back(several):
    text = "+".join(map(str, several))
    assert parse_channel(text) == tuple(several)
    assert canonical_channel(text.replace("+", " + ").replace("dB", " DB")) == text


@pytest.mark.parametrize(
    ("given_text", "canonical"),
    [
        ("clean", "clean"),
        ("noise", "noise"),
        ("noise@5.50dB", "noise@5.5dB"),
        ("noise:white@-5dB", "noise:white@-5dB"),
        ("gain:+6dB+room", "gain:6dB+room"),
        ("gain:-0dB", "gain:0dB"),
        ("noise:babble@5dB+telephone", "noise:babble@5dB+telephone"),
    ],
)
def test_spellings(given_text, canonical):
    assert canonical_channel(given_text) == canonical


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("radio", "unknown channel 'radio'; allowed: clean, .*gain:-6dB"),
        ("", "unknown channel ''"),
        ("room+", "'room\\+' is not written like 'room'"),
        ("room+clean", "clean stands alone"),
        ("noise:whte@3dB", "unknown noise 'whte'.*did you mean 'white'"),
        ("noise:white:3dB", "not written like 'noise:white@10dB'"),
        ("gain:6", "not written like 'gain:-6dB'"),
        ("gain:6.125dB", "not written like"),
        ("gain", "not written like"),
        ("gain:50dB", "use -60 to 40"),
        ("packet-loss:0%", "use 0.1 to 50"),
        ("clipping:51%", "use 0.1 to 50"),
    ],
)
def test_what_is_no_channel_is_refused(text, part):
    with pytest.raises(UsageError, match=part):
        parse_channel(text)
    with pytest.raises(UsageError):
        transmit(TONE, text, generator())


def test_deliveries_are_a_language_too():
    assert parse_delivery("fluent") == ()
    assert canonical_delivery(" filler +stutter") == "filler+stutter"
    for wrong in ("", "fluent+filler", "filler+filler", "restart+correction"):
        with pytest.raises(UsageError):
            parse_delivery(wrong)


# ---- the signal ------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(clips, channels, st.integers(0, 2**32))
def test_every_channel_keeps_length_type_and_bounds_and_obeys_its_generator(samples, channel, seed):
    around = Surroundings(TALKERS)
    before = samples.copy()
    heard = transmit(samples, channel, generator(seed), around=around)
    assert heard.shape == samples.shape
    assert heard.dtype == np.float32
    assert np.isfinite(heard).all()
    assert np.abs(heard).max() <= 1.0
    np.testing.assert_array_equal(heard, transmit(samples, channel, generator(seed), around=around))
    np.testing.assert_array_equal(samples, before)


def test_the_four_first_channels_are_what_they_were():
    """Views that were made before channels could be composed are made again from their seed."""
    np.testing.assert_array_equal(transmit(TONE, "clean", generator()), TONE)
    np.testing.assert_array_equal(transmit(TONE, "telephone", generator()), signal.telephone(TONE))
    np.testing.assert_array_equal(transmit(TONE, "room", generator(3)), signal.room(TONE, generator(3)))
    draw = generator(5)
    snr_db = draw.uniform(5.0, 20.0)
    np.testing.assert_array_equal(transmit(TONE, "noise", generator(5)), signal.add_noise(TONE, snr_db, draw))


@pytest.mark.parametrize("channel", ["noise", "room", "noise:white@10dB", "noise:babble@10dB", "packet-loss:20%"])
def test_another_seed_is_another_channel(channel):
    one, other = (transmit(TONE, channel, generator(seed), around=Surroundings(TALKERS)) for seed in (1, 2))
    assert np.abs(one - other).max() > 0.003


@pytest.mark.parametrize("kind", ["", ":white", ":pink", ":brown", ":babble", ":folder"])
@pytest.mark.parametrize("snr_db", [-5, 0, 12.5, 30])
def test_noise_is_measured_back_at_its_ratio(kind, snr_db, tmp_path):
    soundfile.write(tmp_path / "street.wav", 0.3 * generator(9).standard_normal(RATE), RATE)
    around = Surroundings(TALKERS, noise_files(tmp_path))
    heard = transmit(TONE, f"noise{kind}@{snr_db}dB", generator(), around=around)
    assert snr(TONE, heard) == pytest.approx(snr_db, abs=0.1)


def test_noise_without_a_ratio_draws_one():
    ratios = [snr(TONE, transmit(TONE, "noise:pink", generator(seed))) for seed in range(20)]
    assert SNR_DB[0] - 0.1 < min(ratios) < 8
    assert 17 < max(ratios) < SNR_DB[1] + 0.1


@pytest.mark.parametrize(("colour", "slope"), [("white", 0), ("pink", -3), ("brown", -6)])
def test_colours_fall_by_their_slope_and_are_silent_below_hearing(colour, slope):
    noise = transmit(TONE, f"noise:{colour}@0dB", generator()).astype(np.float64) - TONE
    power = np.abs(np.fft.rfft(noise)) ** 2
    frequencies = np.fft.rfftfreq(len(noise), 1 / RATE)

    def level(low):
        return 10 * np.log10(power[(frequencies >= low) & (frequencies < 2 * low)].mean())

    assert level(2000) - level(500) == pytest.approx(2 * slope, abs=0.7)
    assert power[frequencies < 19].sum() < 1e-6 * power.sum()


def test_babble_holds_every_talker_equally_loud_and_goes_round():
    tones = [
        np.sin(2 * np.pi * f * np.arange(RATE) / RATE).astype(np.float32) * g for f, g in ((300, 0.9), (700, 0.01))
    ]
    noise = babble(3 * RATE, tones, generator())
    spectrum = np.abs(np.fft.rfft(noise))
    assert spectrum[900] == pytest.approx(spectrum[2100], rel=0.02)
    assert sorted(np.argsort(spectrum)[-2:]) == [900, 2100]
    assert needs_talkers("room+noise:babble@5dB")
    assert not needs_talkers("noise:pink")
    for nobody in ([], [np.zeros(100, np.float32)]):
        with pytest.raises(UsageError, match="noise:babble is made of other clips"):
            babble(100, nobody, generator())


def test_gain_is_gain_and_too_much_of_it_overdrives():
    np.testing.assert_allclose(transmit(TONE, "gain:-6dB", generator()), TONE * 0.501187, rtol=1e-5)
    loud = transmit(TONE, "gain:30dB", generator())
    assert np.abs(loud).max() == 1.0
    assert np.mean(np.abs(loud) == 1.0) > 0.3


@pytest.mark.parametrize("percent", [0.5, 10, 50])
def test_clipping_cuts_the_share_of_samples_that_it_states(percent):
    speech = (0.1 * generator(1).laplace(size=40_000)).clip(-1, 1).astype(np.float32)
    with_pause = np.concatenate([speech, np.zeros(40_000, np.float32)])
    heard = transmit(with_pause, f"clipping:{percent}%", generator())
    ceiling = np.abs(heard).max()
    assert np.mean(np.abs(heard[:40_000]) >= ceiling) == pytest.approx(percent / 100, abs=0.001)
    below = np.abs(with_pause) < ceiling
    np.testing.assert_array_equal(heard[below], with_pause[below])


def lost_packets(percent, seconds=2000, seed=0):
    loud = np.full(seconds * 1000, 0.5, np.float32)  # at 1 kHz, to be quick
    heard = transmit(loud, f"packet-loss:{percent}%", generator(seed), rate=1000)
    packets = heard.reshape(-1, 20)
    lost = packets[:, 0] == 0
    assert (packets == np.where(lost, 0, np.float32(0.5))[:, None]).all(), "a packet is lost as a whole"
    return lost


@pytest.mark.parametrize("percent", [1, 5, 30, 50])
def test_packets_are_lost_at_their_rate_and_in_bursts(percent):
    lost = lost_packets(percent)
    assert lost.mean() == pytest.approx(percent / 100, rel=0.12)
    bursts = np.flatnonzero(np.diff(np.r_[0, lost, 0]) == 1).size
    assert lost.sum() / bursts == pytest.approx(signal.MEAN_BURST, rel=0.1)


def test_a_short_clip_loses_as_much_as_a_long_one():
    starts = [lost_packets(20, seconds=1, seed=seed)[:2] for seed in range(1500)]
    assert np.mean(starts, axis=0) == pytest.approx([0.2, 0.2], abs=0.04)


def test_the_telephone_quantises_by_mu_law():
    """A tone through 8-bit mu-law has a ratio of about 38 dB to its quantisation noise at any loudness (G.711)."""
    for loudness in (0.5, 0.05):
        tone = (loudness * np.sin(2 * np.pi * 1013 * TIME)).astype(np.float32)
        heard = transmit(tone, "telephone", generator())[RATE : 2 * RATE]
        spectrum = np.abs(np.fft.rfft(heard * np.hanning(RATE))) ** 2
        tone_power = spectrum[1003:1024].sum()
        assert 30 < 10 * np.log10(tone_power / (spectrum.sum() - tone_power)) < 42


def test_steps_are_taken_from_left_to_right():
    noisy_line = transmit(TONE, "telephone+noise:white@10dB", generator(1))
    noise_on_line = transmit(TONE, "noise:white@10dB+telephone", generator(1))

    def high(samples):
        return (np.abs(np.fft.rfft(samples))[5 * 4 * 1000 :] ** 2).sum()

    assert high(noise_on_line) < 0.01 * high(noisy_line), "a telephone passes no noise above 4 kHz"
    np.testing.assert_array_equal(noise_on_line, signal.telephone(transmit(TONE, "noise:white@10dB", generator(1))))


# ---- a folder of noises ----------------------------------------------------------------------------------------------


def test_a_noise_folder_is_read_in_the_order_of_its_names_by_header(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "README.txt").write_text("where they come from")
    for name in ("z.wav", "a.flac", "sub/m.WAV"):
        soundfile.write(
            tmp_path / name, 0.1 * generator().standard_normal(800), 8000, format=name[-4:].strip(".").upper()
        )
    assert [path.name for path in noise_files(tmp_path)] == ["a.flac", "m.WAV", "z.wav"]
    (tmp_path / "b.wav").write_bytes(b"RIFF no audio")
    (tmp_path / "c.wav").write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 5 noise files: .*b\.wav cannot be read"):
        noise_files(tmp_path)


def test_a_folder_without_noises_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        noise_files(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no recording.*\.flac"):
        noise_files(tmp_path)
    with pytest.raises(UsageError, match="no recordings"):
        transmit(TONE, "noise:folder@5dB", generator())


def test_a_pause_in_a_recording_still_gives_noise_and_silence_alone_is_refused(tmp_path):
    mostly_silent = np.zeros(20 * RATE)
    mostly_silent[-50:] = 0.5
    soundfile.write(tmp_path / "door.wav", mostly_silent, RATE)
    around = Surroundings(files=noise_files(tmp_path))
    for seed in range(5):
        heard = transmit(TONE[:RATE], "noise:folder@10dB", generator(seed), around=around)
        assert snr(TONE[:RATE], heard) == pytest.approx(10, abs=0.1)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(RATE), RATE)
    with pytest.raises(DataError, match=r"nothing\.wav is silent"):
        transmit(TONE, "noise:folder@10dB", generator(), around=Surroundings(files=[tmp_path / "nothing.wav"]))
