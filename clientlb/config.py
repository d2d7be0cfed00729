"""Reads options from a TOML file and from `CLIENTLB_*` variables into the classes of `clientlb.options`."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from tenacity.stop import stop_after_attempt

from clientlb.backoff import full_jitter
from clientlb.check_options import KINDS
from clientlb.errors import ConfigurationError
from clientlb.health_options import TABLES, HealthOptions
from clientlb.options import GuardOptions, JournalOptions, Options, ThrottleOptions
from clientlb.require import require_int, require_number
from clientlb.retry_options import BudgetOptions, HedgeOptions, RetryOptions

_NESTED: dict[type[Any], dict[str, type[Any]]] = {
    Options: {
        "health": HealthOptions,
        "retry": RetryOptions,
        "guard": GuardOptions,
        "journal": JournalOptions,
        "throttle": ThrottleOptions,
    },
    HealthOptions: TABLES,
    RetryOptions: {"budget": BudgetOptions, "hedge": HedgeOptions},
}

_OPTIONAL = frozenset({"deadline", "attempt_timeout", "deadline_header", "journal", "throttle", "hedge", "check"})
"""What is None by default. TOML has no such value, so `false` stands for it."""

_CLOSE = 0.75
"""How much a variable looks like an option that it surely was meant to be, as `difflib` has it."""


def load_options(
    path: str | os.PathLike[str] | None = None, environ: Mapping[str, str] | None = None
) -> dict[str, Options]:
    """Read options from a TOML file and from the environment; the environment wins.

    The file has a table `[default]` and one `[services.NAME]` for each service that differs. Nested options are nested
    tables. In the place of tenacity objects stand `retry.attempts`, `retry.backoff` and `retry.backoff_max`, and
    `health.check.kind` is `"http"`, `"tcp"` or `"grpc"`. `false` turns off what is off by default: deadlines, `hedge`,
    `throttle`, `journal`, `check`::

        [default]
        policy = "p2c"
        [services.orders.retry]
        attempts = 5
        backoff = 0.05

    Variables set defaults for every service: `CLIENTLB_POLICY`, `CLIENTLB_RETRY__ATTEMPTS` (two underscores for a dot).

    Args:
        path: The TOML file; None takes `CLIENTLB_CONFIG`, or no file.
        environ: The variables; None takes the process's own.

    Returns:
        Options by service name; `"*"` has the default. Pass it as `Services(..., options=load_options())`.

    Raises:
        ConfigurationError: The file cannot be read, or an option does not exist or is out of range.
    """
    environ = os.environ if environ is None else environ
    path = path or environ.get("CLIENTLB_CONFIG")
    document: dict[str, Any] = {}
    if path:
        try:
            document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"options file {os.fspath(path)}: {error.strerror or error}") from error
        except ValueError as error:
            raise ConfigurationError(f"options file {os.fspath(path)}: {error}") from error
    if unknown := sorted(set(document) - {"default", "services"}):
        raise ConfigurationError(f"options file {path}: [{unknown[0]}] is neither [default] nor [services.NAME]")
    variables = _tree_of_variables(environ)
    try:
        return _options_by_service(document, variables)
    except ConfigurationError as error:
        origins = [f"file {os.fspath(path)}"] if path else []
        origins += ["CLIENTLB_* variables"] if variables else []
        raise ConfigurationError(f"options ({' and '.join(origins)}): {error}") from None


def _options_by_service(document: Mapping[str, Any], variables: Mapping[str, Any]) -> dict[str, Options]:
    default = _table(document.get("default", {}), "default")
    loaded = {"*": _build(Options, _merge(default, variables), "default")}
    for service, table in _table(document.get("services", {}), "services").items():
        where = f"services.{service}"
        merged = _merge(_merge(default, _table(table, where)), variables)
        loaded[service] = _build(Options, merged, where)
    return loaded


def _tree_of_variables(environ: Mapping[str, str]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for variable, text in sorted(environ.items(), key=lambda item: item[0].lower()):  # a table before what is in it
        if not variable.startswith("CLIENTLB_") or variable == "CLIENTLB_CONFIG":
            continue
        *tables, name = variable.removeprefix("CLIENTLB_").lower().split("__")
        if not tables and name not in Options.__dataclass_fields__:
            if meant := get_close_matches(name, Options.__dataclass_fields__, 1, _CLOSE):
                raise ConfigurationError(f"{variable} does not exist; did you mean CLIENTLB_{meant[0].upper()}?")
            continue  # other parts of clientlb have variables of their own
        table = tree
        for depth, step in enumerate(tables, 1):
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                above = "CLIENTLB_" + "__".join(tables[:depth]).upper()
                raise ConfigurationError(f"{above} is {table!r}, so {variable} has no place; set only the second one")
        try:
            table[name] = tomllib.loads(f"value = {text}")["value"]
        except ValueError:
            table[name] = text
    return tree


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in over.items():
        below = merged.get(name)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            # the options of a check mean nothing to one of another kind
            same = value.get("kind", below.get("kind")) == below.get("kind")
            value = _merge(below, value) if same else value
        merged[name] = value
    return merged


def _table(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigurationError(f"{where} is {value!r}; give a table")
    return value


def _build(kind: type[Any], table: object, where: str) -> Any:
    values = dict(_table(table, where))
    nested = _NESTED.get(kind, {})
    known = {option.name for option in dataclasses.fields(kind)}
    if kind is RetryOptions:
        known = known - {"stop", "wait"} | {"attempts", "backoff", "backoff_max"}
    for name, value in values.items():
        if name not in known:
            raise ConfigurationError(f"{where}.{name} does not exist; known: {', '.join(sorted(known))}")
        if value is False and name in _OPTIONAL:
            values[name] = None
        elif name in nested:
            values[name] = _build(nested[name], value, f"{where}.{name}")
        elif kind is HealthOptions and name == "check":
            values[name] = _build_check(value, f"{where}.{name}")
    if kind is RetryOptions:
        _take_backoff(values, where)
    try:
        return kind(**values)
    except ConfigurationError as error:
        raise ConfigurationError(f"in {where}: {error}") from None


def _build_check(table: object, where: str) -> Any:
    values = dict(_table(table, where))
    kind = values.pop("kind", None)
    if kind not in KINDS:
        raise ConfigurationError(f"{where}.kind is {kind!r}; give one of {', '.join(KINDS)}")
    return _build(KINDS[kind], values, where)


def _take_backoff(values: dict[str, Any], where: str) -> None:
    """Replace the words of a TOML file by the tenacity objects that they stand for."""
    attempts = values.pop("attempts", None)
    backoff, backoff_max = values.pop("backoff", None), values.pop("backoff_max", None)
    if attempts is not None:
        require_int(f"{where}.attempts", attempts, 1)
        values["stop"] = stop_after_attempt(attempts)
    if backoff is not None or backoff_max is not None:
        default = full_jitter()
        initial = default.initial if backoff is None else backoff
        require_number(f"{where}.backoff", initial, at_least=0)
        ceiling = max(default.max, initial) if backoff_max is None else backoff_max
        require_number(f"{where}.backoff_max", ceiling, at_least=initial)
        values["wait"] = full_jitter(initial, ceiling)
