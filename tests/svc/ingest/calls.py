"""A client that does exactly what a test says, right or wrong, over a real channel."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from lookback.v1 import ingest_pb2, ingest_pb2_grpc, session_pb2, session_pb2_grpc
from svc.ingest.server import IngestServer

_DEADLINE_S = 60.0


def jpeg(seed: int) -> bytes:
    """Returns a small picture that no other seed gives."""
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=90)
    return out.getvalue()


def images(pts_s: Iterable[float]) -> ingest_pb2.IngestRequest:
    """Returns a message of one picture per time; the picture depends on the time alone."""
    return ingest_pb2.IngestRequest(
        images=ingest_pb2.Images(
            images=[ingest_pb2.Image(pts_s=t, data=jpeg(int(t * 1000))) for t in pts_s]
        )
    )


def open_images(session_id: str) -> ingest_pb2.IngestRequest:
    """Returns the first message of a call that sends pictures."""
    return ingest_pb2.IngestRequest(
        open=ingest_pb2.Open(session_id=session_id, images=ingest_pb2.ImageMedia())
    )


FINISH = ingest_pb2.IngestRequest(finish=ingest_pb2.Finish())


class Refused(Exception):  # noqa: N818 - it is what the test looks for
    """A call that ended with an error, as a client sees it."""

    def __init__(self, reason: str, code: grpc.StatusCode, message: str) -> None:
        super().__init__(f"{reason} {code}: {message}")
        self.reason = reason
        self.code = code
        self.message = message


async def refused(call: Any) -> Refused:
    """Returns the error that a call ended with."""
    status = await rpc_status.aio.from_call(call)
    reason = ""
    if status is not None:
        info = error_details_pb2.ErrorInfo()
        for detail in status.details:
            if detail.Unpack(info):
                reason = info.reason
    return Refused(reason, await call.code(), str(await call.details()))


class IngestCall:
    """One Ingest call."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.opened = ingest_pb2.Opened()
        self.progress = ingest_pb2.Progress()
        self.draining: ingest_pb2.Draining | None = None
        self.finished: ingest_pb2.Finished | None = None

    async def send(self, *requests: ingest_pb2.IngestRequest) -> None:
        """Writes messages without a look at the credit.

        Raises:
            Refused: the call has ended with an error.
        """
        for request in requests:
            try:
                await self._call.write(request)
            except grpc.aio.AioRpcError as error:
                raise await refused(self._call) from error

    async def half_close(self) -> None:
        """Ends the client's side."""
        await self._call.done_writing()

    def cancel(self) -> None:
        """Drops the call."""
        self._call.cancel()

    async def receive(self) -> bool:
        """Takes the next message; False at the end of the call.

        Raises:
            Refused: the call ended with an error.
        """
        try:
            response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise await refused(self._call) from error
        if response == grpc.aio.EOF:
            if await self._call.code() != grpc.StatusCode.OK:
                raise await refused(self._call)
            return False
        match response.WhichOneof("response"):
            case "opened":
                self.opened = response.opened
            case "progress":
                self.progress = response.progress
            case "draining":
                self.draining = response.draining
            case "finished":
                self.finished = response.finished
                self.progress = response.finished.progress
        return True

    async def until_visible(self, unit_count: int) -> None:
        """Receives until so many units are visible."""
        while self.progress.visible_unit_count < unit_count:
            assert await self.receive()

    async def until_durable(self, unit_count: int) -> None:
        """Receives until so many units are durable."""
        while self.progress.durable_unit_count < unit_count:
            assert await self.receive()

    async def rest(self) -> IngestCall:
        """Receives to the end of the call."""
        while await self.receive():
            pass
        return self

    async def send_all(self, requests: Iterable[ingest_pb2.IngestRequest]) -> None:
        """Writes messages of one item each within the credit, receiving when it is used up."""
        credit = self.opened.credit_item_count
        for sent_count, request in enumerate(requests):
            while sent_count >= max(credit, self.progress.credit_item_count):
                assert await self.receive()
            await self.send(request)


class Client:
    """Stubs of one server, and the server."""

    def __init__(self, address: str, server: IngestServer | None = None) -> None:
        self.address = address
        self.server = server
        self._channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        self._sessions = session_pb2_grpc.SessionServiceStub(self._channel)
        self._ingest = ingest_pb2_grpc.IngestServiceStub(self._channel)
        self._stopped = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel under the stubs."""
        return self._channel

    async def sessions(self, method: str, **fields: Any) -> Any:
        """Calls a method of SessionService with the fields of its request.

        Raises:
            Refused: it was refused.
        """
        request = getattr(session_pb2, f"{method}Request")(**fields)
        call = getattr(self._sessions, method)(request, timeout=_DEADLINE_S)
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            raise await refused(call) from error

    async def create(self, session_id: str, **settings: Any) -> Any:
        """Creates a session."""
        return await self.sessions("CreateSession", session_id=session_id, settings=settings)

    def ingest(self) -> IngestCall:
        """Starts an Ingest call and sends nothing."""
        return IngestCall(self._ingest.Ingest(timeout=_DEADLINE_S))

    async def open(self, first: ingest_pb2.IngestRequest) -> IngestCall:
        """Starts an Ingest call with its first message and takes the answer."""
        call = self.ingest()
        await call.send(first)
        assert await call.receive()
        return call

    async def stop_server(self) -> bool:
        """Stops the server as SIGTERM would; returns whether it was clean."""
        self._stopped = True
        assert self.server is not None
        return await self.server.stop()

    async def close(self) -> None:
        """Closes the channel, and the server if it runs; may be called again."""
        await self._channel.close()
        if self.server is not None and not self._stopped:
            assert await self.stop_server()
