"""The tiny model, and sessions written straight into a store."""

from tests.svc.engine.conftest import _one_thread, tiny_model, tiny_path

__all__ = ["_one_thread", "tiny_model", "tiny_path"]
