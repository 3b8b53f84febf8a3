"""`lookback demo`: the main job on real video, in under a minute."""

from __future__ import annotations

from typing import Annotated

import typer


def demo(
    seed: Annotated[int, typer.Option(min=0, help="Seed of the generated clip.")] = 0,
    speed: Annotated[float, typer.Option(min=0.1, help="Seconds of video per second.")] = 24.0,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show the main job: push a generated clip, ask while it runs, check the answers.

    Starts two processes of its own on free ports and a store that is deleted afterwards. Exits
    with 1 when fewer than 10 in 12 answers are right.
    """
    from svc.cli.demo_run import run_demo

    status = run_demo(seed, speed, json_output)
    if status:
        raise typer.Exit(status)
