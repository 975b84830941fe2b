"""The main job: `python -m cleanscale.train [--config FILE] [--section.name value ...]`. `--help` says what each does.

Exit status: 0 done, 2 something that the user can mend (one message, no traceback), 1 anything else.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from rich.logging import RichHandler

from cleanscale.config import Settings, load, resolved_toml
from cleanscale.errors import CleanscaleError
from cleanscale.reporting.progress import Progress
from cleanscale.storage import uris
from cleanscale.storage.lease import held

log = logging.getLogger("cleanscale")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job that the command line describes; returns the exit status."""

    def work() -> None:
        settings = load(sys.argv[1:] if arguments is None else arguments)
        train(settings, begin())

    return exit_status(work)


def begin() -> Progress:
    """Logging and progress of a command that runs for long, and its answer to SIGTERM."""
    progress = Progress()
    start_logging(progress)
    # A job that is stopped ends like one that is interrupted: tracking closes its run, Ray goes down.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return progress


def exit_status(work: Callable[[], None]) -> int:
    """Do the work of a command; a user's error is one message, an interruption says how to go on."""
    try:
        work()
    except CleanscaleError as error:
        sys.stderr.write(f"cleanscale: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("cleanscale: stopped; the same command goes on from here\n")
        return 1
    return 0


def train(settings: Settings, progress: Progress) -> None:
    """The job, alone in its run folder, with tracking around it and the summary at its end."""
    # First of all: a run folder that cannot be written, or that another run writes, is found out in a second.
    with held(settings.run_uri):
        uris.write_bytes(uris.join(settings.run_uri, "settings.toml"), resolved_toml(settings))
        run_tracked(settings, progress)


def run_tracked(settings: Settings, progress: Progress) -> None:
    from cleanscale.pipeline import run  # here because it imports Ray, which --help need not wait for
    from cleanscale.reporting.terminal import print_summary, report_console
    from cleanscale.tracking import tracked
    from cleanscale.tracking.contents import log_files, log_inputs

    with tracked(settings.tracking, settings.run_uri) as tracker:
        tracker.parameters(settings.model_dump(mode="json"))
        summary = run(
            settings,
            progress=progress,
            report=tracker.report,
            on_inputs=lambda inputs: log_inputs(tracker, inputs.train, inputs.test, inputs.clean),
        )
        log_files(tracker, settings.run_uri, settings.tracking.table_bytes)
    print_summary(report_console(), summary)


def start_logging(progress: Progress) -> None:
    """Messages above the progress bars on a terminal; plain lines with the time elsewhere."""
    if progress.on_terminal:
        handler: logging.Handler = RichHandler(console=progress.console, show_path=False, show_level=False)
        form = "%(message)s"
    else:
        handler, form = logging.StreamHandler(), "%(asctime)s %(message)s"
    logging.basicConfig(level=logging.WARNING, format=form, datefmt="%H:%M:%S", handlers=[handler])
    log.setLevel(os.environ.get("CLEANSCALE_LOG", "INFO").upper())


if __name__ == "__main__":
    sys.exit(main())
