"""Sweeps: `python -m cleanscale.tune FILE [--config RUN.toml] [--section.name value ...]`, with a FILE as in tune/.

Exit status: 0 done, 2 something that the user can mend (one message, no traceback), 1 anything else.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cleanscale.storage.lease import held
from cleanscale.train import begin, exit_status


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep that the command line describes; returns the exit status."""

    def work() -> None:
        from cleanscale.tuning import settings  # here because it imports Ray

        sweep = settings.load(sys.argv[1:] if arguments is None else arguments)
        progress = begin()
        from cleanscale.tuning.sweep import print_outcome, run

        with held(sweep.run_uri):
            found = run(sweep, progress)
        print_outcome(sweep, found)

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
