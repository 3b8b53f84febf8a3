"""Turns what a handler raises into the status a client can act on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc

from svc.rpc.errors import Reason, RequestError

logger = logging.getLogger(__name__)

Translate = Callable[[Exception], RequestError | None]
"""Gives the refusal that stands for an error of a lower package, or None for a fault of ours."""


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Aborts calls with rich errors; unknown errors are logged whole and shown as INTERNAL."""

    def __init__(self, translate: Translate) -> None:
        """`translate` knows the errors of the packages that the process uses."""
        self._translate = translate

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """Wraps the handler; all of ours are either unary-unary or response-streaming."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = str(handler_call_details.method)
        if method.startswith("/grpc."):  # health and reflection answer for themselves
            return handler
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(
                self._guard_unary(handler.unary_unary, method), *coders
            )
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(
                self._guard_stream(handler.unary_stream, method), *coders
            )
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(
                self._guard_stream(handler.stream_stream, method), *coders
            )
        raise TypeError(f"no guard for the arity of {method}")

    def _guard_unary(self, inner: Any, method: str) -> Any:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await inner(request, context)
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - the boundary of the process
                await self._abort(error, context, method)

        return guarded

    def _guard_stream(self, inner: Any, method: str) -> Any:
        async def guarded(
            request: Any, context: grpc.aio.ServicerContext[Any, Any]
        ) -> AsyncIterator[Any]:
            try:
                # Closed here and now: what a handler holds is released by its own task.
                async with contextlib.aclosing(inner(request, context)) as responses:
                    async for response in responses:
                        yield response
            except (grpc.aio.AbortError, asyncio.CancelledError):
                raise
            except Exception as error:  # noqa: BLE001 - the boundary of the process
                await self._abort(error, context, method)

        return guarded

    async def _abort(
        self, error: Exception, context: grpc.aio.ServicerContext[Any, Any], method: str
    ) -> NoReturn:
        refusal = error if isinstance(error, RequestError) else self._translate(error)
        if refusal is None:
            refusal = RequestError(Reason.INTERNAL, "internal error; the server's log has details")
        if refusal.reason is Reason.INTERNAL:
            logger.error("call failed", extra={"method": method}, exc_info=error)
        else:
            logger.info("call refused", extra={"method": method, "reason": refusal.reason.name})
        status = refusal.to_status()
        await context.abort(status.code, status.details, status.trailing_metadata)
        raise AssertionError("abort raises")
