import subprocess
import sys

import pytest

from rbalign.errors import UsageError
from rbalign.types import Split
from rbalign.voices.bank import VoiceBank, VoiceInfo, load_bank


def test_the_bank_has_enough_voices_of_every_kind_in_each_split():
    bank = load_bank()
    kokoro = {split: bank.names(split, "kokoro") for split in (Split.TRAIN, Split.VALIDATION, Split.TEST)}
    assert sum(map(len, kokoro.values())) == 28
    assert len(kokoro[Split.TRAIN]) >= 16
    for split in (Split.VALIDATION, Split.TEST):
        assert len(kokoro[split]) >= 4
        assert {name[:2] for name in kokoro[split]} == {"af", "am", "bf", "bm"}


def test_hibari_and_the_voices_it_comes_from_are_train_voices():
    bank = load_bank()
    for name in ("hibari", "af_heart", "af_kore", "am_fenrir", "bf_emma", "bm_fable"):
        assert bank.voice(name).split == Split.TRAIN


def test_a_kokoro_name_agrees_with_its_accent_and_gender():
    bank = load_bank()
    for name in bank.names(engine="kokoro"):
        voice = bank.voice(name)
        assert name[:2] == ("a" if voice.accent == "american" else "b") + voice.gender[0]


@pytest.mark.parametrize("engine", ["flite", "festival", "piper", "espeak", "human"])
def test_other_synthesisers_and_people_are_for_reports_alone(engine):
    bank = load_bank()
    names = bank.names(engine=engine)
    assert names
    for name in names:
        assert bank.voice(name).split == Split.TEST_ONLY
        with pytest.raises(UsageError, match=rf"connect may not use voice '{name}'.*test-only"):
            bank.require([name], {Split.TRAIN, Split.VALIDATION, Split.TEST}, "connect")


def test_a_stage_takes_its_own_splits_and_refuses_the_others():
    bank = load_bank()
    bank.require(bank.names(Split.TRAIN), {Split.TRAIN}, "align")
    with pytest.raises(UsageError, match="align may not use voice 'af_sarah'"):
        bank.require(["af_heart", "af_sarah"], {Split.TRAIN}, "align")


def test_unknown_names_say_what_is_allowed():
    bank = load_bank()
    with pytest.raises(UsageError, match="did you mean 'af_heart'"):
        bank.voice("af_hart")
    with pytest.raises(UsageError, match="unknown voice split 'dev'"):
        bank.names("dev")
    with pytest.raises(UsageError, match="unknown voice engine"):
        bank.names(engine="sapi")


def test_a_voice_cannot_stand_in_two_splits():
    voice = VoiceInfo("x", "kokoro", Split.TRAIN, "american", "female")
    with pytest.raises(UsageError, match="stands twice"):
        VoiceBank([voice, voice])


def test_the_bank_loads_no_heavy_library():
    code = (
        "import sys; from rbalign.voices.bank import load_bank; load_bank();"
        "assert not {'torch', 'onnxruntime', 'numpy'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
