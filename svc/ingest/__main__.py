"""`python -m svc.ingest`: the process that watches."""

import sys

from svc.ingest.process import main

if __name__ == "__main__":
    sys.exit(main())
