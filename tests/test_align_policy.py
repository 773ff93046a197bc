"""The policy and its reference: one language model serves three, exactly."""

import os
from itertools import product

import pytest
import torch
from aligning import tiny_items, tiny_policy

from rbalign.config.sections import AlignConfig, Sampling
from rbalign.errors import UsageError
from rbalign.keys import Key
from rbalign.lm.branches import branch_hidden
from rbalign.lm.logprobs import completion_logprobs
from rbalign.lm.sampler import Prompts
from rbalign.lm.templates import around_user
from rbalign.speechlm import base
from rbalign.speechlm.base import REPEAT
from rbalign.speechlm.clipcache import ClipCache, ClipFolder
from rbalign.speechlm.ctc import log_sum_exp_rows
from rbalign.train.reference import Reference
from rbalign.train.trainer import AlignTrainer


def asks(items):
    """Three branches on the first view, one on the second, two on the third."""
    answers = [item.answer for item in items]
    views = [items[0].views[0], items[1].views[1], items[2].views[0]]
    return views, [[answers[0], answers[3], answers[5]], [answers[1]], [answers[2], answers[4]]]


@pytest.fixture(params=[False, True], ids=["lora", "full"])
def moved(request):
    """A policy whose LoRA has left zero, or whose own weights have left their start."""
    policy = tiny_policy(full=request.param)
    torch.manual_seed(5)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(0.1 * torch.randn_like(value))
    return policy


def test_branches_equal_each_completion_alone(moved):
    """Values and gradients of the packed pass against one plain pass for each completion."""
    views, completions = asks(tiny_items(moved))
    prompts = moved.prompts(views)
    packed, mask = moved.measure(prompts, completions)
    packed_gradients = torch.autograd.grad(
        (packed * (1 + torch.arange(packed.shape[1]))).sum(), [*moved.trainable().values()]
    )
    rows = [(row, ids) for row, own in zip(prompts.rows, completions, strict=True) for ids in own]
    total = 0.0
    for index, (row, ids) in enumerate(rows):
        alone, _ = completion_logprobs(moved.lm, Prompts([row], prompts.shared), [ids])
        assert mask[index].sum() == len(ids)
        torch.testing.assert_close(packed[index, : len(ids)], alone[0], atol=1e-5, rtol=0)
        total = total + (alone[0] * (1 + torch.arange(len(ids)))).sum()
    for a, b in zip(packed_gradients, torch.autograd.grad(total, [*moved.trainable().values()]), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_branches_work_without_a_shared_prefix_and_refuse_empty_rows(moved):
    items = tiny_items(moved)
    views, completions = asks(items)
    prompts = moved.prompts(views)
    whole = Prompts([torch.cat([prompts.shared, row]) for row in prompts.rows])
    torch.testing.assert_close(
        moved.measure(prompts, completions)[0], moved.measure(whole, completions)[0], atol=1e-5, rtol=0
    )
    with pytest.raises(UsageError, match="empty"):
        branch_hidden(moved.lm, Prompts([torch.zeros(0, dtype=torch.long)], torch.tensor([1])), [[items[0].answer]])


def test_logits_and_logprobs_agree(moved):
    views, completions = asks(tiny_items(moved))
    logprobs, mask = moved(views, completions)
    logits, mask_again = moved(views, completions, "logits")
    assert torch.equal(mask, mask_again)
    flat = torch.nn.utils.rnn.pad_sequence([ids for own in completions for ids in own], batch_first=True)
    taken = logits.log_softmax(-1).gather(2, flat[..., None])[..., 0]
    torch.testing.assert_close(logprobs[mask], taken[mask], atol=1e-5, rtol=0)
    moved._branching = False  # the way of families that cannot be packed
    for want, expected in (("logprobs", logprobs), ("logits", logits)):
        values, plain_mask = moved(views, completions, want)
        assert torch.equal(plain_mask, mask)
        torch.testing.assert_close(values[mask], expected[mask], atol=1e-4, rtol=0)


def test_the_vocabulary_sees_completion_tokens_alone_and_a_prefix_passes_once(moved, monkeypatch):
    """Rows that are multiplied with the output layer, and places that pass the decoder, counted in both ways."""
    views, completions = asks(tiny_items(moved))
    prompts, tokens = moved.prompts(views), sum(len(ids) for own in completions for ids in own)
    rows, places = [], []

    def counted(hidden, table):
        rows.append(len(hidden))
        return log_sum_exp_rows(hidden, table)

    monkeypatch.setattr(base, "log_sum_exp_rows", counted)
    layer = moved.lm.get_decoder().layers[0]
    layer.register_forward_pre_hook(lambda _, given: places.append(tuple(given[0].shape[:2])))
    moved.lm.get_output_embeddings().register_forward_pre_hook(lambda _, given: rows.append(given[0].shape[:2].numel()))
    moved(views, completions)
    assert rows == [tokens]
    packed = [len(row) + sum(len(ids) - 1 for ids in own) for row, own in zip(prompts.rows, completions, strict=True)]
    assert places == [(1, len(prompts.shared)), (len(views), max(packed))]
    rows.clear()
    moved._branching = False
    moved(views, completions)
    flat = [ids for own in completions for ids in own]
    assert rows == [len(flat) * max(map(len, flat))], "padding is all that comes on top"


def test_reference_equals_the_policy_at_step_0():
    for train_adapter, full in product((False, True), repeat=2):
        policy = tiny_policy(train_adapter=train_adapter, full=full)
        views, completions = asks(tiny_items(policy))
        policy_values, _ = policy(views, completions)
        assert torch.equal(policy_values, Reference(policy).logprobs(views, completions)[0])


@pytest.mark.parametrize(("train_adapter", "full"), [(False, False), (True, False), (False, True)])
def test_reference_and_teacher_are_bit_identical_after_20_updates(tmp_path, train_adapter, full):
    policy = tiny_policy(train_adapter=train_adapter, full=full)
    items = tiny_items(policy)
    views, completions = asks(items)
    config = AlignConfig(
        updates=20, examples_per_update=2, micro_batch=4, train_adapter=train_adapter,
        sampling=Sampling(max_new_tokens=5), args={"learning_rate": 1e-3 if full else 1e-2},
    )  # fmt: skip
    made = AlignTrainer(policy, "rba-single", config, items, tmp_path, seed=0)
    texts = [item.example.instruction for item in items[:2]]
    before, _ = made.reference.logprobs(views, completions)
    teacher, _ = policy.text_logits(texts, [[items[0].answer], [items[1].answer]])
    adapter = {name: value.clone() for name, value in policy.speech.adapter.state_dict().items()}
    made.fit()
    assert not torch.allclose(policy(views, completions)[0], before, atol=1e-2)
    assert train_adapter != all(torch.equal(v, adapter[n]) for n, v in policy.speech.adapter.state_dict().items())
    assert torch.equal(before, made.reference.logprobs(views, completions)[0])
    assert torch.equal(teacher, policy.text_logits(texts, [[items[0].answer], [items[1].answer]])[0])


def test_refresh_copies_the_policy_and_nothing_else_moves_it(moved):
    policy = moved
    views, completions = asks(tiny_items(policy))
    reference = Reference(policy, "refresh:2")
    start, _ = reference.logprobs(views, completions)
    assert torch.equal(
        start, policy(views, completions)[0]
    )  # it started from weights that are not zero: kept, not LoRA off
    with torch.no_grad():
        for value in policy.trainable().values():
            value.mul_(1.1)
    now = policy(views, completions)[0].detach()
    for update, expected in ((0, start), (1, start), (2, now), (3, now)):
        reference.begin_update(update)
        assert torch.equal(reference.logprobs(views, completions)[0], expected)
    assert not torch.equal(start, now)
    assert torch.equal(policy(views, completions)[0], now)  # the swap was undone


def test_an_arm_is_saved_and_taken_over(tmp_path, moved):
    moved.save(tmp_path)
    views, completions = asks(tiny_items(moved))
    fresh = tiny_policy(lora=None)
    base = fresh(views, completions)[0]
    fresh.load(tmp_path)
    torch.testing.assert_close(fresh(views, completions)[0], moved(views, completions)[0])
    assert (fresh(views, completions)[0] - base).abs().max() > 1e-2
    with fresh.untouched():
        assert torch.equal(fresh(views, completions)[0], base)
    with pytest.raises(UsageError, match="holds no arm"):
        fresh.load(tmp_path / "nothing")


def test_a_trained_adapter_is_part_of_the_arm_and_leaves_with_it(tmp_path):
    policy, plain = tiny_policy(train_adapter=True), tiny_policy()
    plain.save(tmp_path / "plain")
    with torch.no_grad():
        for value in policy.speech.adapter.parameters():
            value.add_(0.2 * torch.randn_like(value))
    policy.save(tmp_path / "adapted")
    views, completions = asks(tiny_items(policy))
    listener = tiny_policy(lora=None)
    before = listener(views, completions)[0]
    listener.load(tmp_path / "adapted")
    torch.testing.assert_close(listener(views, completions)[0], policy(views, completions)[0])
    assert (listener(views, completions)[0] - before).abs().max() > 1e-3
    listener.load(tmp_path / "plain")
    assert torch.equal(listener(views, completions)[0], before)


def test_restart_equals_a_new_policy(moved):
    with torch.no_grad():
        moved.speech.adapter.norm.weight.mul_(1.0)
    moved.restart(11)
    fresh = tiny_policy(full="lora" not in "".join(moved.trainable()))
    fresh.restart(11)
    for name, value in moved.trainable().items():
        assert torch.equal(value, fresh.trainable()[name])
    if "lora" not in "".join(moved.trainable()):
        return  # nothing is drawn for it
    other = tiny_policy()
    other.restart(12)
    assert any(not torch.equal(value, other.trainable()[name]) for name, value in fresh.trainable().items())


def test_samples_come_from_the_weights_that_were_asked_for(moved):
    views, _ = asks(tiny_items(moved))
    params, keys = moved.params(1.0, 1.0, 6), [[Key(0, "k", view=i)] for i in range(3)]
    policy_first = moved.sample(moved.prompts(views), params, keys)
    base = moved.sample(moved.prompts(views), params, keys, base=True)
    again = moved.sample(moved.prompts(views), params, keys)
    untouched = tiny_policy(lora=None)
    expected = untouched.sample(untouched.prompts(views), params, keys)
    values = [[own[0].logprobs.tolist() for own in one] for one in (policy_first, again, base, expected)]
    assert values[0] == values[1]
    assert values[2] == values[3]
    assert values[0] != values[2]
    with torch.no_grad():
        for value in moved.trainable().values():
            value.mul_(1.5)
    moved.refresh()
    assert [own[0].logprobs.tolist() for own in moved.sample(moved.prompts(views), params, keys)] != values[0]


def test_the_cache_computes_a_clip_once_and_stays_in_bounds():
    views = [view for item in tiny_items(tiny_policy(lora=None), count=3) for view in item.views]
    cache, calls = ClipCache(limit=3 * 40), []

    def compute(batch):
        calls.extend(view.id for view in batch)
        return [torch.full((10,), float(view.index)) for view in batch]

    same = [views[0], views[1], views[0]]
    assert [int(t[0]) for t in cache.get("x", same, compute)] == [0, 1, 0]
    assert sorted(calls) == sorted({view.id for view in same})
    found = cache.get("x", views, compute)
    assert [int(t[0]) for t in found] == [view.index for view in views]
    assert cache.used <= 120
    assert len(calls) == len(views)
    cache.drop("x")
    assert cache.used == 0


READS_ALONG = {"context_ids": [1, 2], "beams": 2, "lm_weight": 0.5, "token_bonus": 1.0, "path_share": 0.5}


def test_another_process_need_not_hear_again(tmp_path):
    hearing = [tiny_policy(fusion=READS_ALONG, heard=ClipFolder(tmp_path, "key")) for _ in range(2)]
    views = [view for item in tiny_items(hearing[0], count=3) for view in item.views]
    positions, words = hearing[0].audio(views), hearing[0].heard(views)
    for mine, found in zip(positions, hearing[1].audio(views), strict=True):
        assert torch.equal(mine, found)
    assert hearing[1].heard(views) == words
    assert hearing[0].cache.computed["positions"] == len(views)
    assert hearing[1].cache.computed == {}


def test_an_arm_with_an_adapter_of_its_own_shares_nothing(tmp_path):
    folder = ClipFolder(tmp_path / "heard", "key")
    adapting = tiny_policy(train_adapter=True, heard=folder)
    views = [item.views[0] for item in tiny_items(adapting, count=2)]
    with torch.no_grad():
        for value in adapting.speech.adapter.parameters():
            value.add_(0.05 * torch.randn_like(value))
    adapting.heard(views)
    assert not folder.path.exists()
    adapting.save(tmp_path / "arm")
    policy = tiny_policy(heard=folder)
    own = [clip.clone() for clip in policy.audio(views)]
    policy.load(tmp_path / "arm")
    assert not torch.equal(own[0], policy.audio(views)[0])
    assert torch.equal(policy.audio(views)[0], adapting.audio(views)[0].detach())
    policy.restart(seed=0)
    assert torch.equal(own[0], policy.audio(views)[0])


def test_a_folder_of_clips_survives_what_disks_do(tmp_path):
    folder, name = ClipFolder(tmp_path, "key"), bytes(range(16))
    assert folder.read("x", name) is None
    folder.write("x", name, torch.arange(6.0))
    assert folder.read("x", name).tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    (file,) = (path for path in folder.path.rglob("*") if path.is_file())
    for torn in (file.read_bytes()[:-3], b""):
        file.write_bytes(torn)
        assert folder.read("x", name) is None
    blocked = ClipFolder(tmp_path, "blocked")
    blocked.path.write_text("a file where a folder should be")
    blocked.write("x", name, torch.arange(6.0))
    assert blocked.read("x", name) is None


def test_a_folder_of_clips_stays_in_bounds(tmp_path):
    for age, key in enumerate(("old", "newer")):
        ClipFolder(tmp_path, key, limit=4000).write("x", bytes(16), torch.zeros(200))
        os.utime(tmp_path / key, (age, age))
    folder = ClipFolder(tmp_path, "mine", limit=2000)
    assert sorted(place.name for place in tmp_path.iterdir()) == ["newer"]
    for number in range(4):
        folder.write("x", bytes([number] * 16), torch.zeros(100))
    assert [folder.read("x", bytes([number] * 16)) is not None for number in range(4)] == [True, True, False, False]


def test_a_connector_without_transcript_is_asked_to_repeat():
    """The untouched language model says it, whatever LoRA has learned, each clip alone or beside others."""
    policy = tiny_policy(adapter="mlp")
    views = [item.views[0] for item in tiny_items(policy, count=3)]
    fresh = policy.heard(views)
    with torch.no_grad():
        for value in policy.trainable().values():
            value.add_(torch.randn_like(value))
    policy.refresh()
    assert policy.heard(views) == fresh == [policy.heard([view])[0] for view in views]
    prompts = policy.speech.audio_prompts(policy.audio(views), *around_user(policy.tokenizer, REPEAT))
    greedy = policy.params(0.0, 1.0, 5)
    keys = [[Key(1, "any", view=place)] for place in range(3)]
    said = policy.sample(prompts, greedy, keys, base=True)
    for words, own in zip(fresh, said, strict=True):
        assert words.startswith(policy.decode(own[0].ids[:3]))
    assert policy.sample(prompts, greedy, keys)[0][0].ids.tolist() != said[0][0].ids.tolist()  # LoRA is back
