"""When to look for instances in another datacenter, and when to come home. Pure.

        the one in use has nobody, for `leave_after` seconds
    home ---------------------------------------------------> the first of the others that has somebody
         <---------------------------------------------------
           home has had somebody for `return_after` seconds

Both delays keep traffic from swinging between datacenters: an election at home takes three seconds, and a home that
comes back does so server by server.
"""

from __future__ import annotations


class FailoverRule:
    """Notes who had instances and when; `now` is any clock that only grows.

    Args:
        leave_after: Seconds for which a datacenter must have nobody before another one is used.
        return_after: Seconds for which the first datacenter must have somebody before it is used again.
    """

    def __init__(self, leave_after: float, return_after: float) -> None:
        self._leave_after = leave_after
        self.return_after = return_after
        self._empty_since: float | None = None
        self._home_since: float | None = None

    @property
    def in_trouble(self) -> bool:
        """The datacenter in use had nobody when it was last asked."""
        return self._empty_since is not None

    def somebody(self) -> None:
        """The datacenter in use has instances."""
        self._empty_since = None

    def nobody(self, now: float) -> bool:
        """The datacenter in use has none, or cannot be asked. Returns whether to leave it."""
        if self._empty_since is None:
            self._empty_since = now
        return now - self._empty_since >= self._leave_after

    def home(self, has_somebody: bool, now: float) -> bool:
        """What the first datacenter says while another one is used. Returns whether to go back."""
        if not has_somebody:
            self._home_since = None
        elif self._home_since is None:
            self._home_since = now
        return self._home_since is not None and now - self._home_since >= self.return_after

    def moved(self) -> None:
        """Another datacenter is used from now on."""
        self._empty_since = self._home_since = None
