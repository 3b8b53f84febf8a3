"""The QA process as a child, sessions written straight into its store, and questions to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from kvstore.limits import BlockLimits
from kvstore.session import SessionRecord, create_session, load_session, update_session
from lookback.v1 import question_pb2 as pb
from lookback.v1 import question_pb2_grpc
from svc.engine.ingest_session import FrameUnit, StoreOptions, StreamIngest
from svc.engine.model import LoadedModel
from svc.engine.serving import model_identity
from svc.engine.window import WindowConfig

ROOT = Path(__file__).parents[3]
CALL_TIMEOUT_S = 120.0
WINDOW = WindowConfig(window_tokens=64, window_positions=64)
LIMITS = BlockLimits(block_tokens=36, block_span_s=4.0, min_free_bytes=0)


class LiveSession:
    """The writing end of a session, in the test's own process: one random frame a second."""

    def __init__(
        self,
        store: Path,
        model: LoadedModel,
        session_id: str,
        *,
        identity: Mapping[str, str] | None = None,
        window: WindowConfig = WINDOW,
        limits: BlockLimits = LIMITS,
    ) -> None:
        self._window = window
        self._limits = limits
        self.session_id = session_id
        self._store = store
        self._model = model
        create_session(
            store,
            SessionRecord(
                session_id=session_id,
                created_unix_s=time.time(),
                unit_period_s=1.0,
                identity={**model_identity(model), **(identity or {})},
            ),
        )
        self.open()

    def open(self) -> None:
        options = StoreOptions(
            root=self._store,
            limits=self._limits,
        )
        self.stream = StreamIngest.open(self._model, self._window, self.session_id, options)
        self._open = True

    def push(self, times_s: Sequence[float], *, gap_before: bool = False) -> None:
        """Makes frames of these times visible. What a frame shows depends on its time alone."""
        for time_s in times_s:
            seed = int(1000 * time_s) + sum(self.session_id.encode())
            shown = np.random.default_rng(seed).integers(0, 256, (31, 42, 3), dtype=np.uint8)
            self.push_frame(time_s, shown, gap_before=gap_before)
            gap_before = False

    def push_frame(
        self, time_s: float, shown: NDArray[np.uint8], *, gap_before: bool = False
    ) -> None:
        """Makes one (H, W, 3) frame visible."""
        unit = FrameUnit(
            pixels=self._model.adapter.preprocess([shown]),
            first_pts_s=time_s,
            last_pts_s=time_s,
            gap_before=gap_before,
            thumbnail_jpeg=b"",
            resume=b"{}",
        )
        self.stream.encode([unit])

    @property
    def hot_tail_path(self) -> Path:
        """The file in shared memory that holds the newest units."""
        path: Path = self.stream._writer._hot.path
        return path

    def close(self) -> None:
        """Lets go of the session, as a process does that ends; what is not durable is lost."""
        if self._open:
            self._open = False
            self.stream.close()

    def finish(self) -> None:
        """Marks the session finished, with everything on disk."""
        self.stream.flush()
        self.close()
        record = load_session(self._store, self.session_id)
        update_session(self._store, replace(record, state="finished"))


@dataclass(frozen=True)
class Refusal:
    """How a call failed."""

    code: grpc.StatusCode
    message: str
    reason: str | None
    metadata: dict[str, str] = field(default_factory=dict)
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: grpc.RpcError) -> Refusal:
        info = error_details_pb2.ErrorInfo()
        retry = error_details_pb2.RetryInfo()
        reason, metadata, retry_after_s = None, {}, None
        status = rpc_status.from_call(error)
        for detail in status.details if status else []:
            if detail.Unpack(info):
                reason, metadata = info.reason, dict(info.metadata)
            if detail.Unpack(retry):
                retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
        return cls(error.code(), error.details(), reason, metadata, retry_after_s)  # type: ignore[attr-defined]


class QaProcess:
    """`python -m svc.qa` with these settings. Use in a `with` block."""

    def __init__(self, **settings: object) -> None:
        self._environment = {
            **{name: value for name, value in os.environ.items() if "LOOKBACK_" not in name},
            **{f"LOOKBACK_{name.upper()}": str(value) for name, value in settings.items()},
            "LOOKBACK_QA_THREADS": "1",
            "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}",
            "HF_HUB_OFFLINE": "1",
        }
        self._environment.setdefault("LOOKBACK_QA_PORT", "0")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "svc.qa"],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.address = ""

    def __enter__(self) -> QaProcess:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            _, log = self.process.communicate()
            raise AssertionError(f"the process ended with {self.process.returncode}: {log}")
        event = json.loads(line)
        assert (event["event"], event["process"]) == ("ready", "qa")
        self.address = event["address"]
        self.channel = grpc.insecure_channel(self.address)
        self.stub = question_pb2_grpc.QuestionServiceStub(self.channel)
        return self

    def __exit__(self, *error: object) -> None:
        self.channel.close()
        self.process.kill()
        self.process.communicate()

    def stop(self) -> tuple[int, str]:
        """Asks the process to stop; returns its exit status and its log."""
        self.process.send_signal(signal.SIGTERM)
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log

    def call(self, session_id: str, question: str = "What was it?", **fields: Any) -> grpc.Call:
        """Begins a question."""
        timeout_s = fields.pop("timeout_s", CALL_TIMEOUT_S)
        message = pb.AskRequest(
            **{
                "session_id": session_id,
                "question": question,
                "decoding": pb.DecodingOptions(
                    max_new_token_count=8, temperature=0.0, ignore_eos=True
                ),
                **fields,
            }
        )
        return self.stub.Ask(message, timeout=timeout_s)

    def ask(self, session_id: str, question: str = "What was it?", **fields: Any) -> pb.Answer:
        """Returns the answer; its text came in pieces that add up to it."""
        return finish(self.call(session_id, question, **fields))

    def refusal(self, session_id: str, question: str = "What was it?", **fields: Any) -> Refusal:
        """Returns how the question failed."""
        try:
            answer = self.ask(session_id, question, **fields)
        except grpc.RpcError as error:
            return Refusal.of(error)
        raise AssertionError(f"not refused: {answer}")


def finish(call: grpc.Call) -> pb.Answer:
    """Reads a call to its end."""
    text = ""
    for response in call:
        kind = response.WhichOneof("response")
        if kind == "delta":
            text += response.delta.text
        else:
            assert response.answer.text == text
            assert next(iter(call), None) is None
            return response.answer
    raise AssertionError("the call ended without an answer")


def sampled(token_count: int) -> pb.DecodingOptions:
    """Decoding that goes on for so many tokens, whatever the model says."""
    return pb.DecodingOptions(max_new_token_count=token_count, temperature=0.0, ignore_eos=True)
