"""Which adapter serves which `model_type`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from svc.engine.adapters.base import Adapter
from svc.engine.adapters.llava_onevision import LlavaOnevisionAdapter
from svc.engine.decoder import Decoder
from svc.engine.errors import UnsupportedModelError
from svc.engine.preprocess import FramePreprocessor

AdapterFactory = Callable[[str, Any, Decoder, FramePreprocessor], Adapter]
"""(path for messages, transformers model, its decoder, its preprocessor) -> adapter."""

_FACTORIES: dict[str, AdapterFactory] = {LlavaOnevisionAdapter.family: LlavaOnevisionAdapter}


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
