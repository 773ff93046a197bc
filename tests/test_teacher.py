"""The embedded teacher, for real: SmolLM2-135M-Instruct from the cache."""

import pytest
import torch

from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.lm.fused import FusedSampler
from rbalign.lm.load import load_lm
from rbalign.lm.logprobs import completion_logprobs
from rbalign.lm.sampler import GenerateSampler, SamplingParams
from rbalign.lm.templates import around_user, chat_ids, end_ids, prequery_ids
from rbalign.teacher.base import require
from rbalign.teacher.local import LocalTeacher
from rbalign.types import StopReason

pytestmark = pytest.mark.assets
SYSTEM = "You are a helpful assistant."


@pytest.fixture(scope="module")
def teacher(assets_folder):
    return LocalTeacher(load_lm(assets_folder("smollm2-135m-instruct")))


def keys(n, stage="t"):
    return [Key(0, stage, example=str(i)) for i in range(n)]


def test_template_pieces_equal_the_whole_template(teacher):
    tokenizer = teacher.lm.tokenizer
    for text in ("What is the capital of France?", "Two  spaces, then a word", "I'd like 3 apples."):
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
        whole = tokenizer.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
        assert chat_ids(tokenizer, text, SYSTEM) == whole
    before, after = around_user(tokenizer, SYSTEM)
    assert tokenizer.decode(before) == f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n"
    assert tokenizer.decode(after) == "<|im_end|>\n<|im_start|>assistant\n"
    assert prequery_ids(tokenizer, SYSTEM) == before
    assert end_ids(tokenizer) == (2,)


def test_greedy_answers_are_right_on_easy_questions(teacher):
    found = teacher.answer(
        ["What is the capital of France?", "Which planet do we live on?"], keys(2), teacher.params(0.0, 1.0, 24), SYSTEM
    )
    assert "Paris" in found[0].text
    assert "Earth" in found[1].text


def test_instructions_are_sampled_from_the_bare_template(teacher):
    written = teacher.write_instructions(keys(8), teacher.params(1.0, 0.99, 24), [None] * 8)
    ended = [w for w in written if w.stop is StopReason.END]
    assert len(ended) >= 2
    assert all(w.text and "<|" not in w.text for w in ended)
    again = teacher.write_instructions(keys(8)[3:5], teacher.params(1.0, 0.99, 24), [None] * 2)
    assert again == written[3:5]


def test_each_instruction_follows_its_own_system_prompt(teacher):
    systems = [None, "You help people who cook.", None, "You write poems.", "You help people who cook."]
    params = teacher.params((1.0, 1.2), (0.99, 1.0), 12)
    mixed = teacher.write_instructions(keys(5), params, systems)
    alone = [
        teacher.write_instructions([key], params, [system])[0] for key, system in zip(keys(5), systems, strict=True)
    ]
    same = [one.text[:30] == other.text[:30] for one, other in zip(alone, mixed, strict=True)]
    assert sum(same) >= 4  # another batch adds up in another order: of a thousand tokens about one falls otherwise
    assert teacher.write_instructions(keys(5)[1:2], params, [None])[0].text[:30] != mixed[1].text[:30]


def test_scores_prefer_the_right_answer_and_leave_empty_ones_unscored(teacher):
    question = "What is the capital of France?"
    right, wrong, empty = teacher.loglikelihood(
        [question] * 3, ["The capital of France is Paris.", "Bananas are often quite purple upstairs.", "  "], SYSTEM
    )
    assert right > wrong + 1
    assert empty is None
    assert teacher.loglikelihood([question], ["The capital of France is Paris."], SYSTEM)[0] == pytest.approx(
        right, abs=1e-4
    )


@pytest.mark.parametrize("sampler", [FusedSampler, GenerateSampler])
def test_real_sampler_logprobs_equal_recomputed_ones(teacher, sampler):
    prompts = teacher.prompts(
        ["Hi there, how are you?", "What is rain?", "Tell me about the sea, please, in short."], None
    )
    samples = sampler(teacher.lm.model).sample(prompts, SamplingParams(12, 0.9, 0.95, (2,)), [[k] for k in keys(3)])
    ids = [own[0].ids for own in samples]
    with torch.no_grad():
        recomputed, _ = completion_logprobs(teacher.lm.model, prompts, ids)
    for row, own in enumerate(samples):
        torch.testing.assert_close(recomputed[row, : len(ids[row])], own[0].logprobs, atol=1e-4, rtol=0)


def test_what_a_teacher_cannot_do_is_refused_before_any_work(teacher):
    require(teacher, frozenset({"continue", "chat"}), "synth")

    class ChatOnly:
        can, name = frozenset({"chat"}), "endpoint"

    with pytest.raises(UsageError, match="continue"):
        require(ChatOnly(), frozenset({"continue"}), "synth")
