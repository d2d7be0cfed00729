"""Asks a server, again and again, whether it is fit to be called.

The test runs on a thread of its own: one that hangs counts as failed once its time is up, and holds up neither the
renewals, nor the end of the program, nor a second test.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from clientlb.discovery._backoff import Backoff

SelfTestFunction = Callable[[], object]
"""Fails by raising, or by returning False."""

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0  # seconds to the next test of a server that fails: it is missed


class SelfTest:
    """Runs a test every `interval` seconds, and more often while it fails.

    Args:
        test: The test.
        interval: Seconds from one success to the next test.
        limit: Seconds after which a test that has not ended counts as failed.
        changed: Called on the thread of the test whenever its result has changed.
        name: Name of the thread.
    """

    def __init__(
        self, test: SelfTestFunction, *, interval: float, limit: float, changed: Callable[[], None], name: str
    ) -> None:
        self._test = test
        self._interval = interval
        self._limit = limit
        self._changed = changed
        self._closing = threading.Event()
        self._complaint: str | None = "it has not been tested yet"
        self._running_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start testing."""
        self._thread.start()

    def close(self) -> None:
        """Test no more. Does not wait for a test that runs."""
        self._closing.set()

    @property
    def complaint(self) -> str | None:
        """What is wrong with the server; None if nothing is."""
        since = self._running_since
        if since is not None and time.monotonic() - since > self._limit:
            return f"the self-test has not ended for {self._limit:g} s"
        return self._complaint

    def _run(self) -> None:
        backoff = Backoff(_FIRST_PAUSE, min(self._interval, _LONGEST_PAUSE))
        pause = 0.0
        while not self._closing.wait(pause):
            self._running_since = time.monotonic()
            complaint = self._ask()
            was_late = self.complaint is not self._complaint
            news = was_late or (complaint is None) != (self._complaint is None)
            self._complaint, self._running_since = complaint, None
            if complaint is None:
                backoff.succeeded()
                pause = self._interval
            else:
                pause = backoff.failed()
            if news:
                self._changed()

    def _ask(self) -> str | None:
        try:
            return "the self-test returned False" if self._test() is False else None
        except Exception as error:
            return f"the self-test failed: {error or type(error).__name__}"
