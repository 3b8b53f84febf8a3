"""Several live sessions in one pass of the model: a pass costs more than a unit of a small one."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import torch

from svc.engine.adapters.base import WholeUnit
from svc.engine.encoder import encode_together
from svc.engine.ingest_session import FrameUnit, StreamIngest

logger = logging.getLogger(__name__)

Work = Sequence[tuple[StreamIngest, Sequence[FrameUnit]]]
"""Sessions of one model, each at most once, with their next units."""


@torch.inference_mode()
def encode_streams(work: Work) -> list[Exception | None]:
    """Encode and store the next units of several sessions, as `StreamIngest.encode` would each.

    Where they fail together, each is tried alone: what is wrong with one session ends it alone.

    Returns:
        Per session why its units could not be stored, if so.
    """
    errors: list[Exception | None] = [None] * len(work)
    packed = [index for index, (stream, _) in enumerate(work) if stream.reducer.chooses_before]
    alone = [index for index in range(len(work)) if index not in packed]
    if len(packed) > 1:
        try:
            _encode_packed([work[index] for index in packed])
        except _PackError as failed:
            for index, error in zip(packed, failed.errors, strict=True):
                errors[index] = error
        except Exception:
            logger.warning("sessions failed in one pass; each is tried alone", exc_info=True)
            alone += packed
    else:
        alone += packed
    for index in alone:
        stream, units = work[index]
        try:
            stream.encode(units)
        except Exception as error:  # noqa: BLE001 - told to whoever pushes this session
            errors[index] = error
    return errors


class _PackError(Exception):
    """Units were encoded, and could not be stored in some of the sessions."""

    def __init__(self, errors: list[Exception | None]) -> None:
        super().__init__()
        self.errors = errors


def _encode_packed(work: Work) -> None:
    planned = [
        stream.reducer.plan(whole) for (stream, _), whole in zip(work, _seen(work), strict=True)
    ]
    made = encode_together(
        [(stream.encoder, plan.embeds) for (stream, _), plan in zip(work, planned, strict=True)]
    )
    errors: list[Exception | None] = []
    for (stream, units), plan, kv in zip(work, planned, made, strict=True):
        try:
            stream.keep(units, plan.finish(kv))
        except Exception as error:  # noqa: BLE001 - told to whoever pushes this session
            errors.append(error)
        else:
            errors.append(None)
    if any(errors):
        raise _PackError(errors)


def _seen(work: Work) -> list[list[WholeUnit]]:
    """Return each session's units as the vision tower leaves them; alike ones go in one batch."""
    alike = defaultdict(list)
    for place, (stream, units) in enumerate(work):
        adapter = stream.adapter
        alike[adapter.grid, adapter.position_span].append((place, adapter, units))
    found: list[list[WholeUnit]] = [[] for _ in work]
    for members in alike.values():
        adapter = members[0][1]
        units = [unit for _, _, own in members for unit in own]
        seen = adapter.encode(
            torch.cat([unit.pixels for unit in units]), [unit.mean_pts_s for unit in units]
        )
        whole = iter(
            replace(each, gap_before=unit.gap_before)
            for unit, each in zip(units, seen, strict=True)
        )
        for place, _, own in members:
            found[place] = [next(whole) for _ in own]
    return found
