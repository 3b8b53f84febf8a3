"""Which adapter serves which `model_type`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from svc.engine.adapters.base import Adapter
from svc.engine.adapters.llava_onevision import LlavaOnevisionAdapter
from svc.engine.adapters.qwen2_5_vl import Qwen25VLAdapter
from svc.engine.adapters.qwen3_vl import Qwen3VLAdapter
from svc.engine.decoder import Decoder
from svc.engine.errors import UnsupportedModelError
from svc.engine.preprocess import PixelRules

AdapterFactory = Callable[[str, Any, Decoder, PixelRules, Any], Adapter]
"""(path for messages, transformers model, its decoder, its rules for frames, its tokenizer) ->
adapter, of the usual shape of sessions."""

_FACTORIES: dict[str, AdapterFactory] = {
    LlavaOnevisionAdapter.family: LlavaOnevisionAdapter,
    Qwen25VLAdapter.family: Qwen25VLAdapter,
    Qwen3VLAdapter.family: Qwen3VLAdapter,
}


def adapter_factory(path: str, model_type: str) -> AdapterFactory:
    """Return what makes the adapter of a family.

    Raises:
        UnsupportedModelError: there is no adapter for `model_type`.
    """
    factory = _FACTORIES.get(model_type)
    if factory is None:
        known = ", ".join(sorted(_FACTORIES))
        raise UnsupportedModelError(path, f"no adapter for family {model_type!r}, known: {known}")
    return factory
