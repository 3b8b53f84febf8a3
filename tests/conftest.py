"""What all tests share: examples that property tests try, a Ctrl-C that is heard, a memory limit.

A change is judged by the same examples each time, so that it does not fail for one that has
nothing to do with it. `make test-search` looks for others; what it finds goes into an `@example`.
No example is timed: what is slow on a busy machine is not wrong.
"""

from __future__ import annotations

import os
import resource
import signal

from hypothesis import settings

settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("search", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("repeatable")

_MOST_MEMORY_BYTES = 12 << 30

# Where tests run side by side, the cores are taken by other tests: a second thread of one kernel
# would only wait for them. It has to be said before torch, numpy or faiss is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure() -> None:
    """Hears SIGINT, which a shell has its background jobs ignore, and they their children.

    What runs away ends with a traceback that tells where, not with the machine's memory.
    """
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    if most == resource.RLIM_INFINITY or most > _MOST_MEMORY_BYTES:
        resource.setrlimit(resource.RLIMIT_DATA, (_MOST_MEMORY_BYTES, most))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
