"""Samples from a server of its own: fresh weights, log-probs beside ours, importance weights, and what goes wrong."""

import math
import re

import pytest
import torch
from aligning import LORA, tiny_items, tiny_policy
from families import family_policy
from loopback import Loopback, Scripted, chat, stalls, status, truncated, wrong_json
from serving import Coarse, Deaf, Endless, Serving, Stale
from test_align_stage import opened as opened
from test_align_stage import recipe as align_recipe
from test_align_stage import write_data
from test_align_trainer import MIXTURES, REWARDED, ByLength

from rbalign.config.endpoints import RolloutEndpoint
from rbalign.config.sections import AlignConfig, Sampling
from rbalign.errors import RbaError, RunError, UsageError
from rbalign.keys import Key
from rbalign.remote.client import Client, EndpointError, RequestError
from rbalign.rundir.journal import read_rows
from rbalign.rundir.run import RunDir
from rbalign.stages import align
from rbalign.stages.chain import settings
from rbalign.train.batches import Values, group_units, micro_batches, terms
from rbalign.train.rollout import Drawn, Group, draw_groups, restore_groups, sample_rows
from rbalign.train.served import RolloutServer
from rbalign.train.trainer import AlignTrainer
from rbalign.types import StopReason

SAMPLED = ("rba-single", "rba-group", "grpo", "opd", "everything")


def endpoint(url, **changes):
    return RolloutEndpoint(url=url, model="base", **({"retries": 1, "concurrency": 3} | changes))


def config(url=None, **changes):
    settings = {
        "updates": 4, "examples_per_update": 2, "micro_batch": 2, "save_every": 2, "lora": LORA, "mixtures": MIXTURES,
        "sampling": Sampling(max_new_tokens=6), "args": {"learning_rate": 0.05},
        "rollout": None if url is None else endpoint(url).model_dump(),
    }  # fmt: skip
    return AlignConfig(**(settings | changes))


def trained(folder, arm, server=None, settings=None):
    """Train a tiny policy, by a server's samples if there is one; the rows of metrics and samples."""
    policy = tiny_policy()
    chosen = settings or config(server.url if server else None)
    away = RolloutServer(chosen.rollout, Client(chosen.rollout), folder / "served", arm) if chosen.rollout else None
    scorer = ByLength() if arm in REWARDED else None
    made = AlignTrainer(policy, arm, chosen, tiny_items(policy), folder, seed=3, scorer=scorer, server=away)
    made.fit()
    return [list(read_rows(folder / f"{name}.jsonl")) for name in ("metrics", "samples")]


@pytest.mark.parametrize("arm", SAMPLED)
def test_an_arm_learns_from_a_servers_samples(tmp_path, arm):
    behind = Serving()
    with Loopback(behind) as server:
        metrics, samples = trained(tmp_path, arm, server)
    assert behind.loads == [f"{arm}-{update}" for update in (1, 2, 3, 4)]
    assert not behind.adapters
    assert [place.name for place in (tmp_path / "served").iterdir()] == ["held by the server"]
    assert len(samples) == len(behind.seeds) == len(set(behind.seeds)) == 4 * 2 * 2
    assert server.most_at_once == 3
    for row in metrics:
        assert row["server_largest_gap"] < 1e-4  # check 1 over HTTP: after each step the server has its weights
        assert abs(row["server_kl"]) <= row["server_gap"]
    for row in samples:
        assert row["served"] == pytest.approx(row["logprobs"], abs=1e-4)
    assert metrics[0]["gradient_norm"] > 0
    assert 0 < sum(row["truncated"] for row in metrics) < 4


def test_a_family_of_transformers_is_served_too(tmp_path):
    """Its adapter is named by places in the whole model already, and its template is asked for the turn."""
    policy, behind = family_policy("qwen2_audio"), Serving(family_policy("qwen2_audio"))
    behind.inside = behind.own = "model.language_model."
    with Loopback(behind) as server:
        chosen = config(server.url, updates=2)
        away = RolloutServer(chosen.rollout, Client(chosen.rollout), tmp_path / "served", "rba-single")
        AlignTrainer(policy, "rba-single", chosen, tiny_items(policy), tmp_path, seed=3, server=away).fit()
    metrics = list(read_rows(tmp_path / "metrics.jsonl"))
    assert behind.loads == ["rba-single-1", "rba-single-2"]
    assert all(row["server_largest_gap"] < 1e-4 for row in metrics)
    assert metrics[0]["gradient_norm"] > 0
    assert len(behind.seeds) == 2 * 2 * 2


def test_operations_are_counted_wherever_samples_are_drawn(tmp_path):
    policy, own = tiny_policy(), tiny_policy()
    items = tiny_items(policy, 2)
    params, key = policy.params(1.0, 1.0, 1), Key(0, "rollout")  # one token each: equal lengths for both
    with Loopback(Serving()) as server:
        made = RolloutServer(endpoint(server.url), Client(endpoint(server.url)), tmp_path, "arm")
        made.load(policy, 1, leads=True)
        before = policy.operations
        groups = made.draw(policy, items, params, key)
        spent = policy.operations - before
    draw_groups(own, items, params, key)
    sampled = own.operations
    with torch.no_grad():
        views = [one.view for group in groups for one in group.drawn]
        own(views, [[one.ids] for group in groups for one in group.drawn])
    assert spent == own.operations > sampled


def test_the_requests_say_all_that_sampling_depends_on(tmp_path):
    policy = tiny_policy()
    with Loopback(Serving()) as server:
        made = RolloutServer(endpoint(server.url), Client(endpoint(server.url)), tmp_path, "arm")
        made.load(policy, 7, leads=True)
        made.draw(policy, tiny_items(policy, 1), policy.params(1.0, 1.0, 5), Key(0, "rollout"), 3)
    asked = [one.body for one in server.asked if one.path.endswith("/chat/completions")]
    assert len(asked) == 2 * 3
    for body in asked:
        assert body["model"] == "arm-7"
        assert (body["temperature"], body["top_p"], body["top_k"], body["repetition_penalty"]) == (1, 1, -1, 1)
        assert body["max_tokens"] == 5
        assert body["logprobs"] is True
        assert body["return_token_ids"] is True
        assert body["stop_token_ids"] == list(policy.end_ids)
        assert body["messages"][0] == {"role": "system", "content": "Be brief."}
        (clip,) = body["messages"][1]["content"]
        assert clip["input_audio"]["format"] == "wav"


def test_an_end_token_that_the_server_leaves_out_counts_as_agreed(tmp_path):
    with Loopback(Endless()) as server:
        _, samples = trained(tmp_path, "rba-single", server)
    ended = [row for row in samples if row["stop"] == "end"]
    assert ended
    for row in ended:
        assert row["ids"][-1] == tiny_policy().end_ids[0]  # which of the ends it was, it did not tell
        assert row["served"][-1] == row["logprobs"][-1]


def test_another_arithmetic_is_measured_and_weighed(tmp_path):
    with Loopback(Coarse()) as server:
        metrics, samples = trained(tmp_path, "everything", server)
    assert all(0.005 < row["server_gap"] < 0.07 and row["server_largest_gap"] <= 0.0625 + 1e-4 for row in metrics)
    exact, _ = trained(tmp_path / "exact", "everything", None)
    assert {"server_gap", "server_kl"}.isdisjoint(exact[0])
    assert samples[0]["served"] != samples[0]["logprobs"]


@pytest.mark.parametrize(("kind", "rate"), [(Deaf, 0.05), (Stale, 1.0)])
def test_a_server_that_samples_another_policy_ends_training(tmp_path, kind, rate):
    settings = {"args": {"learning_rate": rate}, "updates": 6}
    with Loopback(kind()) as server:
        chosen = endpoint(server.url, max_gap=0.02).model_dump()
        with pytest.raises(RunError, match=r"differs from our policy by \d.\d\d nats a token.*does not hear"):
            trained(tmp_path, "rba-single", settings=config(rollout=chosen, **settings))
    rows = list(read_rows(tmp_path / "metrics.jsonl"))
    assert len(rows) == 0 if kind is Deaf else len(rows) >= 1  # stale weights are right at the first update


@pytest.mark.parametrize("fault", [status(503, "loading"), truncated, wrong_json])
def test_a_passing_fault_costs_no_sample(tmp_path, fault):
    behind = Serving()
    answer = lambda asked: chats(asked) if asked.path.endswith("/chat/completions") else behind(asked)  # noqa: E731
    chats = Scripted(behind, fault)
    with Loopback(answer) as server:
        _, samples = trained(tmp_path, "rba-single", settings=config(server.url, updates=1))
    assert len(samples) == 4


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda body: chat(), "returns no token ids: vLLM does since"),
        (lambda body: stalls, "no complete reply within"),
        (lambda body: broken(token_ids=[5, 6, 7]), "3 token ids with 1 log-probs"),
        (lambda body: broken(finish_reason="length"), "1 tokens, cut at 6"),
        (lambda body: broken(finish_reason="content_filter"), "content_filter"),
        (lambda body: broken(token_ids=[True, "x"]), "2 token ids with 1 log-probs"),
        (lambda body: status(500, "out of memory"), "out of memory"),
    ],
)
def test_a_lasting_fault_ends_training_in_one_line(tmp_path, reply, message):
    behind = Serving()

    def answer(asked):
        return reply(asked.body) if asked.path.endswith("/chat/completions") else behind(asked)

    with Loopback(answer) as server:
        chosen = config(rollout=endpoint(server.url, retries=0, timeout=2.0).model_dump())
        with pytest.raises(RequestError, match=message):
            trained(tmp_path, "rba-single", settings=chosen)
    assert not list(read_rows(tmp_path / "metrics.jsonl"))


def broken(**changes):
    made = chat()
    made["choices"][0] |= {"token_ids": [2], "logprobs": {"content": [{"token": "?", "logprob": -1.0}]}} | changes
    return made


def test_a_server_that_takes_no_adapters_is_told_so(tmp_path):
    with (
        Loopback(lambda asked: status(404, "no such path")) as server,
        pytest.raises(EndpointError, match=r"does not serve this.*VLLM_ALLOW_RUNTIME_LORA_UPDATING"),
    ):
        trained(tmp_path, "rba-single", server)


def test_killed_and_started_again_loads_its_own_weights(tmp_path):
    """What an earlier start left under an adapter's name goes before the new weights come."""
    behind = Serving()
    with Loopback(behind) as server:
        behind.adapters["rba-single-1"] = tmp_path
        trained(tmp_path / "run", "rba-single", settings=config(server.url, updates=1))
    assert behind.unloads == ["rba-single-1", "rba-single-1"]  # before its own, and at the end
    assert behind.loads == ["rba-single-1"]


def test_a_follower_loads_nothing_and_asks_for_the_same_weights(tmp_path):
    policy, behind = tiny_policy(), Serving()
    with Loopback(behind) as server:
        made = [RolloutServer(endpoint(server.url), Client(endpoint(server.url)), tmp_path, "arm") for _ in range(2)]
        for place, one in enumerate(made):
            one.load(policy, 1, leads=place == 0)
        for one in made:
            one.draw(policy, tiny_items(policy, 1), policy.params(1.0, 1.0, 4), Key(0, "rollout"))
    assert behind.loads == ["arm-1"]


def test_a_recipe_names_the_server_and_its_arms_do_not_meet_there(tmp_path, opened):
    behind = Serving()
    with Loopback(behind) as server:
        rollout = {"url": server.url, "model": "base"}
        served = align_recipe(arms=["sft", "rba-single", "opd"], rollout=rollout, sampling={"max_new_tokens": 30})
        with RunDir.open(tmp_path, served) as run:
            write_data(run.path("data"))
            align.run(run.recipe, run)
            rows = list(read_rows(run.path("arms", "opd-s0", "metrics.jsonl")))
    names = [re.fullmatch(r"tiny-(.*)-s0-[0-9a-f]{8}-(\d)", name).groups() for name in behind.loads]
    assert sorted(names) == [("opd", "1"), ("opd", "2"), ("rba-single", "1"), ("rba-single", "2")]
    assert not behind.adapters
    assert all(row["server_largest_gap"] < 1e-4 for row in rows)
    slower = align_recipe(arms=served.align.arms, rollout=rollout | {"concurrency": 1, "adapters": "elsewhere"})
    assert settings(slower, "align")["align"]["rollout"] == settings(served, "align")["align"]["rollout"]


# ---- importance weights ------------------------------------------------------------------------------------------


def drawn(item, ids, ours, theirs, view=0, score=None):
    values = (torch.tensor(ids), torch.tensor(ours), StopReason.END, "?", score, torch.tensor(theirs))
    return Drawn(item.views[view], 0, *values)


def test_weights_are_ratios_of_probabilities_cut_at_the_cap():
    item = tiny_items(tiny_policy(), 1)[0]
    one = drawn(item, [5, 2], [-1.0, -0.5], [-1.2, -0.4], score=1.0)
    two = drawn(item, [6, 2], [-1.0, -0.5], [-3.0, -0.5], view=1, score=0.0)
    assert one.correction(2.0) == pytest.approx(math.exp(0.1))
    assert two.correction(2.0) == 2.0
    assert Group(item, [one, two]).correction(100.0) == pytest.approx(math.exp(2.1))
    chosen = config("http://127.0.0.1:1/v1")
    (unit,) = group_units(Group(item, [one, two]), {"group": 1.0, "single": 1.0}, chosen, Key(0, "tie"))
    assert unit.pair_corrections == [2.0]
    assert sorted(unit.corrections) == pytest.approx([1.0, 1.0, math.exp(0.1), 2.0])


@pytest.mark.parametrize("name", ["single", "group", "grpo", "opd"])
def test_every_sampled_term_takes_the_weights(name):
    """A served sample twice as likely under the policy counts twice; tokens of grpo one by one, cut at the cap."""
    item = tiny_items(tiny_policy(), 1)[0]
    own = [-1.0, -0.5]
    for theirs, whole, tokens in (([-1.0, -0.5], 1.0, 1.0), ([-1.0 - math.log(1.6), -0.5], 1.6, (1.6 + 1.0) / 2)):
        one = drawn(item, [5, 2], own, theirs, score=1.0)
        two = drawn(item, [6, 2], own, own, view=1, score=0.0)
        chosen = config("http://127.0.0.1:1/v1", grpo={"kl": 0.0, "advantage": "none"}, micro_batch=9)
        (piece,) = micro_batches({name: 1.0}, chosen, [Group(item, [one, two])], Key(0, "tie"))
        mask = piece.mask()
        zeros = torch.zeros(mask.shape)
        teacher = {"opd": torch.zeros(len(piece.samples), mask.shape[1], 4)}
        values = Values(mask, zeros, torch.zeros(*mask.shape, 4), teacher, zeros)
        _, loss = terms({name: 1.0}, chosen, piece, values)[name]
        expected = {
            "single": (math.log(2) * (1 + whole), 1 + whole),  # two pairs without a margin, the second drawn by us
            "group": (math.log(2) * whole, whole),
            "grpo": (-0.5 * 2 * tokens + 0.5 * 2, 4.0),  # advantages of a half up and down; every ratio is 1
            "opd": (0.0, 2 * whole + 2),
        }
        assert (float(loss.sum), float(loss.weight)) == pytest.approx(expected[name])


def test_samples_come_back_from_their_journal_with_both_log_probs():
    item = tiny_items(tiny_policy(), 1)[0]
    group = Group(item, [drawn(item, [5, 2], [-1.0, -0.5], [-1.25, -0.5], view) for view in (0, 1)])
    rows = {(row["example"], row["view"], row["sample"]): row for row in sample_rows(1, [group])}
    (again,) = restore_groups([item], rows, 1)
    for before, after in zip(group.drawn, again.drawn, strict=True):
        assert after.served.tolist() == before.served.tolist()
        assert after.logprobs.tolist() == before.logprobs.tolist()


@pytest.mark.parametrize("changes", [{"full_finetuning": True, "lora": {}}, {"train_adapter": True}])
def test_weights_that_the_server_cannot_take_are_refused(changes):
    changes = changes if "lora" not in changes else {"full_finetuning": True, "lora": AlignConfig().lora}
    with pytest.raises((RbaError, ValueError), match="rollout sends LoRA to its server and no other weights"):
        config("http://127.0.0.1:1/v1", **changes)


def test_a_missing_key_is_told_before_any_work(monkeypatch):
    monkeypatch.delenv("ROLLOUT_KEY", raising=False)
    rollout = {"url": "http://127.0.0.1:1/v1", "model": "m", "key_env": "ROLLOUT_KEY"}
    with pytest.raises(UsageError, match=re.escape("ROLLOUT_KEY is not set")):
        align.check(align_recipe(rollout=rollout))
