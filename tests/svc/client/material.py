"""What is pushed and answered in tests of the client."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

from lookback.v1 import question_pb2
from svc.client.replay import pts_s_of, starts_here
from svc.video.frames import ImageItem, ImageMedia, Item, Media, PacketItem


def one_answer(request: question_pb2.AskRequest) -> Iterator[question_pb2.AskResponse]:
    """An answer in two pieces, with two moments."""
    for text in ("A red ", "circle."):
        yield question_pb2.AskResponse(delta=question_pb2.TextDelta(text=text))
    answer = question_pb2.Answer(
        text="A red circle.",
        finish_reason=question_pb2.Answer.FINISH_REASON_STOP,
        evidence=[
            question_pb2.Evidence(
                start_s=12.0, end_s=15.0, score=0.75, tier=question_pb2.Evidence.TIER_DISK
            ),
            question_pb2.Evidence(
                start_s=61.5, end_s=62.5, score=0.125, tier=question_pb2.Evidence.TIER_HOT
            ),
        ],
        evidence_until_s=62.0,
        asked_at_s=request.asked_at_s if request.HasField("asked_at_s") else 62.0,
        retrieved_unit_count=8,
        retrieved_token_count=288,
        prompt_token_count=310,
        answer_token_count=4,
        ttft_s=0.25,
        total_s=0.5,
        model="tiny@0123abcd",
        snapshot_unit_count=63,
        history_turn_count=len(request.history),
    )
    if request.choices:
        answer.finish_reason = question_pb2.Answer.FINISH_REASON_CHOICE
        answer.choice_index = len(request.choices) - 1
        answer.choice_log_likelihoods.extend(-float(i) - 1 for i in range(len(request.choices)))
    yield question_pb2.AskResponse(answer=answer)


@dataclass
class ListSource:
    """Items of a list, as a source."""

    items_list: list[Item]
    media: Media = dataclasses.field(default_factory=ImageMedia)
    starts: list[float | None] = dataclasses.field(default_factory=list)

    def items(self, from_pts_s: float | None = None) -> Iterator[Item]:
        self.starts.append(from_pts_s)
        first = 0
        for index, item in enumerate(self.items_list):
            if from_pts_s is not None and starts_here(item) and _pts_s(item) <= from_pts_s:
                first = index
        yield from self.items_list[first:]


def images(count: int, size_bytes: int = 10) -> list[Item]:
    """One image a second."""
    return [ImageItem(pts_s=float(i), data=bytes(size_bytes)) for i in range(count)]


def _pts_s(item: Item) -> float:
    pts_s = pts_s_of(item)
    assert pts_s is not None
    return pts_s


def packets(count: int, key_every: int) -> list[Item]:
    """One packet a second, every so many of them a key frame."""
    return [
        PacketItem(pts_s=float(i), data=bytes(10), key_frame=i % key_every == 0)
        for i in range(count)
    ]


async def live(items: list[Item]) -> AsyncIterator[Item]:
    """The items as they come to be, which is at once."""
    for item in items:
        yield item
