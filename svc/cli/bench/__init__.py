"""`lookback bench`: how fast, beside what, on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(no_args_is_help=True, help="Measure speed and memory beside baselines.")

_JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Also write the figures to FILE.")
]
_AgesOption = Annotated[
    list[int] | None,
    typer.Option("--age", help="Stream age in seconds at which to ask; may be given again."),
]


@app.command()
def answer(
    age: _AgesOption = None,
    questions: Annotated[int, typer.Option(min=3, help="Questions at each age.")] = 40,
    stock: Annotated[
        bool, typer.Option(help="Run the stock model on the whole stream beside it.")
    ] = True,
    json_file: _JsonOption = None,
) -> None:
    """Time to the first token as a stream grows old, idle and while it is pushed."""
    from svc.cli.bench.answer import bench_answer

    bench_answer(sorted(age or [600, 3600, 14400]), questions, stock, json_file)


@app.command()
def ingest(
    frames: Annotated[int, typer.Option(min=256, help="Frames of each timed run.")] = 1200,
    hours: Annotated[float, typer.Option(min=0.2, help="Stream hours of the memory run.")] = 4.0,
    json_file: _JsonOption = None,
) -> None:
    """Frames per second beside the bare model, and memory as a stream grows old."""
    from svc.cli.bench.ingest import bench_ingest

    bench_ingest(frames, hours, json_file)


@app.command()
def concurrency(
    rounds: Annotated[int, typer.Option(min=1, help="Turns; the median ratio counts.")] = 5,
    questions: Annotated[int, typer.Option(min=20, help="Short questions of each kind.")] = 100,
    units: Annotated[int, typer.Option(min=8, help="Timed units of each live session.")] = 100,
    json_file: _JsonOption = None,
) -> None:
    """Many questions and many live sessions at once, beside one after another."""
    from svc.cli.bench.concurrency import bench_concurrency

    bench_concurrency(rounds, questions, units, json_file)


@app.command()
def store(
    units: Annotated[int, typer.Option(min=16, help="7B units of the session read.")] = 128,
    rounds: Annotated[
        int, typer.Option(min=1, help="Turns; the median of their ratios counts.")
    ] = 5,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", exists=True, file_okay=False, help="Where to write; else as TMPDIR."),
    ] = None,
    disk_io: Annotated[
        Literal["auto", "direct", "buffered"],
        typer.Option(help="Past the page cache or through it, as the service."),
    ] = "auto",
    json_file: _JsonOption = None,
) -> None:
    """The store beside bare memory and the bare disk: reads, appends, search, overhead."""
    from svc.cli.bench.store import bench_store
    from svc.cli.bench.store_sizes import Sizes

    bench_store(folder, Sizes(units=units, rounds=rounds, disk_io=disk_io), json_file)


@app.command()
def encoding(
    units: Annotated[int, typer.Option(min=1, help="7B units of each session written.")] = 40,
    rounds: Annotated[int, typer.Option(min=1, help="Turns; the best of each counts.")] = 7,
    json_file: _JsonOption = None,
) -> None:
    """Keys and values in 8 and 4 bits: bytes per stream hour, speed, and error of attention."""
    from svc.cli.bench.encoding import bench_encoding

    bench_encoding(units, rounds, json_file)


@app.command()
def ram(
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record what a running service reads, until Ctrl-C."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(file_okay=False, help="Folder of that service; else as `serve`.")
    ] = None,
    json_file: _JsonOption = None,
) -> None:
    """Recorded questions replayed through the policies of the RAM tier: hits by its size."""
    from svc.cli.bench.ram import bench_ram, record_trace
    from svc.config import read_settings

    if record is None:
        bench_ram(json_file)
        return
    settings = read_settings(data_dir=data)
    record_trace(settings.data_dir, settings.shm_dir, record)
