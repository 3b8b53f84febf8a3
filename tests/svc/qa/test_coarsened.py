"""An answer says which of what it used had been thinned, and how much of it is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kvstore.budget import DiskBudget
from kvstore.reader import SessionReader
from kvstore.snapshot import Snapshot
from lookback.v1 import question_pb2 as pb
from svc.engine.model import LoadedModel
from tests.svc.qa.service import LIMITS, LiveSession, QaProcess

_THIN = DiskBudget(session_bytes=3 * 2**19, on_full="thin")
_LIMITS = replace(LIMITS, budget=_THIN, keep_tokens=64, preallocate_bytes=4096)


@pytest.fixture
def thinned(store: Path, model: LoadedModel) -> Snapshot:
    """A session "thinned" of the shared store whose old units have lost tokens."""
    session = LiveSession(store, model, "thinned", limits=_LIMITS)
    reader = SessionReader.open(store, "thinned")
    snapshot = reader.snapshot()
    while snapshot.coarsened.sum() < 20:
        session.push([float(snapshot.unit_count)])
        snapshot = reader.snapshot()
    session.finish()
    reader.close()
    assert snapshot.first_unit == 0
    return snapshot


def test_thinned_moments_are_named_with_what_is_left_of_them_and_whole_ones_are_not(
    qa: QaProcess, thinned: Snapshot, model: LoadedModel
) -> None:
    coarse = np.flatnonzero(thinned.coarsened)
    assert len(coarse) > 10
    assert not thinned.coarsened[-7:].any()
    pair = next(unit for unit in coarse.tolist() if thinned.coarsened[unit + 1])
    alone = next(unit for unit in coarse.tolist() if unit > pair + 5)
    last = thinned.unit_count - 1
    used = [pair, pair + 1, alone, last]
    answer = qa.ask("thinned", retrieval=pb.RetrievalOptions(unit_indices=used))
    whole = model.adapter.tokens_per_unit
    assert [
        (span.start_s, span.end_s, span.first_unit_index, span.unit_count, span.token_count)
        for span in answer.evidence_coarsened
    ] == [
        (pair, pair + 2, pair, 2, thinned.token_counts[pair : pair + 2].sum()),
        (alone, alone + 1, alone, 1, thinned.token_counts[alone]),
    ]
    assert [span.whole_token_count for span in answer.evidence_coarsened] == [2 * whole, whole]
    assert answer.retrieved_token_count == thinned.token_counts[used].sum()
    flags = {span.start_s: span.coarsened for span in answer.evidence}
    for start_s, coarsened in flags.items():
        assert coarsened == (start_s < last), flags
    assert flags
    recent = list(range(last - 3, last + 1))
    answer = qa.ask("thinned", retrieval=pb.RetrievalOptions(unit_indices=recent))
    assert not answer.evidence_coarsened
    assert not any(span.coarsened for span in answer.evidence)
