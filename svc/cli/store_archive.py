"""`lookback store export` and `import`: a session as one file, to a pipe or from one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from svc.cli.failures import CommandError
from svc.cli.store_folder import FolderArgument, byte_progress, disk_limits, mib, require_store
from svc.logs import only_errors_of
from svc.open_files import allow_open_files

_PIPE = "-"


def export(
    folder: FolderArgument,
    session: Annotated[str, typer.Argument(metavar="SESSION", help="Name of the session.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to write, `-`: stdout.")],
) -> None:
    """Writes a session into one archive that checks itself; the service may be running.

    Of a session that is being pushed, what is durable now. A damaged session is refused.
    """
    from kvstore.export import export_session

    require_store(folder)
    allow_open_files()
    with _written(file) as out, byte_progress("export") as progress:
        head = export_session(folder, session, out, progress)
    sys.stderr.write(
        f"exported {head.session_id}: {head.unit_count - head.first_unit} units, "
        f"{mib(head.byte_count)}\n"
    )


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Archive to read, `-`: stdin.")],
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", file_okay=False, help="Folder of the service.")
    ],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Name it so, not as it was named.")
    ] = None,
) -> None:
    """Takes a session in from an archive; it appears when all of it is there and verified.

    The service may be running. Models are not in an archive: the one that answers about the
    session must be the one that made it.
    """
    from kvstore.importing import import_session
    from svc.config import read_settings

    settings = read_settings()
    limits = disk_limits(settings)

    def make_index(root: Path, session_id: str) -> None:
        from svc.engine.index_repair import repair_index  # brings torch: not for a bad archive

        with only_errors_of("svc.engine"):  # that it is made anew is no news
            repair_index(root, session_id, limits=limits, shm_dir=settings.shm_dir)

    with _read(file) as source, byte_progress("import") as progress:
        folder.mkdir(parents=True, exist_ok=True)  # not where there is nothing to take in
        head = import_session(
            folder,
            source,
            session_id=name,
            limits=limits,
            finish=make_index,
            progress=progress,
        )
    sys.stderr.write(
        f"imported {name or head.session_id}: {head.unit_count - head.first_unit} units, "
        f"{mib(head.byte_count)}\n"
    )


@contextmanager
def _written(file: str) -> Iterator[BinaryIO]:
    """Standard output, or a file that appears when all of it is written."""
    if file == _PIPE:
        if sys.stdout.isatty():
            raise CommandError("IS_A_TERMINAL", "an archive is not for a terminal; name a file")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(file)
    if path.exists():
        raise CommandError("FILE_EXISTS", f"{path} exists already")
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.link(partial, path)  # unlike a rename, never over what has come there meanwhile
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _read(file: str) -> Iterator[BinaryIO]:
    if file == _PIPE:
        yield sys.stdin.buffer
        return
    with open(file, "rb") as source:
        yield source
