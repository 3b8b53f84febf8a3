"""Stands in for the qa process."""

from tests.svc.stand_in_process import run

run("qa")
