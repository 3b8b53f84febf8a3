"""Refusals reach the client whole, whatever they quote."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest

from lookback.v1 import question_pb2, question_pb2_grpc
from svc.client.errors import error_from_call
from svc.rpc.errors import Reason, RequestError
from svc.rpc.server import Address, RpcServer


class Refusing(question_pb2_grpc.QuestionServiceServicer):
    """Quotes what it was asked, in message and metadata."""

    async def Ask(  # noqa: N802 - named by the protocol
        self,
        request: question_pb2.AskRequest,
        context: grpc.aio.ServicerContext[question_pb2.AskRequest, question_pb2.AskResponse],
    ) -> AsyncIterator[question_pb2.AskResponse]:
        raise RequestError(
            Reason.SESSION_NOT_FOUND,
            f"there is no session {request.session_id!r}",
            session_id=request.session_id,
            again=request.session_id,
        )
        yield question_pb2.AskResponse()


@pytest.mark.parametrize("session_id", ["kitchen", "x" * 20_000, "\u20ac" * 20_000, "\n" * 6_000])
async def test_a_refusal_keeps_its_reason_however_long_the_value_it_quotes(session_id: str) -> None:
    server = RpcServer(
        address=Address(host="127.0.0.1", port=0),
        service_names=["lookback.v1.QuestionService"],
        translate=lambda error: None,
    )
    question_pb2_grpc.add_QuestionServiceServicer_to_server(Refusing(), server.grpc)
    address = str(await server.start())
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = question_pb2_grpc.QuestionServiceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                async for _ in stub.Ask(question_pb2.AskRequest(session_id=session_id), timeout=10):
                    pass
        error = error_from_call(raised.value, address)
        assert (error.reason, error.code) == ("SESSION_NOT_FOUND", grpc.StatusCode.NOT_FOUND)
        assert error.message.startswith("there is no session")
    finally:
        await server.stop(0)


def test_a_short_message_is_not_changed() -> None:
    assert str(RequestError(Reason.SESSION_EMPTY, "nothing yet \u2713")) == "nothing yet \u2713"
