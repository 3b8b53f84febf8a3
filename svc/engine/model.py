"""Loading a model: found, checked, fingerprinted, and refused with a reason when not exact."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from svc.engine import attention
from svc.engine.adapters.base import Adapter
from svc.engine.adapters.registry import adapter_factory
from svc.engine.checkpoint import Checkpoint
from svc.engine.conformance import check_conformance
from svc.engine.decoder import Decoder
from svc.engine.errors import NotAModelError, UnsupportedModelError
from svc.engine.prefix import PrefixKV, encode_prefix
from svc.engine.preprocess import load_pixel_rules
from svc.engine.prompt import PromptFormat
from svc.engine.rope import SAFE_ROPE_TYPES

logger = logging.getLogger(__name__)

VISION_PARTS = frozenset({"vision_tower", "multi_modal_projector", "visual"})
"""What families call that which only frames need."""

DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Which model, where, and in what precision. On a CPU only `path` need be given."""

    path: str
    """Folder of a checkpoint, or name of a hub repository (then HF_HUB_OFFLINE is respected)."""
    dtype: str = "float32"
    """Of weights, and of stored keys and values: float64, float32, float16 or bfloat16."""
    device: str = "cpu"
    """What torch.device takes: cpu, cuda, cuda:1, ..."""
    vision_attention: str = "sdpa"
    """Attention implementation of the vision tower, a name transformers knows."""
    name: str = ""
    """What people call the model; empty: the last part of the path."""

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model ready to watch (with vision) and to answer. Shared by all sessions of a process.

    The decoder is to be called from one thread at a time; everything else may be read freely.
    """

    config: ModelConfig
    name: str
    """What people call the model."""
    digest: str
    """Fingerprint of weights and configuration."""
    decoder: Decoder
    tokenizer: Any
    generation_config: Any
    adapter: Adapter
    prompt: PromptFormat
    prefix: PrefixKV
    """The prompt prefix, encoded: the sinks of every stream, the start of every context."""
    hf_model: Any
    """The transformers model, its vision tower None when loaded without."""

    @property
    def layer_count(self) -> int:
        """Layers of the text model."""
        return self.decoder.layer_count

    @property
    def kv_head_count(self) -> int:
        """Key and value heads of each layer."""
        return self.decoder.kv_head_count

    @property
    def head_dim(self) -> int:
        """Elements of one head's key, and of its value."""
        return self.decoder.head_dim

    @property
    def element(self) -> str:
        """Element type of keys and values, as `kvstore.Geometry` names it."""
        return self.config.dtype

    def __repr__(self) -> str:
        return f"LoadedModel(name={self.name!r}, digest={self.digest!r}, config={self.config!r})"


def load_model(config: ModelConfig, *, vision: bool) -> LoadedModel:
    """Load a checkpoint, check that the engine runs it exactly, and encode its prompt prefix.

    Args:
        config: which, where, how precise.
        vision: True to encode frames; False drops vision tower and projector from memory.

    Raises:
        NotAModelError: there is no checkpoint at the path.
        UnsupportedModelError: it is one that the engine cannot run exactly; says why.
        ConformanceError: the engine's attention differs from the model's own.
    """
    attention.register()
    checkpoint = Checkpoint(config.path)
    model_config = read_config(config.path)
    make_adapter = adapter_factory(config.path, model_config.model_type)
    check_text_config(config.path, model_config.get_text_config())
    rules = load_pixel_rules(checkpoint)
    model = _load_weights(config)
    if not vision:
        for part in VISION_PARTS.intersection(dict(model.model.named_children())):
            setattr(model.model, part, None)
    model.to(config.device)
    decoder = Decoder(model)
    difference = check_conformance(model, decoder)
    tokenizer: Any = AutoTokenizer.from_pretrained(config.path, trust_remote_code=False)
    adapter = make_adapter(config.path, model, decoder, rules, tokenizer)
    prompt = prompt_format(checkpoint, tokenizer, adapter)
    loaded = LoadedModel(
        config=config,
        name=config.name or config.path.rstrip("/").rsplit("/", 1)[-1],
        digest=checkpoint.digest(),
        decoder=decoder,
        tokenizer=tokenizer,
        generation_config=model.generation_config,
        adapter=adapter,
        prompt=prompt,
        prefix=encode_prefix(decoder, decoder.embed(prompt.prefix_ids)),
        hf_model=model,
    )
    logger.info(
        "model loaded",
        extra={
            "model": loaded.name,
            "digest": loaded.digest,
            "device": config.device,
            "conformance_difference": difference,
        },
    )
    return loaded


def check_text_config(path: str, text_config: Any) -> None:
    """Refuse text models whose attention is not plain full attention with known rotation.

    Raises:
        UnsupportedModelError: the configuration names something the engine would get wrong.
    """
    other_layers = set(getattr(text_config, "layer_types", None) or ()) - {"full_attention"}
    if other_layers:
        raise UnsupportedModelError(
            path, f"it has layers of {', '.join(sorted(other_layers))}; only full_attention is run"
        )
    window = getattr(text_config, "sliding_window", None)
    if window is not None and getattr(text_config, "use_sliding_window", True):
        raise UnsupportedModelError(path, f"its layers have a native sliding window of {window}")
    rope = getattr(text_config, "rope_parameters", None) or {}
    rope_type = rope.get("rope_type", "default")
    if rope_type not in SAFE_ROPE_TYPES or any(isinstance(v, dict) for v in rope.values()):
        raise UnsupportedModelError(
            path, f"rope {rope!r}, allowed types are {', '.join(sorted(SAFE_ROPE_TYPES))}"
        )


def read_config(path: str) -> Any:
    """Return a checkpoint's transformers configuration.

    Raises:
        UnsupportedModelError: of a kind that transformers does not know without running its code.
    """
    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:  # unknown model_type, or one that wants its own code to be run
        raise UnsupportedModelError(path, str(error)) from error


def prompt_format(checkpoint: Checkpoint, tokenizer: Any, adapter: Adapter) -> PromptFormat:
    """Return how a checkpoint was taught to be asked.

    Raises:
        UnsupportedModelError: it has no template, or one that cannot be taken apart.
    """
    return PromptFormat(
        checkpoint.path,
        tokenizer,
        _chat_template(checkpoint),
        video_mark=adapter.video_mark,
        lead_count=adapter.question_lead_count,
    )


def _load_weights(config: ModelConfig) -> Any:
    loader: Any = AutoModelForImageTextToText  # its type omits the pair that is returned here
    try:
        model, info = loader.from_pretrained(
            config.path,
            dtype=DTYPES[config.dtype],
            attn_implementation={
                "text_config": attention.NAME,
                "vision_config": config.vision_attention,
            },
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except OSError as error:
        raise NotAModelError(config.path, f"readable safetensors weights ({error})") from error
    absent = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if absent:  # transformers would fill these with random numbers
        raise UnsupportedModelError(
            config.path, f"{len(absent)} weights are missing or misshapen, first {absent[0]}"
        )
    return model.eval().requires_grad_(False)


def _chat_template(checkpoint: Checkpoint) -> str | None:
    """Return the processor's template; None leaves it to the tokenizer."""
    template = checkpoint.text("chat_template.jinja")
    if template is not None:
        return template
    legacy = checkpoint.json("chat_template.json")
    return None if legacy is None else str(legacy["chat_template"])
