"""The tiny model, and one QA process for the tests that leave it as it is."""

from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path

import pytest

from svc.engine.model import LoadedModel
from tests.svc.engine.conftest import _one_thread, tiny_model, tiny_path
from tests.svc.qa.bench import JOIN_S, Bench
from tests.svc.qa.service import LiveSession, QaProcess

__all__ = ["_one_thread", "tiny_model", "tiny_path"]

_COUNT = count()


@pytest.fixture(scope="session")
def model(tiny_model: Callable[[str], LoadedModel]) -> LoadedModel:
    """The tiny model, as the process loads it, but with vision."""
    return tiny_model("float32")


@pytest.fixture(scope="package")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the shared process."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="package")
def qa(store: Path, tiny_path: Path) -> Iterator[QaProcess]:
    """A process that answers with the tiny model; every test uses sessions of its own."""
    with QaProcess(data_dir=store, model=tiny_path, max_open_questions=4) as process:
        yield process


@pytest.fixture
def live(
    store: Path, model: LoadedModel, request: pytest.FixtureRequest
) -> Iterator[Callable[..., LiveSession]]:
    """Makes live sessions of the shared store, named after the test."""
    sessions: list[LiveSession] = []
    name = "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:40].strip("-")

    def make(suffix: str = "0", identity: Mapping[str, str] | None = None) -> LiveSession:
        session_id = f"{name}-{next(_COUNT)}-{suffix}"
        sessions.append(LiveSession(store, model, session_id, identity=identity))
        return sessions[-1]

    yield make
    for session in sessions:
        session.close()


@pytest.fixture
def session(tmp_path: Path, model: LoadedModel) -> Iterator[LiveSession]:
    """Six seconds in a store of its own at `tmp_path`, still live."""
    session = LiveSession(tmp_path, model, "door")
    session.push([float(t) for t in range(6)])
    yield session
    session.close()


@pytest.fixture
def bench(tmp_path: Path, model: LoadedModel, session: LiveSession) -> Iterator[Bench]:
    """An answerer over the store at `tmp_path`."""
    bench = Bench(tmp_path, model)
    yield bench
    bench.runner.stop()
    bench.thread.join(JOIN_S)
    bench.sessions.close()
