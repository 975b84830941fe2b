"""What `cleanscale list` shows: a line for each version."""

from __future__ import annotations

import io
from datetime import UTC, datetime

from mlflow.entities.model_registry import ModelVersion
from rich.console import Console
from rich.table import Table

from cleanscale.errors import ConfigError
from cleanscale.registry.store import DATA, REVISION, RUN, Store

# What each kind of model is measured by: tag, heading.
MEASURES = {
    "classifier": (("metric.top1", "top-1 %"), ("metric.top5", "top-5 %")),
    "detector": (("metric.class_fold_error", "error % by class folds"), ("metric.auroc", "AUROC")),
}


def listing(store: Store, name: str | None) -> str:
    """All models of this package, or those called after `name`. Raises: ConfigError where there are none."""
    with store.answering():
        models = [m for m in store.models() if name is None or m.rpartition("-")[0] == name]
        if not models:
            raise ConfigError(
                f"{store.uri} has no models{f' called {name}' if name else ''}; expected some that "
                "`cleanscale register` made; register a run, or name another store with --runs or --tracking.uri"
            )
        tables = [table_of(model, store.versions(model)) for model in models]
    sink = io.StringIO()
    console = Console(file=sink, width=160, color_system=None, force_terminal=False, highlight=False)
    for table in tables:
        console.print(table)
    return "\n".join(line.rstrip() for line in sink.getvalue().rstrip().splitlines())


def table_of(model: str, versions: list[ModelVersion]) -> Table:
    measures = MEASURES[model.rpartition("-")[2]]
    table = Table(title=model, title_justify="left", box=None, pad_edge=False)
    for heading in ("version", "alias", *(h for _, h in measures), "registered (UTC)", "data", "git", "run"):
        table.add_column(heading, overflow="fold")
    for version in versions:
        tags = version.tags
        made = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
        force = " (by force)" if tags.get("promoted_by_force") == "true" else ""
        table.add_row(
            str(version.version),
            ", ".join(version.aliases) + force,
            *(number(tags.get(tag)) for tag, _ in measures),
            f"{made:%Y-%m-%d %H:%M}",
            tags.get(DATA, "")[:8],
            tags.get(REVISION, "")[:8],
            tags.get(RUN, ""),
        )
    return table


def number(text: str | None) -> str:
    return "" if text is None else f"{float(text):.4g}"
