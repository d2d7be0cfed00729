"""What the URLs of discovery and registration have in common: taking them apart, and finding the class of a scheme.

No message of this module repeats a password or a token.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from clientlb.errors import ConfigurationError

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_USERINFO = re.compile(r"://.*@", re.DOTALL)
_SECRET_OPTION = re.compile(r"([?&][^=&#]*(?:token|password|passwd|secret|key)[^=&#]*=)[^&#]*", re.IGNORECASE)
_YEAR = 365 * 86400.0
_EXTRAS = {"kazoo": "zookeeper", "consul": "consul", "requests": "consul", "dns": "dns"}


def redact(url: str) -> str:
    """The URL without user, password and the values of options that sound secret: fit for logs and errors."""
    # Up to the last "@": a password may hold one, or a slash, and must not be cut in half.
    url = _USERINFO.sub("://***@", url)
    return _SECRET_OPTION.sub(r"\1***", url)


def split_url(url: str, options: Iterable[str] = ()) -> tuple[SplitResult, dict[str, str]]:
    """Take a URL apart, and its query into options.

    Args:
        url: The URL.
        options: The names of the options that it may have.

    Raises:
        ConfigurationError: It is no URL, or has an option that is not in `options`, or one twice.
    """
    known = sorted(options)
    try:
        parts = urlsplit(url)
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        raise ConfigurationError(f"{redact(url)!r} is not a URL") from None
    if parts.fragment:
        raise ConfigurationError(f"{redact(url)!r}: a registry has no #fragment")
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in known:
            allowed = f"it knows {', '.join(known)}" if known else "it has none"
            raise ConfigurationError(f"{redact(url)!r}: unknown option {name!r}; {allowed}")
        if name in values:
            raise ConfigurationError(f"{redact(url)!r}: option {name!r} is given twice")
        values[name] = value
    return parts, values


def seconds_option(options: Mapping[str, str], name: str, default: float, *, least: float = 0.0) -> float:
    """Read an option that is a number of seconds.

    Raises:
        ConfigurationError: It is no number, or below `least`.
    """
    if name not in options:
        return default
    value: object = options[name]
    with contextlib.suppress(ValueError):
        value = float(options[name])
    return checked_seconds(name, value, least=least)


def checked_seconds(name: str, value: object, *, least: float = 0.0) -> float:
    """Return the value if it is a number of seconds above 0, of at least `least` and at most a year.

    Raises:
        ConfigurationError: It is not.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= _YEAR and value >= least:
        return float(value)
    bound = f"at least {least:g}" if least else "above 0"
    raise ConfigurationError(f"{name} is a number of seconds, {bound} and at most a year; not {value!r}")


def path_of(url: str, parts: SplitResult) -> Path:
    """The absolute path that a `file` or `dir` URL names; `file://~/x` and `file:///~/x` start at home.

    Raises:
        ConfigurationError: The path is relative, or the URL names a host.
    """
    path = unquote(parts.path)
    if parts.netloc == "~" or path.startswith("/~"):
        path = "~" + path.removeprefix("/~")
    elif parts.netloc not in ("", "localhost") or not path.startswith("/"):
        raise ConfigurationError(f"{redact(url)!r}: the path must be absolute: {parts.scheme}:///with/three/slashes")
    return absolute(path)


def absolute(path: str | Path) -> Path:
    """The path with `~` expanded, and absolute, so that a later change of directory does not move it.

    Raises:
        ConfigurationError: It is empty, or no path at all.
    """
    try:
        expanded = Path(path).expanduser()
    except (TypeError, RuntimeError) as error:
        raise ConfigurationError(f"{path!r} is not a path: {error}") from None
    if not str(path) or "\0" in str(path):
        raise ConfigurationError(f"{path!r} is not a path")
    return expanded.absolute()


def open_backend(url: str, built_in: Mapping[str, str], group: str) -> Any:
    """Make what a URL names, with the `from_url` of the class that handles its scheme. Arguments as `_backend_class`.

    Raises:
        ConfigurationError: The URL is wrong, its scheme is unknown, or the package that it needs is not installed.
    """
    backend = _backend_class(url, built_in, group)
    if not hasattr(backend, "from_url"):
        raise ConfigurationError(f"the backend of {redact(url)!r} has no from_url()")
    try:
        return backend.from_url(url)
    except ConfigurationError as error:
        if redact(url) in str(error):
            raise
        raise ConfigurationError(f"{redact(url)!r}: {error}") from None


def _backend_class(url: str, built_in: Mapping[str, str], group: str) -> Any:
    """Find the class that handles the scheme of a URL.

    Args:
        url: The URL.
        built_in: scheme -> `"module:Class"`. Asked first: reading entry points takes tens of milliseconds.
        group: The entry-point group of the schemes that others add.

    Raises:
        ConfigurationError: No URL, an unknown scheme, or one whose package is not installed.
    """
    match = _SCHEME.match(url)
    if match is None:
        raise ConfigurationError(f"{redact(url)!r} is not the URL of a registry, such as consul://127.0.0.1:8500")
    scheme = match[1].lower()
    target = built_in.get(scheme)
    if target is None:
        from importlib.metadata import entry_points  # only here: it costs more than the rest of the package

        added = {entry.name: entry.value for entry in entry_points(group=group)}
        if scheme not in added:
            known = ", ".join(sorted(built_in.keys() | added.keys()))
            raise ConfigurationError(f"unknown scheme {scheme!r} in {redact(url)!r}; known are {known}")
        target = added[scheme]
    module, _, name = target.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigurationError(_missing(scheme, error)) from error


def _missing(scheme: str, error: ImportError | AttributeError) -> str:
    extra = _EXTRAS.get((error.name or "").partition(".")[0])
    if extra is None:
        return f"the backend of {scheme!r} cannot be imported: {error}"
    return f"{scheme}:// needs a package that is not installed: pip install clientlb[{extra}]"
