"""Every limit of decoding in one place. What the client sends is not trusted."""

from __future__ import annotations

from dataclasses import dataclass, fields

KIB = 1024
MIB = 1024 * KIB
_PILLOW_BOMB_PIXELS = 89_478_485
"""Above it Pillow itself warns of a decompression bomb."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoLimits:
    """How much one stream of media may cost. All are per decoder."""

    max_pixels: int = 16_777_216
    """Pixels of a picture: 4096 x 4096, or 4K UHD twice. Checked before pixels are decoded."""
    max_image_bytes: int = 32 * MIB
    """Bytes of one still image, encoded or raw."""
    max_packet_bytes: int = 16 * MIB
    """Bytes of one codec packet."""
    max_extradata_bytes: int = MIB
    """Bytes of a codec's out-of-band configuration."""
    max_chunk_bytes: int = 4 * MIB
    """Bytes of one chunk of a container."""
    probe_bytes: int = 5 * MIB
    """Container bytes that are read to find out what is in it."""
    spool_limit_bytes: int = 512 * MIB
    """Size of an MP4 with its index behind its data, held on disk until it is complete."""
    frame_queue_count: int = 4
    """Decoded frames of a container that wait to be taken."""
    max_packets_before_key_frame: int = 3000
    """Packets passed over (and counted) while none is a key frame: 100 s at 30 fps."""
    max_corrupt_packets: int = 0
    """Damaged packets that are left out, up to the next key frame, and counted; one more
    is an error."""
    stall_timeout_s: float = 60.0
    """How long a container decoder may go without taking a byte or giving a frame."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name.startswith("max_corrupt") else 1
            if value < least:
                raise ValueError(f"{field.name} must be >= {least}, got {value}")
        if self.max_pixels > _PILLOW_BOMB_PIXELS:
            raise ValueError(f"max_pixels must be <= {_PILLOW_BOMB_PIXELS}, got {self.max_pixels}")
