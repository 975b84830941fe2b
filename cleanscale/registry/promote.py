"""Moving an alias: to a run's versions when they are better, and back."""

from __future__ import annotations

import json
from dataclasses import dataclass

from cleanscale.errors import ConfigError, DataError
from cleanscale.registry.finished_run import FinishedRun
from cleanscale.registry.promotion import Comparison, compare_classifiers, compare_detectors
from cleanscale.registry.register import Registered, register
from cleanscale.registry.store import KINDS, Store


@dataclass(frozen=True)
class Promotion:
    """What a promotion found and did. moved: whether the alias now is the run's."""

    registered: dict[str, Registered]
    comparisons: list[Comparison]
    moved: bool


def promote(run: FinishedRun, store: Store, name: str, alias: str, *, force: bool) -> Promotion:
    """Move the alias of classifier and detector to the run's versions, both or neither.

    The run is registered first where it is not yet. `force` moves it whatever the comparison says, and says so in the
    versions' tags.
    """
    registered = register(run, store, name)
    with store.answering():
        comparisons = [compare(run, store, registered[kind], kind, alias) for kind in KINDS]
        allowed = all(comparison.passed for comparison in comparisons)
        if not (allowed or force):
            return Promotion(registered, comparisons, moved=False)
        if all(comparison.against == registered[k].version for k, comparison in zip(KINDS, comparisons, strict=True)):
            return Promotion(registered, comparisons, moved=True)
        for kind, comparison in zip(KINDS, comparisons, strict=True):
            one = registered[kind]
            if comparison.against != one.version:
                store.tag(one.model, one.version, tags_of(comparison, alias))
            # Both histories get an entry, also where only one version is another: a rollback takes both back.
            store.move_alias(one.model, alias, one.version, "promote" if comparison.passed else "force")
    return Promotion(registered, comparisons, moved=True)


def tags_of(comparison: Comparison, alias: str) -> dict[str, str]:
    """How the version came to its alias, with the numbers."""
    numbers = json.dumps(comparison.to_json())
    return {"promoted_by_force": str(not comparison.passed).lower(), f"promotion.{alias}": numbers}


def compare(run: FinishedRun, store: Store, registered: Registered, kind: str, alias: str) -> Comparison:
    model, version = registered.model, registered.version
    champion = store.holder(model, alias)
    if champion is None:
        return Comparison(model, True, f"there is no {alias} yet, so version {version} becomes it", {})
    if str(champion.version) == version:
        return Comparison(model, True, f"version {version} is the {alias} already", {}, version)
    if kind == "detector":
        return compare_detectors(store, model, version, champion)
    try:
        return compare_classifiers(run, store, model, version, champion)
    except DataError as error:  # nothing is known, so nothing is better; --force decides
        return Comparison(model, False, f"cannot be compared: {error}", {}, str(champion.version))


def rollback(store: Store, name: str, alias: str) -> list[tuple[str, str, str]]:
    """Return the alias of NAME-classifier and NAME-detector to the version before; [(model, from, to)].

    Raises: ConfigError where no such alias is there, or nothing was before; then nothing has moved.
    """
    planned = []
    with store.answering():
        for model in (f"{name}-{kind}" for kind in KINDS):
            now = store.aliases(model).get(alias)
            if now is None:
                raise ConfigError(
                    f"{model} has no alias {alias!r} in {store.uri}; expected one that `cleanscale promote` set; "
                    "`cleanscale list` shows what there is"
                )
            before = store.version_before(model, alias)
            if before is None:
                raise ConfigError(
                    f"{model} version {now} is the first {alias}; expected one before it to go back to; promote "
                    "another run instead"
                )
            planned.append((model, now, before))
        for model, _, before in planned:
            store.move_alias(model, alias, before, "rollback")
    return planned
