"""What a decoder counted."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class DecoderCounters:
    """Counts since the decoder was opened."""

    items: int = 0
    """Images, packets or chunks that were pushed."""
    frames: int = 0
    """Frames that were given out."""
    packets_before_key_frame: int = 0
    """Packets passed over because decoding could not start there."""
    corrupt_packets: int = 0
    """Damaged packets."""
    ignored_bytes: int = 0
    """Bytes behind the end of what the container holds (an AVI's index, for one)."""
