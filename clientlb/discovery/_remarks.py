"""The remarks of resolvers (`RemarkingResolver`), in the same words for every registry."""

from __future__ import annotations


def not_read(count: int) -> list[str]:
    """So many instances are there, but could not be read."""
    return [f"{_instances(count)} could not be read"] if count else []


def on_lost_nodes(count: int) -> list[str]:
    """So many instances say that they are well, but whoever watches their nodes says that those are lost."""
    return [f"{_instances(count)} left out: the cluster has lost the node"] if count else []


def _instances(count: int) -> str:
    return "1 instance" if count == 1 else f"{count} instances"
