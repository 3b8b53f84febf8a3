"""What the client takes and gives: frozen mirrors of the messages.

Times are presentation times of the video in seconds.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from enum import Enum


class SessionState(Enum):
    """What a session is doing."""

    LIVE = "live"
    """More video may come."""
    FINISHED = "finished"
    """The video is over; questions are still answered."""


class RetrievalMode(Enum):
    """How the units that an answer rests on are chosen."""

    PER_LAYER = "per_layer"
    """Every layer of the model chooses its own."""
    SHARED = "shared"
    """All layers share one choice, from a first look at the newest units only."""
    AGREED = "agreed"
    """All layers share one choice, from a first pass in which each read its own."""


class FinishReason(Enum):
    """Why decoding ended."""

    STOP = "stop"
    """The model ended, or a stop string came."""
    LENGTH = "length"
    """The token limit was reached."""
    CHOICE = "choice"
    """One of the choices was picked."""


class Tier(Enum):
    """Where a moment was read from."""

    HOT = "hot"
    """Shared memory of the push."""
    RAM = "ram"
    """Shared memory of what left it."""
    DISK = "disk"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSettings:
    """How a session's video is sampled and encoded; fixed when it is created."""

    sample_fps: float = 0.0
    """Frames taken per second of stream time, in (0, 30]; 0: the server's default."""
    window_token_count: int = 0
    """Tokens of the sliding window; 0: the server's default."""
    reduction: str = ""
    """Which visual tokens are kept: a policy, alone or with a preset or a strength, as in
    `last_kept:light`; empty: the server's default."""
    frame_width: int = 0
    """Of the source, in pixels, in [1, 16384]: some model families keep its shape. 0, with the
    height: 1280 x 720."""
    frame_height: int = 0
    unit_token_count: int = 0
    """Tokens of a unit's picture at most, for families that size frames by it; 0: the server's."""


class OnFull(Enum):
    """What happens when a budget, or the disk, is full."""

    REFUSE = "refuse"
    """A push that finds no room ends with STORE_FULL."""
    DROP_OLDEST = "drop_oldest"
    """The oldest video is forgotten."""
    THIN = "thin"
    """Old video loses tokens; its length stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepingRules:
    """What is kept of a session; each field that is left out is as the server's default says."""

    session_budget_bytes: int = 0
    """Disk that it may take, its index included, from 1 MiB on; 0: the server's default."""
    on_full: OnFull | None = None
    """None: the server's default."""
    retain_s: float = 0.0
    """Older video is forgotten; infinity: none is; 0: the server's default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RulesInForce:
    """The rules that hold for a session, the server's defaults filled in."""

    session_budget_bytes: int
    """0: no limit."""
    on_full: OnFull
    retain_s: float
    """0: nothing is forgotten for its age."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PinnedSpan:
    """A span of stream time of which nothing is thinned, dropped or aged out."""

    start_s: float
    """Inclusive."""
    end_s: float
    """Exclusive."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """What is remembered of a session."""

    visible_unit_count: int
    """Units that questions can use."""
    durable_unit_count: int
    """Units that survive a crash."""
    first_pts_s: float | None
    last_visible_pts_s: float | None
    last_durable_pts_s: float | None
    token_count: int
    disk_bytes: int
    gap_count: int
    """Holes in the stream longer than the server's limit."""
    dropped_unit_count: int
    """Oldest units that were dropped, to make room or for their age; not in the other counts."""
    drop_fraction: float = 0.0
    """Share of the visual tokens of the units that are not kept, in [0, 1]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """The frames that were encoded together, mostly one. Times in seconds of the stream."""

    first_pts_s: float
    last_pts_s: float
    token_count: int
    """Visual tokens that are kept of it."""
    drop_fraction: float
    """Share of its visual tokens that are not, in [0, 1]: low where something new is seen."""
    gap_before: bool
    """Whether a hole in the stream lies before it."""
    coarsened: bool
    """Whether it lost tokens since it was stored, to make room."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One stream of video and everything remembered of it."""

    session_id: str
    display_name: str
    state: SessionState
    create_time: datetime.datetime
    """In UTC."""
    settings: SessionSettings
    stats: SessionStats | None
    """None, in a list: it is damaged and cannot be read now; `get_session` says why."""
    model: str
    """Name and digest of the model that encodes the session."""
    kv_encoding: str = "model"
    """How keys and values are stored: "model" (as the model makes them), "int8" or "int4"."""
    keeping: KeepingRules = KeepingRules()
    """What was said for this session of what is kept."""
    keeping_in_force: RulesInForce | None = None
    """What holds for it; None: the server is older than such rules."""
    pinned_spans: tuple[PinnedSpan, ...] = ()
    """In order of time, apart from each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pinned:
    """What came of pinning a span."""

    session: Session
    """As it is now."""
    thinned_unit_count: int
    """Units of the span that had been thinned before: what is left of them stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A question asked before, and its answer."""

    question: str
    answer: str
    evidence_until_s: float | None = None
    """How far the answer saw, as `Answer.evidence_until_s` said: a question as of an earlier time
    goes without the turn. None: it tells of nothing that such a question may not see."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalOptions:
    """What may be read from memory for one question; absent values take the server's default."""

    mode: RetrievalMode | None = None
    unit_count: int | None = None
    """Units in context, the recent ones included."""
    token_count: int | None = None
    """Tokens in context per layer; prefix, question and answer not counted."""
    recent_unit_count: int | None = None
    """Newest units, taken first and charged to the budget."""
    unit_indices: tuple[int, ...] = ()
    """Exactly these units in every layer, in place of retrieval; the rest is then absent."""
    search_each_token: bool = False
    """Search by each of the question's tokens beside their mean: for questions that name several
    things."""

    def __post_init__(self) -> None:
        # 0 would travel as "the default": refused rather than turned into something else.
        for name in ("unit_count", "token_count"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, or None for the default, got {value}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingOptions:
    """How text is decoded; absent values take the model's own settings."""

    max_new_token_count: int | None = None
    temperature: float | None = None
    """0: greedy."""
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    """Go on to `max_new_token_count` whatever the model says; for measurements."""

    def __post_init__(self) -> None:
        count = self.max_new_token_count
        if count is not None and count < 1:
            raise ValueError(
                f"max_new_token_count must be >= 1, or None for the default, got {count}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    """More text of an answer; never half a character."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One moment that an answer rests on."""

    start_s: float
    """Inclusive."""
    end_s: float
    """Exclusive."""
    score: float
    """Mean over the layers of the softmax retrieval score, summed over the moment; 0 to 1."""
    tier: Tier
    """The slowest tier it was read from."""
    coarsened: bool = False
    """Whether the answer used something of it that had been thinned."""


class LossReason(Enum):
    """Why a moment could not be read."""

    CHECKSUM = "checksum"
    """Its bytes are not those that were written."""
    UNREADABLE = "unreadable"
    """The disk could not read it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LostEvidence:
    """One moment that was chosen to answer from, and was left out because it is damaged."""

    start_s: float
    """Inclusive."""
    end_s: float
    """Exclusive."""
    first_unit_index: int
    unit_count: int
    reason: LossReason
    first_layer_index: int
    """The first layer of the model that did without it; those before it had read theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CoarsenedEvidence:
    """One moment in an answer's context that had lost tokens since it was stored, to make room."""

    start_s: float
    """Inclusive."""
    end_s: float
    """Exclusive."""
    first_unit_index: int
    unit_count: int
    token_count: int
    """That are left."""
    whole_token_count: int
    """Of whole units."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer and what it rests on."""

    text: str
    finish_reason: FinishReason
    choice_index: int | None
    choice_log_likelihoods: tuple[float, ...]
    evidence: tuple[Evidence, ...]
    """Best first."""
    evidence_until_s: float
    """Time of the last frame the answer could see."""
    asked_at_s: float
    """Time of the question in the stream: as asked, or `evidence_until_s`."""
    retrieved_unit_count: int
    retrieved_token_count: int
    prompt_token_count: int
    answer_token_count: int
    ttft_s: float
    """From the request's arrival at the server to the first token."""
    total_s: float
    model: str
    snapshot_unit_count: int
    """Units the question could choose from."""
    evidence_lost: tuple[LostEvidence, ...]
    """What was chosen and could not be read, in order of time; mostly empty."""
    remembers_from_s: float | None
    """Start of what is remembered, where older video was dropped; None: from the start."""
    evidence_coarsened: tuple[CoarsenedEvidence, ...] = ()
    """What the answer used that had been thinned, in order of time; mostly empty."""
    history_turn_count: int = 0
    """Earlier turns that were used, of those sent: the newest that it may see and that fit."""
    units_read: tuple[tuple[int, ...], ...] = ()
    """Per layer the indices of the units in its context, ascending; empty unless asked for."""
