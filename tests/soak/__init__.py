"""Long runs: `make soak`. They are no part of `make test`."""
