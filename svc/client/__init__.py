"""The client of Lookback: typed, asynchronous, without a model.

Start at `client.py`; what it takes and gives is in `types.py`, `source.py` and `events.py`.
"""

from svc.client.channel import wait_ready
from svc.client.client import LookbackClient
from svc.client.conversation import Conversation
from svc.client.errors import LookbackError
from svc.client.events import (
    PushEvent,
    PushFinished,
    PushGap,
    PushLeft,
    PushOpened,
    PushProgress,
    PushReconnecting,
)
from svc.client.questions import AskOptions, QuestionOptions
from svc.client.source import AnySource, LiveSource, Source
from svc.client.source_label import SourceLabel, label_of_file
from svc.client.types import (
    Answer,
    CoarsenedEvidence,
    DecodingOptions,
    Evidence,
    FinishReason,
    KeepingRules,
    LossReason,
    LostEvidence,
    OnFull,
    Pinned,
    PinnedSpan,
    RetrievalMode,
    RetrievalOptions,
    RulesInForce,
    Session,
    SessionSettings,
    SessionState,
    SessionStats,
    TextDelta,
    Tier,
    Turn,
    Unit,
)

__all__ = [
    "Answer",
    "AnySource",
    "AskOptions",
    "CoarsenedEvidence",
    "Conversation",
    "DecodingOptions",
    "Evidence",
    "FinishReason",
    "KeepingRules",
    "LiveSource",
    "LookbackClient",
    "LookbackError",
    "LossReason",
    "LostEvidence",
    "OnFull",
    "Pinned",
    "PinnedSpan",
    "PushEvent",
    "PushFinished",
    "PushGap",
    "PushLeft",
    "PushOpened",
    "PushProgress",
    "PushReconnecting",
    "QuestionOptions",
    "RetrievalMode",
    "RetrievalOptions",
    "RulesInForce",
    "Session",
    "SessionSettings",
    "SessionState",
    "SessionStats",
    "Source",
    "SourceLabel",
    "TextDelta",
    "Tier",
    "Turn",
    "Unit",
    "label_of_file",
    "wait_ready",
]
