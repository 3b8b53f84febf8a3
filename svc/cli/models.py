"""`lookback models`: what a model is, whether it is supported, what it would take."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Annotated, Any

import typer

from svc.cli.failures import EXIT_FAILED
from svc.cli.model_path import check_model
from svc.cli.store_folder import mib
from svc.config import BUILTIN_MODEL


def models(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A folder, a hub repository, or `builtin`.")
    ] = BUILTIN_MODEL,
    dtype: Annotated[
        str, typer.Option(help="Of weights, keys and values: as for `serve`, or `auto`.")
    ] = "auto",
    fps: Annotated[
        float, typer.Option(min=0.001, max=30.0, help="Frames taken of a second.")
    ] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Says what a model is, whether it is supported, and what it would take. Reads no weights.

    Exits with 1 when it is not supported, and says why.
    """
    check_model(model)
    from svc.engine.adapters.base import StreamShape
    from svc.engine.errors import UnsupportedModelError
    from svc.engine.model_facts import model_facts
    from svc.engine.serving import model_config

    config = model_config(model, dtype, "cpu")
    try:
        facts = model_facts(config, StreamShape(sample_fps=fps))
    except UnsupportedModelError as error:
        if as_json:
            found = {"model": model, "supported": False, "reason": error.reason}
            sys.stdout.write(json.dumps(found) + "\n")
        else:
            sys.stdout.write(f"{model}: not supported: {error.reason}\n")
        raise typer.Exit(EXIT_FAILED) from error
    fields = {"model": model, "supported": True, "dtype": config.dtype, "sample_fps": fps}
    fields |= dataclasses.asdict(facts)
    sys.stdout.write(json.dumps(fields) + "\n" if as_json else _told(fields))


def _told(fields: dict[str, Any]) -> str:
    hourly = fields["kv_bytes_per_hour"]
    lines = {
        "model": f"{fields['model']}: {fields['family']}, supported",
        "parameters": f"{fields['parameter_count']:,} in {fields['dtype']}",
        "weights": f"{mib(fields['ingest_weight_bytes'])} in the ingest process, "
        f"{mib(fields['qa_weight_bytes'])} in the QA process",
        "layers": f"{fields['layer_count']}, of {fields['kv_head_count']} key and value heads "
        f"of {fields['head_dim']}",
        "positions": f"{fields['max_position_count']:,}",
        "frames": f"{fields['frame_width']}x{fields['frame_height']} pixels, "
        f"{fields['frames_per_unit']} a unit, {fields['sample_fps']:g} a second",
        "tokens": f"{fields['tokens_per_unit']} a unit",
        "an hour": ", ".join(f"{mib(size)} as {name}" for name, size in hourly.items())
        + ", every token kept",
    }
    return "".join(f"{name:<12}{text}\n" for name, text in lines.items())
