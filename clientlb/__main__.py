"""`python -m clientlb` is the command `clientlb`."""

from clientlb.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
