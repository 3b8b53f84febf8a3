"""The RAM tier as the settings and the served model want it."""

from __future__ import annotations

import logging

from kvstore.arena import Arena
from kvstore.encoding import Layout
from kvstore.geometry import Geometry
from svc.config import Settings
from svc.engine.model import LoadedModel

logger = logging.getLogger(__name__)


def open_arena(settings: Settings, model: LoadedModel) -> Arena | None:
    """Returns the arena of the store, its memory allocated; None where no budget is set.

    A slot holds a full unit of one layer, as new sessions store it.

    Raises:
        OSError: `shm_dir` does not exist, or has no room at all.
    """
    if settings.ram_budget_bytes == 0:
        return None
    geometry = Geometry(
        layer_count=model.layer_count,
        kv_head_count=model.kv_head_count,
        head_dim=model.head_dim,
        element=model.element,
    )
    layout = Layout(geometry, settings.kv_encoding)
    arena = Arena.create(
        settings.data_dir,
        budget_bytes=settings.ram_budget_bytes,
        slot_bytes=layout.extent_bytes(model.adapter.tokens_per_unit),
        shm_dir=settings.shm_dir,
    )
    logger.info(
        "RAM tier opened",
        extra={
            "path": str(arena.path),
            "ram_budget_bytes": arena.budget_bytes,
            "slot_count": arena.shape.slot_count,
            "slot_bytes": arena.shape.slot_bytes,
        },
    )
    return arena
