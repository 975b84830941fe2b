"""What a sweep varies: the [space] of its file, as dimensions, and a trial's values as settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from pydantic import BaseModel, ValidationError

from cleanscale.config import Settings, merge
from cleanscale.engine.search import Dimension
from cleanscale.errors import ConfigError

KINDS = {
    "uniform": "two numbers, the lower first: {uniform = [0.0, 1.0]}",
    "log_uniform": "two numbers above 0, the lower first: {log_uniform = [0.001, 0.1]}",
    "integers": "two whole numbers, the lower first: {integers = [1, 8]}",
    "choice": "a list of at least one value: {choice = [10, 25, 50]}",
}
# Sections whose settings a trial can have for itself: what comes after the features, which all trials share.
SEARCHED = ("references", "cleannet", "heads", "evidence", "detector")
# Reference sets are made once for each combination of these, before the trials.
MOST_REFERENCE_SETS = 64
REFERENCES = ("references.", "cleannet.references_per_class")


def dimensions(space: Mapping[str, Any]) -> dict[str, Dimension]:
    """Dimensions by setting, such as "cleannet.beta". Raises: ConfigError naming the setting."""
    found = dict(_flat(space, ""))
    for name, dimension in found.items():
        _check_setting(name, dimension)
    return found


def _flat(nested: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Dimension]]:
    for name, value in nested.items():
        here = f"{prefix}{name}"
        if not isinstance(value, Mapping):
            raise ConfigError(f"space.{here} is {value!r}; expected what it may be, such as {_examples()}")
        if "." in here and (set(value) & set(KINDS) or not any(isinstance(v, Mapping) for v in value.values())):
            yield here, _dimension(here, value)
        else:
            yield from _flat(value, f"{here}.")


def _examples() -> str:
    return "{log_uniform = [0.001, 0.1]} or {choice = [10, 25, 50]}"


def _dimension(name: str, value: Mapping[str, Any]) -> Dimension:
    if len(value) != 1 or next(iter(value)) not in KINDS:
        raise ConfigError(f"space.{name} is {dict(value)!r}; expected one of {', '.join(KINDS)}: {_examples()}")
    kind: Any
    kind, ends = next(iter(value.items()))
    if not isinstance(ends, Sequence) or isinstance(ends, str) or not _good(kind, ends):
        raise ConfigError(f"space.{name} is {{{kind} = {ends!r}}}; expected {KINDS[kind]}")
    return Dimension(kind, tuple(ends))


def _good(kind: str, ends: Sequence[Any]) -> bool:
    if kind == "choice":
        return len(ends) > 0
    if len(ends) != 2 or any(isinstance(end, bool) or not isinstance(end, (int, float)) for end in ends):
        return False
    whole = all(isinstance(end, int) for end in ends)
    return ends[0] < ends[1] and (kind != "log_uniform" or ends[0] > 0) and (kind != "integers" or whole)


def _check_setting(name: str, dimension: Dimension) -> None:
    """The setting exists, a trial can have it for itself, and the ends of its range are values that it takes."""
    section, _, field = name.partition(".")
    if section in Settings.model_fields and section not in SEARCHED:
        raise ConfigError(
            f"space.{name} cannot be searched: trials share the features that a run makes with it; expected a setting "
            f"of {', '.join(SEARCHED)}; give it under [{section}] instead"
        )
    kind = type(Settings.model_fields[section].default) if section in Settings.model_fields else None
    if kind is None or field not in kind.model_fields:
        raise ConfigError(
            f"space.{name} is no setting; expected one of {', '.join(SEARCHED)}, such as cleannet.beta; "
            "`python -m cleanscale.train --help` lists them"
        )
    for value in dimension.values:
        _check_value(name, kind, field, value)


def _check_value(name: str, kind: type[BaseModel], field: str, value: Any) -> None:
    try:
        kind(**{field: value})
    except ValidationError as error:
        problem = error.errors()[0]["msg"].replace("Input should be", "expected")
        raise ConfigError(f"space.{name} reaches {value!r}; {problem}; narrow it") from error


def with_values(settings: Settings, values: Mapping[str, Any]) -> Settings:
    """The settings with a trial's values in them, and everything that was not given still not given."""
    nested: dict[str, Any] = {}
    for name, value in values.items():
        section, _, field = name.partition(".")
        nested.setdefault(section, {})[field] = value
    update = {}
    for section, given in nested.items():
        before = getattr(settings, section)
        update[section] = type(before)(**merge(before.model_dump(exclude_unset=True), given))
    return settings.model_copy(update=update)


def reference_cases(space: Mapping[str, Dimension]) -> list[dict[str, Any]]:
    """Every combination of values that reference sets depend on: [{}] when none of them is searched."""
    names = [name for name in space if name.startswith(REFERENCES)]
    values = []
    for name in names:
        dimension = space[name]
        if dimension.kind in ("uniform", "log_uniform"):
            raise ConfigError(
                f"space.{name} is {dimension.kind}; reference sets are made once for each value; "
                "expected {choice = [...]} or {integers = [...]}"
            )
        low, high = dimension.values[0], dimension.values[-1]
        values.append(dimension.values if dimension.kind == "choice" else range(low, high + 1))
    cases = [dict(zip(names, chosen, strict=True)) for chosen in product(*values)]
    if len(cases) > MOST_REFERENCE_SETS:
        raise ConfigError(
            f"space has {len(cases)} combinations of {', '.join(names)}, each with reference sets of its own; "
            f"expected at most {MOST_REFERENCE_SETS}; give {{choice = [...]}} with fewer values"
        )
    return cases
