"""`python -m svc.qa`: the process that answers."""

from __future__ import annotations

import asyncio
import sys

from svc.config import ConfigError, read_settings
from svc.engine.errors import EngineError
from svc.logs import configure_logs
from svc.open_files import allow_open_files
from svc.refusal import tell_refusal
from svc.rpc.ports import check_port

EXIT_CLEAN, EXIT_CRASH, EXIT_CONFIG = 0, 1, 2


def main() -> int:
    """Runs the process with settings from the environment; returns its exit status."""
    try:
        settings = read_settings()
        configure_logs("qa", settings.log_level)
        allow_open_files()
        check_port("qa_port", settings.host, settings.qa_port)
        # Takes seconds to import: a wrong setting is told at once.
        from svc.qa.process import serve

        return EXIT_CLEAN if asyncio.run(serve(settings)) else EXIT_CRASH
    except (ConfigError, EngineError) as error:
        tell_refusal("qa", error)
        return EXIT_CONFIG


if __name__ == "__main__":
    sys.exit(main())
