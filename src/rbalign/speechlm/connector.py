"""Connectors: encoder and adapter without the LLM, small enough to ship, attached to an LLM already in memory.

A connector folder holds `config.json` (RbaSpeechConfig with `connector_only`) and `model.safetensors` (float16):
`encoder.*`, `adapter.*` and `embedding_norms`, a fingerprint of the LLM's embedding that it was trained against.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel, WhisperModel

from rbalign.errors import DataError, UsageError
from rbalign.keys import Key
from rbalign.lm.products import by_products
from rbalign.rundir.files import sha256_file, stable_hash
from rbalign.speechlm.adapters import CtcAdapter
from rbalign.speechlm.configuration import RbaSpeechConfig
from rbalign.speechlm.letters import spelled
from rbalign.speechlm.modeling import RbaSpeechForConditionalGeneration

WEIGHTS = "model.safetensors"
SIGNATURES = "signatures.bin"
"""MinHash signatures (data.signatures) of every sentence that a connector heard in training."""
DEFAULT_FOLDER = Path(__file__).parent / "shipped"
FINGERPRINT = "embedding_norms"
_TOKEN_LISTS = ("adapter.ctc_token_ids", "adapter.ctc_spelling")
FINGERPRINT_TOLERANCE = 0.02
"""Relative: float16 and bfloat16 copies of one LLM differ by less than 0.5 %, other LLMs by tens of percent."""


def new_model(
    encoder_folder: Path,
    language_model: PreTrainedModel,
    ctc_token_ids: list[int] | None = None,
    pieces: Sequence[str] = (),
    seed: int = 0,
    **config: Any,
) -> RbaSpeechForConditionalGeneration:
    """A speech LLM with Whisper's encoder weights, a random adapter, and `language_model` itself (no copy).

    The adapter's weights are drawn from `seed`; the caller's generator is left as it was.

    ctc_token_ids: the LLM tokens that the CTC adapter may emit; None means all. `pieces`: their texts, wanted where
    `ctc_letters` is above 0. `config`: RbaSpeechConfig's fields.
    """
    whisper = WhisperModel.from_pretrained(encoder_folder, dtype=torch.float32).encoder
    full = RbaSpeechConfig(
        audio_config=whisper.config,
        text_config=language_model.config,
        ctc_vocab_size=len(ctc_token_ids or ()),
        **{"audio_token_id": language_model.config.vocab_size, **config},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed, "connector-weights").digest() % 2**63)
        model = RbaSpeechForConditionalGeneration(full, language_model=language_model)
    model.encoder.load_state_dict(whisper.state_dict())
    if ctc_token_ids and isinstance(model.adapter, CtcAdapter):
        model.adapter.ctc_token_ids.copy_(torch.tensor(ctc_token_ids))
    if full.ctc_letters and isinstance(model.adapter, CtcAdapter):
        model.adapter.ctc_spelling.copy_(spelled(pieces))
        # What joins the path that is there starts silent.
        joining = [model.adapter.spell, *([model.adapter.speller.tell] if model.adapter.speller else [])]
        for value in (parameter for layer in joining for parameter in layer.parameters()):
            torch.nn.init.zeros_(value)
    if isinstance(model.adapter, CtcAdapter):  # start with blank as likely as all tokens together
        torch.nn.init.constant_(model.adapter.blank.bias, math.log(len(model.adapter.ctc_token_ids)))
    by_products(model)
    model.eval()
    return model


def start_from(model: RbaSpeechForConditionalGeneration, folder: str | Path) -> None:
    """Take over a connector's encoder and adapter; what it lacks (other tokens, letters) stays as it is.

    Raises DataError if there is none, it was trained against another LLM or the shapes differ.
    """
    model.load_state_dict(_weights_for(model, folder), strict=False)


def average_with(model: RbaSpeechForConditionalGeneration, folder: str | Path, share: float) -> None:
    """Move encoder and adapter this share of the way back to the connector that they started from (WiSE-FT, arXiv
    2109.01903: what was learned last stays, and less of what was known before is forgotten)."""
    before, mine = _weights_for(model, folder), connector_state(model)
    moved = {name: mine[name].lerp(value.float(), share) for name, value in before.items() if value.is_floating_point()}
    model.load_state_dict(moved, strict=False)


def _weights_for(model: RbaSpeechForConditionalGeneration, folder: str | Path) -> dict[str, Tensor]:
    """A connector's weights, which must fit the model."""
    weights = connector_folder(folder) / WEIGHTS
    if not weights.is_file():
        raise DataError(f"no connector to start from in {weights.parent}", "train it first, or leave start out")
    state = load_file(weights)
    _check_language_model(state[FINGERPRINT], model, folder)
    kept = {name: value for name, value in state.items() if name != FINGERPRINT and not name.startswith(_TOKEN_LISTS)}
    mine = connector_state(model)
    odd = sorted(name for name, value in kept.items() if name not in mine or mine[name].shape != value.shape)
    if odd:
        raise DataError(
            f"the connector {folder} has other shapes, first {odd[0]}",
            "set [connect] encoder, adapter, width, layers and stack as its recipe.toml does",
        )
    return kept


def tokens_of(folder: str | Path) -> list[int]:
    """Ids of the LLM's tokens that a connector's CTC layer can say, ascending; none for another adapter."""
    with safe_open(connector_folder(folder) / WEIGHTS, "pt") as file:
        return file.get_tensor(_TOKEN_LISTS[0]).tolist() if _TOKEN_LISTS[0] in file.keys() else []  # noqa: SIM118


def connector_state(model: RbaSpeechForConditionalGeneration) -> dict[str, Tensor]:
    """Encoder and adapter weights by name, without the LLM."""
    return {name: value for name, value in model.state_dict().items() if name.startswith(("encoder.", "adapter."))}


def save_connector(model: RbaSpeechForConditionalGeneration, folder: Path) -> None:
    """Write `folder/config.json` and `folder/model.safetensors` in float16 (tiny.en and 3 layers: about 29 MB)."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in connector_state(model).items()
    }
    state[FINGERPRINT] = _embedding_norms(model).half()
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    values = {**model.config.to_dict(), "connector_only": True}
    (folder / "config.json").write_text(json.dumps(values, indent=1, sort_keys=True) + "\n")


def from_parts(folder: str | Path, language_model: PreTrainedModel) -> RbaSpeechForConditionalGeneration:
    """A speech LLM from a connector folder and an LLM in memory, which is used as it is: one copy of its weights.

    Raises DataError if the folder is no connector or was trained against another LLM.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise DataError(f"{folder} holds no connector ({WEIGHTS} is missing)", "train one with `rba connect RECIPE`")
    config = RbaSpeechConfig.from_pretrained(folder)
    text = language_model.config.get_text_config()
    if (text.hidden_size, text.vocab_size) != (config.text_config.hidden_size, config.text_config.vocab_size):
        raise DataError(
            f"the connector {folder} is for an LLM of width {config.text_config.hidden_size} and "
            f"{config.text_config.vocab_size} tokens, not {text.hidden_size} and {text.vocab_size}",
            "use the LLM named in its recipe.toml, or train a connector for yours with `rba connect`",
        )
    config.connector_only = False
    config.text_config = language_model.config
    model = RbaSpeechForConditionalGeneration(config, language_model=language_model)
    state = load_file(folder / WEIGHTS)
    _check_language_model(state.pop(FINGERPRINT), model, folder)
    missing, unexpected = model.load_state_dict(state, strict=False)
    lost = [name for name in missing if not name.startswith("language_model.")]
    if lost or unexpected:
        raise DataError(f"the connector {folder} lacks {lost} and has extra {unexpected}", "fetch or train it again")
    by_products(model)
    model.eval()
    return model


def _check_language_model(norms: Tensor, model: RbaSpeechForConditionalGeneration, folder: str | Path) -> None:
    expected, found = norms.float(), _embedding_norms(model).float()
    if ((found - expected).abs() > FINGERPRINT_TOLERANCE * expected + 1e-3).any():
        raise DataError(
            f"the connector {folder} was trained against other LLM weights",
            "use the LLM named in its recipe.toml, or train a connector for yours with `rba connect`",
        )


def connector_folder(wanted: str | Path) -> Path:
    """The folder of a connector: "default" is the one that ships with rba, all else is a path."""
    if str(wanted) != "default":
        return Path(wanted).expanduser()
    if not (DEFAULT_FOLDER / WEIGHTS).is_file():
        raise UsageError("this installation has no default connector", "train one with `rba connect connect`")
    return DEFAULT_FOLDER


def connector_hash(folder: Path) -> str:
    """Of what a connector hears: its weights, and how the LLM reads along if it does; "missing" without weights."""
    if not (folder / WEIGHTS).is_file():
        return "missing"
    weights = sha256_file(folder / WEIGHTS)
    fusion = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("fusion")
    return weights if fusion is None else stable_hash([weights, fusion])


def load_default(language_model: PreTrainedModel) -> RbaSpeechForConditionalGeneration:
    """The connector that ships with rba, attached to `language_model` (SmolLM2-135M-Instruct)."""
    return from_parts(connector_folder("default"), language_model)


def _embedding_norms(model: RbaSpeechForConditionalGeneration, rows: int = 64) -> Tensor:
    """Norms of `rows` embedding rows spread over the vocabulary: tells one LLM from another, whatever its dtype."""
    weight: Tensor = model.get_input_embeddings().weight.detach()
    norms: Tensor = weight[torch.linspace(0, len(weight) - 1, rows).long()].float().norm(dim=-1)
    return norms
