"""`lookback` whose supervisor starts a dead process again at once.

Its pauses grow to half a minute for a process that keeps dying; a test that kills fifty times
means no harm.
"""

from svc import child
from svc.cli.main import main

if __name__ == "__main__":
    child._FIRST_PAUSE_S = child._LONGEST_PAUSE_S = 0.05
    main()
