"""Stands in for the ingest process."""

from tests.svc.stand_in_process import run

run("ingest")
