"""The thread that loads the model and then answers on it until the process ends."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from dataclasses import dataclass
from typing import TypeVar

import torch
from transformers.utils import logging as transformers_logging

from svc.config import Settings
from svc.engine.answer import AnswerEngine
from svc.engine.answer_request import AnswerLimits
from svc.engine.model import LoadedModel, load_model
from svc.engine.serving import ServingDefaults, model_config, serving_defaults
from svc.qa.runner import Runner
from svc.qa.warm_up import warm_up

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the process answers with."""

    model: LoadedModel
    engine: AnswerEngine
    defaults: ServingDefaults


class ModelThread:
    """Loads, then steps a runner. A daemon: a process told to stop while it loads just stops."""

    def __init__(self, settings: Settings, runner: Runner) -> None:
        """Starts nothing; call `start` on the event loop."""
        self._settings = settings
        self._runner = runner
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._loop = asyncio.get_running_loop()
        self.loaded: asyncio.Future[Loaded] = self._loop.create_future()
        """The model, ready to answer; or why there is none."""
        self.ended: asyncio.Future[None] = self._loop.create_future()
        """Done after `stop`; or what broke the thread, which nothing can mend."""

    def start(self) -> None:
        """Begins to load."""
        self._thread.start()

    async def stop(self, timeout_s: float) -> None:
        """Lets the step that runs now end; waits `timeout_s` at most. No step: returns at once."""
        self._runner.stop()
        if self.loaded.done() and self.loaded.exception() is None:
            await asyncio.wait({self.ended}, timeout=timeout_s)

    def _work(self) -> None:
        torch.set_num_threads(self._settings.threads_of("qa"))
        try:
            loaded = _load(self._settings)
        except Exception as error:  # noqa: BLE001 - told to whoever waits for the model
            self._tell(self.loaded, error)
            return
        self._tell(self.loaded, loaded)
        try:
            self._runner.run(loaded.engine)
        except Exception as error:  # noqa: BLE001 - told to whoever watches the thread
            self._tell(self.ended, error)
        else:
            self._tell(self.ended, None)

    def _tell(self, future: asyncio.Future[T], outcome: T | Exception) -> None:
        def settle() -> None:
            if future.done():
                return
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(settle)


def _load(settings: Settings) -> Loaded:
    transformers_logging.disable_progress_bar()  # standard error holds log lines only
    config = model_config(settings.model, settings.dtype, settings.device)
    defaults = serving_defaults(config)
    model = load_model(config, vision=False)
    limits = AnswerLimits(max_lost_fraction=settings.max_lost_fraction)
    engine = AnswerEngine(model, limits)
    warm_up(engine, model)
    return Loaded(model=model, engine=engine, defaults=defaults)
