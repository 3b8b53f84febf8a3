"""Runs a module that is told to stop when the process that started it is gone.

    python -m svc.tether PARENT_PID MODULE [ARGUMENT ...]

The wish is left with the kernel before the module starts, and outlives the exec; a parent that was
killed outright still takes its children with it. Doing this here rather than between fork and exec
keeps threads and gRPC of the parent out of the matter. Linux only; elsewhere the module just runs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Becomes `python -m MODULE ARGUMENT ...`."""
    parent_pid, module = int(sys.argv[1]), sys.argv[2]
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
        if os.getppid() != parent_pid:  # it died before the kernel knew
            raise SystemExit(0)
    os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[3:]])


if __name__ == "__main__":
    main()
