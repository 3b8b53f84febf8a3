"""`lookback store`: the folder in which memory is kept."""

from __future__ import annotations

import typer

from svc.cli import store_archive, store_repair, store_scrub, store_stat, store_verify

app = typer.Typer(no_args_is_help=True, help="Looks after the folder in which memory is kept.")
app.command()(store_stat.stat)
app.command()(store_verify.verify)
app.command()(store_scrub.scrub)
app.command()(store_repair.repair)
app.command()(store_archive.export)
app.command("import")(store_archive.import_)
