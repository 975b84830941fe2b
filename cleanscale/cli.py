"""`cleanscale <command>`: one door to what the package does."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from cleanscale import plan, train, tune, verify_next
from cleanscale.registry import commands

COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "train": (train.main, "the main job: find wrong labels, train classifiers, evaluate (train --help: all settings)"),
    "tune": (tune.main, "a sweep over settings or verification budgets, from a file like those of tune/"),
    "plan": (plan.main, "hours, bytes, memory and what breaks first, for so many images and classes on a cluster"),
    "verify-next": (
        verify_next.main,
        "which labels to verify next: a CSV to fill in, from a finished run and a budget",
    ),
    "register": (commands.main_register, "a finished run's classifier and detector as MLflow model versions"),
    "promote": (
        commands.main_promote,
        "move an alias to a run's versions if they are better than those that have it",
    ),
    "rollback": (commands.main_rollback, "return an alias to the version before"),
    "list": (commands.main_list, "registered versions: aliases, measures, origin"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if arguments and arguments[0] in COMMANDS:
        return COMMANDS[arguments[0]][0](arguments[1:])
    lines = ["usage: cleanscale <command> [--section.name value ...]", ""]
    lines += [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    asked = bool(arguments) and arguments[0] in ("-h", "--help")
    (sys.stdout if asked else sys.stderr).write("\n".join(lines) + "\n")
    return 0 if asked else 2


if __name__ == "__main__":
    sys.exit(main())
