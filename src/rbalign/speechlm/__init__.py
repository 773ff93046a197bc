"""Speech LLMs: a Whisper encoder, an adapter, any causal LM. Importing registers them with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    WhisperFeatureExtractor,
)

from rbalign.speechlm.configuration import AUDIO_TOKEN, RbaSpeechConfig
from rbalign.speechlm.connector import connector_folder, from_parts, load_default, new_model, save_connector
from rbalign.speechlm.encoder import EncoderStates
from rbalign.speechlm.modeling import RbaSpeechForConditionalGeneration
from rbalign.speechlm.processing import RbaSpeechProcessor

AutoConfig.register(RbaSpeechConfig.model_type, RbaSpeechConfig, exist_ok=True)
AutoFeatureExtractor.register(RbaSpeechConfig, WhisperFeatureExtractor, exist_ok=True)
AutoProcessor.register(RbaSpeechConfig, RbaSpeechProcessor, exist_ok=True)
for _auto in (AutoModel, AutoModelForCausalLM, AutoModelForMultimodalLM):
    _auto.register(RbaSpeechConfig, RbaSpeechForConditionalGeneration, exist_ok=True)

__all__ = [
    "AUDIO_TOKEN",
    "EncoderStates",
    "RbaSpeechConfig",
    "RbaSpeechForConditionalGeneration",
    "RbaSpeechProcessor",
    "connector_folder",
    "from_parts",
    "load_default",
    "new_model",
    "save_connector",
]
