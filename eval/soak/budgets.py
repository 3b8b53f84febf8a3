"""Half of what everything would take, as settings of the service."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from eval.soak.plan import OnFull
from eval.soak.run import Outcome

_CHECKPOINT = Path(__file__).resolve().parents[1] / "streamworld" / "checkpoint"
_OVERCOMMIT = 2
_ELEMENT_BYTES = 4  # float32, as the service computes on a CPU
_LEAST_MEMORY_BYTES = 2**20  # what the service takes for a RAM tier, and for a hot tail
_HOT_TAILS_FRACTION = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """What the bounded store may take, in bytes."""

    session_disk: int
    disk: int
    shared: int
    """Of the RAM tier and the hot tails of all pushes."""
    hot_tail: int
    """Of one push, within `shared`."""

    def settings(self, on_full: OnFull) -> dict[str, object]:
        """The service's settings that hold it to them."""
        return {
            "session_budget_bytes": self.session_disk,
            "disk_budget_bytes": self.disk,
            "ram_budget_bytes": self.shared,
            "hot_tail_bytes": self.hot_tail,
            "on_full": on_full,
        }


def half_of(whole: Outcome) -> Budgets:
    """Half of the disk that a store took, and of the memory that its keys and values would take."""
    totals = whole.totals
    session_count = len(totals.session_disk_bytes)
    keys_and_values = totals.token_count * _token_bytes(_CHECKPOINT)
    least = (1 + session_count) * _LEAST_MEMORY_BYTES
    shared = max(keys_and_values // _OVERCOMMIT, least)
    return Budgets(
        session_disk=max(totals.session_disk_bytes) // _OVERCOMMIT,
        disk=sum(totals.session_disk_bytes) // _OVERCOMMIT,
        shared=shared,
        hot_tail=max(shared // _HOT_TAILS_FRACTION // session_count, _LEAST_MEMORY_BYTES),
    )


def _token_bytes(checkpoint: Path) -> int:
    """Bytes of one token's keys and values in all layers of the model."""
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    head_dim = text["hidden_size"] // text["num_attention_heads"]
    elements = 2 * text["num_hidden_layers"] * text["num_key_value_heads"] * head_dim
    return int(elements) * _ELEMENT_BYTES
