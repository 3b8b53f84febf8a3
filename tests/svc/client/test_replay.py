"""What is held of a source that goes by once."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from svc.client.replay import ReplayBuffer
from svc.video.frames import ChunkItem, ImageItem, Item, PacketItem


@st.composite
def streams(draw: st.DrawFn) -> list[PacketItem]:
    """Groups of packets: a key frame, then others whose times are shuffled within the group."""
    items: list[PacketItem] = []
    for _ in range(draw(st.integers(1, 6))):
        start = len(items)
        others = draw(st.permutations(range(start + 1, start + 1 + draw(st.integers(0, 5)))))
        for time in (start, *others):
            size = draw(st.integers(1, 20))
            items.append(PacketItem(pts_s=float(time), data=bytes(size), key_frame=time == start))
    return items


def decodable_s(items: tuple[Item, ...]) -> set[float]:
    times: set[float] = set()
    for item in items:
        assert isinstance(item, PacketItem)
        if item.key_frame or times:
            times.add(item.pts_s)
    return times


@settings(deadline=None)
@given(streams(), st.data())
def test_what_is_not_durable_is_held_or_told_as_a_gap(
    items: list[PacketItem], data: st.DataObject
) -> None:
    limit_bytes = data.draw(st.integers(1, 200))
    buffer = ReplayBuffer(limit_bytes)
    durable_s: float | None = None
    for index, item in enumerate(items):
        buffer.add(item)
        if data.draw(st.booleans()):
            reached_s = float(data.draw(st.integers(0, index)))
            durable_s = reached_s if durable_s is None else max(durable_s, reached_s)
            buffer.trim(durable_s)
        assert sum(len(each.data) for each in buffer.held()) <= limit_bytes

    needed = {item.pts_s for item in items if durable_s is None or item.pts_s > durable_s}
    missing = needed - decodable_s(buffer.held())
    gap = buffer.gap_s(durable_s)
    if missing:
        assert gap is not None
        assert gap[0] <= min(missing)
        assert max(missing) <= gap[1]
    elif gap is not None:
        assert gap[0] <= gap[1]


@settings(deadline=None)
@given(streams(), st.integers(0, 30))
def test_with_room_enough_there_is_never_a_gap(items: list[PacketItem], durable: int) -> None:
    buffer = ReplayBuffer(10_000)
    for item in items:
        buffer.add(item)
    buffer.trim(float(durable))
    assert buffer.gap_s(float(durable)) is None
    assert {i.pts_s for i in items if i.pts_s > durable} <= decodable_s(buffer.held())


def test_only_the_last_key_frame_before_the_durable_time_stays() -> None:
    buffer = ReplayBuffer(10_000)
    for time in range(10):
        buffer.add(ImageItem(pts_s=float(time), data=b"x"))
    buffer.trim(6.5)
    assert [item.pts_s for item in buffer.held() if isinstance(item, ImageItem)] == [6, 7, 8, 9]


def test_a_container_is_held_from_its_first_chunk_or_not_at_all() -> None:
    buffer = ReplayBuffer(10)
    for _ in range(2):
        buffer.add(ChunkItem(data=bytes(5)))
    buffer.trim(100.0)
    assert len(buffer.held()) == 2
    assert not buffer.chunks_lost
    buffer.add(ChunkItem(data=bytes(5)))
    assert buffer.chunks_lost
    assert buffer.held() == ()
    buffer.add(ChunkItem(data=bytes(5)))
    assert buffer.held() == ()
