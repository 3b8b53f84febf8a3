"""The client of Lookback: typed, asynchronous, without a model.

Start at `client.py`; what it takes and gives is in `types.py`, `source.py` and `events.py`.
"""

from svc.client.channel import wait_ready
from svc.client.client import LookbackClient
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
from svc.client.questions import AskOptions
from svc.client.source import AnySource, LiveSource, Source
from svc.client.source_label import SourceLabel, label_of_file
from svc.client.types import (
    Answer,
    DecodingOptions,
    Evidence,
    FinishReason,
    LossReason,
    LostEvidence,
    RetrievalMode,
    RetrievalOptions,
    Session,
    SessionSettings,
    SessionState,
    SessionStats,
    TextDelta,
    Tier,
    Turn,
)

__all__ = [
    "Answer",
    "AnySource",
    "AskOptions",
    "DecodingOptions",
    "Evidence",
    "FinishReason",
    "LiveSource",
    "LookbackClient",
    "LookbackError",
    "LossReason",
    "LostEvidence",
    "PushEvent",
    "PushFinished",
    "PushGap",
    "PushLeft",
    "PushOpened",
    "PushProgress",
    "PushReconnecting",
    "RetrievalMode",
    "RetrievalOptions",
    "Session",
    "SessionSettings",
    "SessionState",
    "SessionStats",
    "Source",
    "SourceLabel",
    "TextDelta",
    "Tier",
    "Turn",
    "label_of_file",
    "wait_ready",
]
