"""What is wrong with a video, as a command says it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from svc.cli.failures import CommandError, reason_of


@contextlib.contextmanager
def video_errors() -> Iterator[None]:
    """Lets what is wrong with a video be said in one line."""
    from svc.video.errors import VideoError

    try:
        yield
    except VideoError as error:
        raise CommandError(reason_of(error), str(error)) from error
