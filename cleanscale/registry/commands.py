"""`cleanscale register | promote | rollback | list`: the registry on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from cleanscale.errors import CleanscaleError

STORE_HELP = (
    "MLflow store of the models; by default MLFLOW_TRACKING_URI, else mlflow.db beside the run folders, as in training"
)
EXIT_REFUSED = 3


def main_register(arguments: Sequence[str]) -> int:
    """register RUN"""
    parser = new_parser("register", "Register a finished run's classifier and detector as new model versions.")
    run_arguments(parser)
    asked = parser.parse_args(arguments)

    def do() -> int:
        from cleanscale.registry.register import register

        run, store, name = opened(asked)
        for registered in register(run, store, name).values():
            known = "registered" if registered.new else "was registered already"
            say(f"{registered.model} version {registered.version}: {known}")
        say(how_to_serve(store.uri, f"{name}-classifier"))
        return 0

    return guarded(do)


def main_promote(arguments: Sequence[str]) -> int:
    """promote RUN"""
    parser = new_parser(
        "promote",
        "Move an alias to a run's versions when they are better than those that have it. The classifier must be better "
        "by top-1 accuracy on the run's test images (the 95 %% interval of the paired difference lies above 0); the "
        "detector must not be worse on images verified in both runs (class folds). Registers the run first if need be. "
        f"Exit status {EXIT_REFUSED}: refused.",
    )
    run_arguments(parser)
    alias_argument(parser)
    parser.add_argument("--force", action="store_true", help="promote anyway; the versions' tags say so")
    asked = parser.parse_args(arguments)

    def do() -> int:
        from cleanscale.registry.promote import promote

        run, store, name = opened(asked)
        done = promote(run, store, name, asked.alias, force=asked.force)
        for comparison in done.comparisons:
            say("\n".join(comparison.lines()))
        if not done.moved:
            sys.stderr.write(f"cleanscale: not promoted; {asked.alias} stays as it is (--force promotes anyway)\n")
            return EXIT_REFUSED
        for one in done.registered.values():
            say(f"{one.model}@{asked.alias} is version {one.version}")
        return 0

    return guarded(do)


def main_rollback(arguments: Sequence[str]) -> int:
    """rollback NAME"""
    parser = new_parser("rollback", "Return an alias to the version that had it before the newest promotion.")
    parser.add_argument("name", metavar="NAME", help="of NAME-classifier and NAME-detector; both go back")
    alias_argument(parser)
    store_arguments(parser)
    asked = parser.parse_args(arguments)

    def do() -> int:
        from cleanscale.registry.promote import rollback

        for model, now, before in rollback(store_of(asked), asked.name, asked.alias):
            say(f"{model}@{asked.alias} is version {before} again (it was {now})")
        return 0

    return guarded(do)


def main_list(arguments: Sequence[str]) -> int:
    """list [NAME]"""
    parser = new_parser("list", "Show registered versions with their aliases, measures and origin.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="only NAME-classifier and NAME-detector")
    store_arguments(parser)
    asked = parser.parse_args(arguments)

    def do() -> int:
        from cleanscale.registry.listing import listing

        say(listing(store_of(asked), asked.name))
        return 0

    return guarded(do)


def new_parser(command: str, description: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(f"cleanscale {command}", description=description, allow_abbrev=False)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="folder of a finished run: a path, s3:// or any fsspec URI")
    parser.add_argument("--name", help="models are called NAME-classifier and NAME-detector [the run folder's name]")
    parser.add_argument(
        "--classifier",
        help="which of the run's classifiers, by its name in metrics.json, such as round_0 or fine_tuned_on_clean "
        "[the last weighted one]",
    )
    parser.add_argument("--tracking.uri", dest="tracking_uri", metavar="URI", help=STORE_HELP)


def alias_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--alias", default="champion", help="the alias that is moved [%(default)s]")


def store_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tracking.uri", dest="tracking_uri", metavar="URI", help=STORE_HELP)
    parser.add_argument(
        "--runs", default="runs", metavar="FOLDER", help="folder of the run folders, whose mlflow.db is meant [runs]"
    )


def store_of(asked: argparse.Namespace):
    """The store that the arguments of `store_arguments` mean. Raises: ConfigError for a database that is not there."""
    from cleanscale.registry.store import Store

    found = Store.of_run(f"{asked.runs.rstrip('/')}/any", asked.tracking_uri)
    found.must_exist()
    return found


def opened(asked: argparse.Namespace):
    """(run, store, name) that the arguments of `run_arguments` mean."""
    from cleanscale.registry.finished_run import FinishedRun
    from cleanscale.registry.store import Store

    run = FinishedRun.open(asked.run, asked.classifier)
    return run, Store.of_run(run.uri, asked.tracking_uri or run.settings.tracking.uri), asked.name or run.name


def how_to_serve(store: str, model: str) -> str:
    return f"serve: MLFLOW_TRACKING_URI={store} mlflow models serve -m 'models:/{model}@champion' --env-manager local"


def say(text: str) -> None:
    sys.stdout.write(text + "\n")


def guarded(do: Callable[[], int]) -> int:
    """Exit status; a user's error is one message."""
    try:
        return do()
    except CleanscaleError as error:
        sys.stderr.write(f"cleanscale: {error}\n")
        return error.exit_status
