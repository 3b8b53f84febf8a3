"""Runs the stand-ins under a supervisor, as a process of its own: what `lookback serve` does."""

import asyncio
import sys
from pathlib import Path

from svc.config import read_settings
from svc.supervisor import Supervisor
from tests.svc.test_supervisor import MODULES


async def main() -> None:
    settings = read_settings(data_dir=Path(sys.argv[1]), ingest_port=0, qa_port=0)
    async with Supervisor(settings, modules=MODULES) as service:
        print("serving", flush=True)
        await service.wait()


asyncio.run(main())
