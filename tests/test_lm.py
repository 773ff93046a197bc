"""Samplers, templates and log-probs on a tiny random Llama; the embedded teacher is checked in test_teacher."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from rbalign.keys import Key, uniforms
from rbalign.lm.fused import FusedSampler
from rbalign.lm.logprobs import completion_logprobs
from rbalign.lm.products import Linear, available, by_products, packed, product
from rbalign.lm.sampler import (
    TEMPERATURE_AT,
    TOP_P_AT,
    GenerateSampler,
    Prompts,
    SamplingParams,
    draw,
    flat_keys,
    own_levels,
)
from rbalign.types import StopReason

STOPS = (1,)


@pytest.fixture(scope="module")
def tiny_llama():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():  # random initial logits are flat: sharpen them so that a wrong mask or position shows
        model.model.embed_tokens.weight.mul_(12)
    return model


def keys(rows, samples=1, stage="test"):
    return [[Key(0, stage, example=str(r), sample=s) for s in range(samples)] for r in range(rows)]


def flat(groups):
    return [sample for group in groups for sample in group]


def prompts(lengths, shared=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    rows = [torch.randint(2, 97, (n,), generator=g) for n in lengths]
    return Prompts(rows, torch.randint(2, 97, (shared,), generator=g) if shared else None)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.7])
@pytest.mark.parametrize("shared", [0, 5])
def test_both_samplers_draw_the_same(tiny_llama, temperature, shared):
    params = SamplingParams(12, temperature=temperature, top_p=0.9, stop_ids=STOPS)
    p, k = prompts([3, 9, 1, 6], shared), keys(4, samples=3)
    ours, theirs = (s(tiny_llama).sample(p, params, k) for s in (FusedSampler, GenerateSampler))
    for a, b in zip(flat(ours), flat(theirs), strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        assert a.stop == b.stop
        torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", [FusedSampler, GenerateSampler])
def test_each_row_draws_its_own_temperature_and_top_p_from_a_range(tiny_llama, sampler):
    p, k = prompts([3, 9, 1, 6]), keys(4, samples=3)
    digests = flat_keys(k)[1]
    drawn = [own_levels(level, digests, at) for level, at in (((0.3, 3.0), TEMPERATURE_AT), ((0.5, 0.9), TOP_P_AT))]
    assert all(len(set(levels)) == 12 for levels in drawn)
    assert [drawn[0].min() >= 0.3, drawn[0].max() <= 3.0, drawn[1].min() >= 0.5, drawn[1].max() <= 0.9] == [True] * 4
    together = flat(sampler(tiny_llama).sample(p, SamplingParams(12, (0.3, 3.0), (0.5, 0.9), STOPS), k))
    for place, (temperature, top_p) in enumerate(zip(*drawn, strict=True)):
        row, own = divmod(place, 3)
        alone = Prompts([p.rows[row]], p.shared)
        params = SamplingParams(12, float(temperature), float(top_p), STOPS)
        assert (
            sampler(tiny_llama).sample(alone, params, [[k[row][own]]])[0][0].ids.tolist()
            == together[place].ids.tolist()
        )


@pytest.mark.parametrize("sampler", [FusedSampler, GenerateSampler])
def test_sampler_logprobs_equal_recomputed_ones(tiny_llama, sampler):
    """Agreement check 1 on text: a left-padded batch with a shared prefix, against one plain forward pass."""
    p = prompts([3, 9, 1, 6])
    samples = sampler(tiny_llama).sample(p, SamplingParams(16, 0.8, 0.95, STOPS), keys(4))
    flat = [s[0] for s in samples]
    recomputed, mask = completion_logprobs(tiny_llama, p, [s.ids for s in flat])
    for row, sample in enumerate(flat):
        assert mask[row].sum() == len(sample.ids)
        torch.testing.assert_close(recomputed[row, : len(sample.ids)], sample.logprobs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", [FusedSampler, GenerateSampler])
def test_a_sample_does_not_depend_on_its_batch(tiny_llama, sampler):
    p, k = prompts([3, 9, 1, 6, 2]), keys(5, samples=2)
    params = SamplingParams(16, 1.0, 1.0, STOPS)
    together = sampler(tiny_llama).sample(p, params, k)
    for row in range(5):
        alone = sampler(tiny_llama).sample(Prompts([p.rows[row]], p.shared), params, [k[row]])[0]
        assert [s.ids.tolist() for s in alone] == [s.ids.tolist() for s in together[row]]
    order = [4, 2, 0, 3, 1]
    shuffled = sampler(tiny_llama).sample(Prompts([p.rows[i] for i in order], p.shared), params, [k[i] for i in order])
    assert [s.ids.tolist() for s in shuffled[2]] == [s.ids.tolist() for s in together[0]]


def test_other_keys_draw_other_samples(tiny_llama):
    p = prompts([4])
    drawn = FusedSampler(tiny_llama).sample(p, SamplingParams(20, 4.0), keys(1, samples=8))[0]
    assert len({tuple(s.ids.tolist()) for s in drawn}) == 8


def test_embedding_prompts_equal_id_prompts(tiny_llama):
    p, k, params = prompts([3, 7]), keys(2), SamplingParams(8, 1.0, 1.0, STOPS)
    rows = [tiny_llama.get_input_embeddings()(r).detach() for r in p.rows]
    a = FusedSampler(tiny_llama).sample(p, params, k)
    b = FusedSampler(tiny_llama).sample(Prompts(rows, p.shared), params, k)
    assert [s[0].ids.tolist() for s in a] == [s[0].ids.tolist() for s in b]


def test_stop_reason_and_end_token(tiny_llama):
    samples = FusedSampler(tiny_llama).sample(
        prompts([4] * 16), SamplingParams(6, 1.0, 1.0, tuple(range(40))), keys(16)
    )
    for (sample,) in samples:
        ended = sample.ids[-1] < 40
        assert sample.stop == (StopReason.END if ended else StopReason.LENGTH)
        assert not (sample.ids[:-1] < 40).any()
        assert len(sample.ids) == 6 or ended
    assert {s[0].stop for s in samples} == {StopReason.END, StopReason.LENGTH}


def test_shared_prefix_is_computed_once(tiny_llama):
    sampler = FusedSampler(tiny_llama)
    sampler.sample(prompts([3] * 8), SamplingParams(4), keys(8, samples=4))
    assert sampler.prefix_passes == 1


def test_lora_is_merged_at_refresh(tiny_llama):
    from peft import LoraConfig, inject_adapter_in_model

    model = inject_adapter_in_model(
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False), deepcopy(tiny_llama)
    )
    model.eval()
    p, params, k = prompts([3, 5]), SamplingParams(10, 1.0, 1.0, STOPS), keys(2)
    sampler = FusedSampler(model)
    expected = GenerateSampler(model).sample(p, params, k)
    got = sampler.sample(p, params, k)
    for a, b in zip(flat(got), flat(expected), strict=True):
        assert a.ids.tolist() == b.ids.tolist()
        torch.testing.assert_close(a.logprobs, b.logprobs, atol=1e-4, rtol=0)
    base = FusedSampler(tiny_llama).sample(p, params, k)
    assert any(a[0].logprobs.tolist() != b[0].logprobs.tolist() for a, b in zip(base, got, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [(1,), (7,), (3, 50)])
def test_products_with_packed_weights_are_products(rows, dtype):
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, 24, dtype=dtype), torch.randn(24, 40, dtype=dtype).t()
    assert packed(weight).is_mkldnn == (dtype == torch.float32 and available())
    torch.testing.assert_close(product(x, packed(weight)), x @ weight.t(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_by_products_have_the_same_gradients(bias, frozen):
    torch.manual_seed(0)
    usual = torch.nn.Sequential(torch.nn.Linear(24, 40, bias=bias), torch.nn.SiLU(), torch.nn.Linear(40, 3, bias=bias))
    ours = deepcopy(usual)
    by_products(ours)
    assert {type(layer) for layer in ours} == {Linear, torch.nn.SiLU}
    x, gradient, found = torch.randn(2, 7, 24), torch.randn(2, 7, 3), []
    for model in (usual, ours):
        model.requires_grad_(not frozen)
        own = x.clone().requires_grad_()
        model(own).backward(gradient)
        found.append([own.grad, *(parameter.grad for parameter in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(top_p=st.sampled_from([0.3, 0.6, 0.9]), temperature=st.sampled_from([0.5, 1.0, 1.5]))
def test_draws_follow_the_nucleus_distribution(top_p, temperature):
    """Frequencies of 20,000 keyed draws against the sorted definition of top-p: chi-square far below a failure."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    digests = np.array([Key(1, "nucleus", example=str(i)).digest() for i in range(20_000)], dtype=np.uint64)
    ids, _ = draw(logits.expand(20_000, -1), SamplingParams(1, temperature, top_p), digests, 0)
    probs = (logits / temperature).softmax(-1)
    ordered, index = probs.sort(descending=True)
    kept = (ordered.cumsum(0) - ordered) < top_p
    expected = torch.zeros(6).index_put((index[kept],), ordered[kept])
    expected /= expected.sum()
    counts = torch.bincount(ids, minlength=6)
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    chi2 = ((counts[inside] - 20_000 * expected[inside]) ** 2 / (20_000 * expected[inside])).sum()
    assert chi2 < 25


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 4096))
def test_uniforms_are_uniform_and_positional(seed, position):
    digests = np.array([Key(seed, "u", example=str(i)).digest() for i in range(256)], dtype=np.uint64)
    u = uniforms(digests, position)
    assert ((u >= 0) & (u < 1)).all()
    assert abs(u.mean() - 0.5) < 0.15
    assert not np.array_equal(u, uniforms(digests, position + 1))
    assert np.array_equal(u[:3], uniforms(digests[:3], position))


@pytest.mark.parametrize("sampler", [FusedSampler, GenerateSampler])
def test_streaming_hears_every_token_once_and_in_order(tiny_llama, sampler):
    heard = {}
    watch = lambda place, token: heard.setdefault(place, []).append(token)  # noqa: E731
    params = SamplingParams(12, 3.0, 1.0, tuple(range(20)))
    samples = flat(sampler(tiny_llama).sample(prompts([3, 6, 2]), params, keys(3, samples=2), watch))
    assert [heard[i] for i in range(6)] == [s.ids.tolist() for s in samples]
