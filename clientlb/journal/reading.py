"""Reads the file of a journal."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from clientlb.endpoint import Endpoint
from clientlb.errors import ClientLBError, ConfigurationError
from clientlb.journal.entry import Entry, Listed, Recording
from clientlb.journal.writer import FORMAT, VERSION

BadLine = Callable[[str, int, Exception], object]


def read_journal(
    path: str | os.PathLike[str],
    *,
    service: str | None = None,
    last: int | None = None,
    candidates: bool = True,
    on_bad_line: BadLine | None = None,
) -> list[Recording]:
    """Read a journal, with what was written before the file was last begun anew (`FILE.1`).

    Args:
        path: The file.
        service: Only what is about this one; None (default) is all.
        last: Keep only so many of the newest entries of each process; None (default) is all.
        candidates: False leaves out the candidates of each entry, which are most of it.
        on_bad_line: Told the file, the number and the error of each line that cannot be read, such as one that was
            half-written when a machine lost its power. They are skipped.

    Returns:
        What each process recorded of each service, those that began first first.

    Raises:
        ConfigurationError: There is no such file, or it is no journal.
    """
    readers: dict[str, _Reader] = {}
    older, newer = Path(f"{os.fspath(path)}.1"), Path(path)
    for file in (older, newer):
        if file is older and not file.exists():
            continue
        try:
            for number, line in _lines(file):
                try:
                    _take(line, readers, last, candidates)
                except (ValueError, TypeError, KeyError, ClientLBError) as error:
                    if on_bad_line is not None:
                        on_bad_line(str(file), number, error)
        except OSError as error:
            raise ConfigurationError(f"journal {file}: {error.strerror or error}") from error
    if not readers and newer.stat().st_size:
        raise ConfigurationError(f"journal {newer}: it is no journal of clientlb")
    found = [reader.recording() for reader in readers.values()]
    return sorted(
        (each for each in found if service in (None, each.service)),
        key=lambda each: each.lists[0].at if each.lists else 0.0,
    )


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    """Whole lines; somebody may be writing the last one."""
    with file.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if line.endswith("\n"):
                yield number, line


def _take(line: str, readers: dict[str, _Reader], last: int | None, candidates: bool) -> None:
    said = json.loads(line)
    if not isinstance(said, dict):
        raise ValueError("a line is no JSON object")
    if "format" in said:
        if said["format"] != FORMAT or said["version"] != VERSION:
            raise ValueError(f"a {said['format']} of version {said['version']}; known is a {FORMAT} of {VERSION}")
        reader = readers.get(said["client"])
        if reader is None:
            reader = readers[said["client"]] = _Reader(said, last, candidates)
        reader.list(said, anew=True)
    elif "joined" in said:
        readers[said["client"]].list(said)
    else:
        readers[said["client"]].entry(said)


class _Reader:
    """Collects what one process wrote of one service."""

    def __init__(self, head: dict[str, Any], last: int | None, candidates: bool) -> None:
        self._service, self._client, self._policy = str(head["service"]), str(head["client"]), str(head["policy"])
        self._candidates = candidates
        self._known: dict[tuple[str, str, int], Endpoint] = {}
        self._lists: list[Listed] = []
        self._entries: deque[Entry] = deque(maxlen=last)
        self._words: dict[str, str] = {}

    def list(self, said: dict[str, Any], anew: bool = False) -> None:
        """Take in a change of the list, or all of it."""
        joined = [Endpoint(**fields) for fields in said["joined"]]
        known = {} if anew else {key: self._known[key] for key in self._known}
        for key in said.get("left", ()):
            known.pop(tuple(key), None)
        known |= {endpoint.key: endpoint for endpoint in joined}
        if known != self._known:
            self._known = known
            self._lists.append(Listed(float(said["at"]), tuple(known.values())))

    def entry(self, said: dict[str, Any]) -> None:
        """Take in a pick."""
        if not self._candidates:
            said["candidates"] = ()
        entry = Entry.from_json(said)
        one_of = self._words.setdefault  # one object for all mentions of an address: there are few, in many entries
        self._entries.append(
            replace(
                entry,
                endpoint=one_of(entry.endpoint, entry.endpoint),
                id=one_of(entry.id, entry.id),
                reason=one_of(entry.reason, entry.reason),
            )
        )

    def recording(self) -> Recording:
        """What was collected. Picks are written when they end, and were made in the order of their numbers."""
        entries = sorted(self._entries, key=lambda entry: entry.number)
        return Recording(self._service, self._client, self._policy, tuple(self._lists), tuple(entries))
