"""`python -m svc.qa`: the process that answers."""

import sys

from svc.qa.process import main

if __name__ == "__main__":
    sys.exit(main())
