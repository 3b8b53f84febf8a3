"""The store is read through beside the service: damage is logged once, and again when it is new."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.paths import segment_path, session_folder
from svc.ingest import scrubber as scrubber_module
from svc.ingest.scrubber import Scrubber
from tests.kvstore.samples import SESSION
from tests.kvstore.test_damage import build


class Passes(logging.Handler):
    """Counts the passes that were logged, and keeps what damage was."""

    def __init__(self) -> None:
        super().__init__()
        self.more = threading.Condition()
        self.passes: list[int] = []
        self.damage: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        with self.more:
            if record.getMessage() == "store scrubbed":
                self.passes.append(record.__dict__["damage_count"])
            if record.getMessage() == "stored data is damaged":
                self.damage.append(record)
            self.more.notify_all()

    def until(self, pass_count: int) -> None:
        with self.more:
            assert self.more.wait_for(lambda: len(self.passes) >= pass_count, timeout=60)


@pytest.fixture
def log() -> Iterator[Passes]:
    handler = Passes()
    logger = scrubber_module.logger
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


def flip(root: Path) -> None:
    """Damages the first block's unit table, or mends it."""
    with open(segment_path(session_folder(root, SESSION), 0), "r+b") as file:
        file.seek(2 * 4096 + 3)
        byte = file.read(1)[0]
        file.seek(2 * 4096 + 3)
        file.write(bytes([byte ^ 1]))


def test_damage_is_logged_once_for_as_long_as_it_lasts(tmp_path: Path, log: Passes) -> None:
    build(tmp_path)
    scrubber = Scrubber(tmp_path, bytes_per_s=1 << 40, first_pass_after_s=0, pass_every_s=0)
    scrubber.start()
    log.until(1)
    assert log.damage == []
    for times in (1, 2):
        flip(tmp_path)
        log.until(len(log.passes) + 3)
        assert len(log.damage) == times
        assert log.damage[-1].__dict__["session"] == SESSION
        assert log.damage[-1].__dict__["block"] == 0
        flip(tmp_path)
        log.until(len(log.passes) + 3)
    scrubber.stop()
    assert len(log.damage) == 2


def test_it_ends_at_once_in_the_middle_of_a_slow_pass(tmp_path: Path, log: Passes) -> None:
    build(tmp_path)
    scrubber = Scrubber(tmp_path, bytes_per_s=1, first_pass_after_s=0)
    scrubber.start()
    thread = scrubber._thread
    assert thread is not None
    scrubber.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert log.passes == []


def test_without_a_rate_nothing_is_read(tmp_path: Path) -> None:
    scrubber = Scrubber(tmp_path, bytes_per_s=0)
    scrubber.start()
    assert scrubber._thread is None
    scrubber.stop()


def test_a_store_that_cannot_be_read_now_is_tried_again(
    tmp_path: Path, log: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path)
    real = scrubber_module.StoreCheck
    failures = iter([OSError(5, "Input/output error")])

    def check(*arguments: object, **options: object) -> object:
        for failure in failures:
            raise failure
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scrubber_module, "StoreCheck", check)
    scrubber = Scrubber(tmp_path, bytes_per_s=1 << 40, first_pass_after_s=0, pass_every_s=0)
    scrubber.start()
    log.until(1)
    scrubber.stop()
    assert next(failures, None) is None
