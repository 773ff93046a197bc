"""Groups of samples: keyed, scored, paired, written and read again."""

import pytest
import torch
from aligning import tiny_items, tiny_policy
from hypothesis import given
from hypothesis import strategies as st

from rbalign.config.sections import AlignConfig
from rbalign.keys import Key
from rbalign.lm.logprobs import completion_logprobs
from rbalign.lm.sampler import whole_rows
from rbalign.train.diagnostics import rollout_counts
from rbalign.train.rollout import best_and_worst, draw_groups, restore_groups, sample_rows, score_groups


@pytest.fixture(scope="module")
def policy():
    return tiny_policy()


@pytest.fixture(scope="module")
def items(policy):
    return tiny_items(policy, count=3)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([0.1, 0.9, 0.4], (1, 0)),
        ([None, 0.9, 0.4], (1, 2)),
        ([0.5, 0.5, 0.5], None),
        ([None, 0.5, None], None),
        ([None, None], None),
        ([], None),
    ],
)
def test_pair_is_best_and_worst_of_the_scored(scores, expected):
    assert best_and_worst(scores, Key(0, "tie")) == expected


@given(st.lists(st.one_of(st.none(), st.integers(0, 3)), max_size=8), st.integers(0, 50))
def test_pair_holds_the_extremes_whatever_the_ties(scores, seed):
    found = best_and_worst(scores, Key(seed, "tie"))
    known = {score for score in scores if score is not None}
    assert (found is None) == (len(known) < 2)
    if found is not None:
        assert (scores[found[0]], scores[found[1]]) == (max(known), min(known))


def test_equal_best_samples_take_turns():
    """The first of equals would always be the first voice."""
    winners = {best_and_worst([1.0, 1.0, 0.0, 0.0], Key(seed, "tie")) for seed in range(40)}
    assert winners == {(0, 2), (0, 3), (1, 2), (1, 3)}


def test_samples_do_not_depend_on_batch_or_order(policy, items):
    params, key = policy.params(1.0, 1.0, 6), Key(7, "rollout/test", 5)
    whole = draw_groups(policy, items, params, key, 2)
    turned = draw_groups(policy, items[::-1], params, key, 2)
    alone = draw_groups(policy, items[1:2], params, key, 2)

    def ids(groups):
        return {group.item.example.id: [d.ids.tolist() for d in group.drawn] for group in groups}

    assert ids(whole) == ids(turned)
    assert ids(alone)["e1"] == ids(whole)["e1"]
    assert ids(draw_groups(policy, items, params, key.at(update=6), 2)) != ids(whole)
    first = whole[0].drawn
    assert [(d.view.index, d.sample) for d in first] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len({tuple(d.ids.tolist()) for d in first}) == 4


class NeedsTeacher:
    name, needs = "mean", frozenset({"teacher_logprobs"})

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.seen = dict(columns, prompts=prompts, completions=completions, ids=completion_ids)
        return [None if i == 0 else sum(row) for i, row in enumerate(columns["teacher_logprobs"])]


def test_scorers_get_what_they_need(policy, items):
    groups = draw_groups(policy, items, policy.params(1.0, 1.0, 5), Key(1, "r"), 1)
    scorer = NeedsTeacher()
    score_groups(policy, groups, scorer)
    drawn = [d for group in groups for d in group.drawn]
    assert scorer.seen["prompts"] == [g.item.example.instruction for g in groups for _ in g.drawn]
    assert scorer.seen["answer"] == [g.item.example.answer for g in groups for _ in g.drawn]
    assert drawn[0].score is None
    prompts = policy.text_prompts(scorer.seen["prompts"])
    with policy.untouched():
        expected, _ = completion_logprobs(policy.lm, prompts, [d.ids for d in drawn])
    for row, one in enumerate(drawn[1:], start=1):
        assert one.score == pytest.approx(float(expected[row].sum()), abs=1e-4)


class Keeps:
    """Scores nothing and keeps the columns that it was given."""

    name = "keeps"

    def __init__(self, *needs):
        self.needs = frozenset(needs)

    def __call__(self, prompts, completions, completion_ids, **columns):
        self.seen = columns
        return [None] * len(completions)


def plain_states(policy, prompts, ids):
    """States of every layer before each token, of one unpadded row through the plain decoder: (T, L, D)."""
    (row,) = whole_rows(policy.lm, prompts)
    whole = torch.cat([row, policy.lm.get_input_embeddings()(ids[:-1])])[None]
    with torch.no_grad():
        output = policy.lm.get_decoder()(inputs_embeds=whole, use_cache=False, output_hidden_states=True)
    return torch.stack([layer[0, len(row) - 1 :] for layer in output.hidden_states[1:]], dim=1)


@pytest.mark.parametrize("branching", [True, False])
def test_hidden_cosines_are_those_of_speech_and_text_over_the_same_tokens(policy, items, branching, monkeypatch):
    monkeypatch.setattr(policy, "_branching", branching)
    with torch.no_grad():  # an untrained LoRA is no student yet
        for name, value in policy.trainable().items():
            if "lora_B" in name:
                value.normal_(0, 0.1)
    policy.refresh()
    groups = draw_groups(policy, items, policy.params(1.0, 1.0, 5), Key(3, "r"), 2)
    scorer = Keeps("hidden_cosines", "view", "group")
    score_groups(policy, groups, scorer)
    drawn = [(group, one) for group in groups for one in group.drawn]
    assert scorer.seen["view"] == [one.view.index for _, one in drawn]
    assert {len(one.ids) for _, one in drawn} != {1}
    for (group, one), values in zip(drawn, scorer.seen["hidden_cosines"], strict=True):
        student = plain_states(policy, policy.prompts([one.view]), one.ids)
        with policy.untouched():
            reader = plain_states(policy, policy.text_prompts([group.item.example.instruction]), one.ids)
        expected = torch.nn.functional.cosine_similarity(student, reader, dim=-1).mean(-1)
        assert values == pytest.approx(expected.tolist(), abs=1e-4)
        assert all(abs(value) < 0.999 for value in values)
    with torch.no_grad():
        for name, value in policy.trainable().items():
            if "lora_B" in name:
                value.zero_()
    policy.refresh()


def test_rows_bring_the_groups_back(policy, items):
    groups = draw_groups(policy, items, policy.params(1.0, 1.0, 5), Key(1, "r"), 2)
    rows = list(sample_rows(4, groups))
    assert len({row["id"] for row in rows}) == len(rows) == 12
    known = {(row["example"], row["view"], row["sample"]): row for row in reversed(rows)}
    again = restore_groups(items, known, 2)
    for a, b in zip(groups, again, strict=True):
        for x, y in zip(a.drawn, b.drawn, strict=True):
            assert torch.equal(x.ids, y.ids)
            assert (x.view, x.sample, x.stop, x.score) == (y.view, y.sample, y.stop, y.score)


def test_a_group_has_an_advantage_as_long_as_one_sample_has(policy, items):
    """One unscored sample among scored ones does not silence its instruction; equal scores do."""
    groups = draw_groups(policy, items, policy.params(1.0, 1.0, 5), Key(1, "r"), 2)
    for group, scores in zip(groups, [(None, 1.0, 2.0, 3.0), (1.0,) * 4, (None, None, None, 1.0)], strict=True):
        for drawn, score in zip(group.drawn, scores, strict=True):
            drawn.score = score
    counts = rollout_counts(groups, {"grpo": 1.0}, AlignConfig(), Key(1, "tie"))
    assert (counts["without_advantage"], counts["unscored"]) == (2, 4)
    assert counts["reward"] == pytest.approx((6 + 4 + 1) / 8)
