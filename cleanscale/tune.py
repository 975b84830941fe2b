"""Sweeps: `python -m cleanscale.tune FILE [--config RUN.toml] [--section.name value ...]`, with a FILE as in tune/.

Exit status: 0 done, 2 something that the user can mend (one message, no traceback), 1 anything else.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from cleanscale.errors import CleanscaleError
from cleanscale.reporting.progress import Progress
from cleanscale.storage.lease import held
from cleanscale.train import start_logging


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sweep that the command line describes; returns the exit status."""
    try:
        from cleanscale.tuning import settings  # here because it imports Ray

        sweep = settings.load(sys.argv[1:] if arguments is None else arguments)
        progress = Progress()
        start_logging(progress)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        from cleanscale.tuning.sweep import print_outcome, run

        with held(sweep.run_uri):
            found = run(sweep, progress)
        print_outcome(sweep, found)
    except CleanscaleError as error:
        sys.stderr.write(f"cleanscale: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("cleanscale: stopped; the same command goes on from here\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
