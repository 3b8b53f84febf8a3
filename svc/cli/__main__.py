"""`python -m svc.cli`: the command `lookback`."""

from svc.cli.main import main

if __name__ == "__main__":
    main()
