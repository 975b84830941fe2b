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
