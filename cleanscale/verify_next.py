"""`cleanscale verify-next`: which labels to verify next, as a CSV to fill in.

    cleanscale verify-next --run.uri runs/photos --budget 1000 --output to_verify.csv

From a finished run, with or without verification labels. All classes come to equally many labels; within a class
uncertain images are likelier to be asked. Nobody is asked about an image twice. Fill in `verified` (1 the label is
right, 0 it is wrong; `verified_label`, if you know it: what it is instead), put the file into one folder with the
tables you have, and run the training again with --data.verification FOLDER. What is left empty counts as not verified.
Rather in steps: a third of the budget, a training, which learns what is uncertain, and the rest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cleanscale.errors import CleanscaleError, ConfigError
from cleanscale.storage import uris

if TYPE_CHECKING:
    from cleanscale.registry.finished_run import FinishedRun
    from cleanscale.stages.verification_plan import Asked

IN_THIS_PROCESS_IMAGES = 2_000_000  # up to here it takes seconds, and Ray as many to start


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the plan; returns the exit status."""
    asked_for = parser().parse_args(arguments)
    try:
        sys.stdout.write(verify_next(asked_for) + "\n")
    except CleanscaleError as error:
        sys.stderr.write(f"cleanscale: {error}\n")
        return error.exit_status
    return 0


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        "cleanscale verify-next",
        description=(__doc__ or "").replace("%", "%%"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument(
        "--run.uri", dest="run", required=True, metavar="RUN", help="folder of a finished run: a path or any fsspec URI"
    )
    made.add_argument("--budget", required=True, help="labels to verify, such as 1000, or 1%% of all images")
    made.add_argument("--output", default="to_verify.csv", help="the CSV: a path or any fsspec URI [%(default)s]")
    made.add_argument(
        "--classes",
        type=int,
        help="classes to ask about at most, where each costs time to learn [all, if it comes to that]",
    )
    made.add_argument("--seed", type=int, help="another one asks about other images [the run's]")
    return made


def verify_next(asked_for: argparse.Namespace) -> str:
    """Plan and write; returns what is said about it. Raises: CleanscaleError, before anything is read where it can."""
    number_or_share = parsed_budget(asked_for.budget)
    if asked_for.classes is not None and asked_for.classes < 1:
        raise ConfigError(f"--classes is {asked_for.classes}; expected 1 or more; correct it, or leave it out for all")
    if uris.exists(asked_for.output):
        raise ConfigError(
            f"'{asked_for.output}' is there already; expected a new file, since somebody may have filled that one in; "
            "name another with --output"
        )
    run = opened(asked_for.run)
    seed = run.settings.run.seed if asked_for.seed is None else asked_for.seed
    plan = planned(run, number_or_share, asked_for.classes, seed)
    if not plan.table.num_rows:
        raise ConfigError(
            f"every image of '{run.uri}' is verified; expected some that are not; there is nothing left to ask"
        )
    uris.write_bytes(asked_for.output, to_csv(plan))
    return in_words(plan, asked_for.output, run)


def parsed_budget(text: str) -> int | float:
    """A number of labels (int), or a share of the images (float)."""
    found = re.fullmatch(r"\s*([0-9][0-9,_]*(?:\.[0-9]+)?(?:e[0-9]+)?)\s*(%?)\s*", text, re.IGNORECASE)
    number = float(found[1].replace(",", "").replace("_", "")) if found else 0.0
    percent = bool(found and found[2])
    if number <= 0 or (percent and number > 100) or (not percent and number % 1):
        raise ConfigError(
            f"--budget is {text!r}; expected a number of labels such as 1000, or a share of the images such as 1%; "
            "correct it"
        )
    return number / 100 if percent else int(number)


def opened(uri: str) -> FinishedRun:
    """Raises: DataError for what is no finished run; ConfigError for one whose images have lists of labels."""
    from cleanscale.registry.finished_run import FinishedRun, absolute
    from cleanscale.storage.manifests import read_json

    notes = read_json(uris.join(absolute(uri), "ingest", "train", "ingested.json"))
    if notes and notes.get("multi_label"):
        raise ConfigError(
            f"the labels of '{uri}' are lists; expected a run with one label per image, which is what a plan is made "
            "from; choose pairs of image and label from its labels/*.parquet, those with `cleaned` near 0.5"
        )
    return FinishedRun.open(uri)


def planned(run: FinishedRun, budget: int | float, classes: int | None, seed: int) -> Asked:
    from cleanscale.stages import verification_plan

    features = run.features()
    number = budget if isinstance(budget, int) else max(1, round(budget * features.num_images))
    relevance = run.round_path(run.last_round, "relevance")
    with workers(run, features.num_images):
        return verification_plan.run(features, relevance, run.ingested("train"), number, classes=classes, seed=seed)


@contextlib.contextmanager
def workers(run: FinishedRun, images: int) -> Iterator[None]:
    """Tasks of a small run are done here; of a large one on Ray, as in its training."""
    from cleanscale.engine.here import Here, in_this_process
    from cleanscale.engine.session import session

    with in_this_process(Here()) if images <= IN_THIS_PROCESS_IMAGES else session(run.settings.engine):
        yield


def to_csv(plan: Asked) -> bytes:
    import pyarrow.csv

    sink = io.BytesIO()
    pyarrow.csv.write_csv(plan.table, sink, pyarrow.csv.WriteOptions(quoting_style="needed"))
    return sink.getvalue()


def in_words(plan: Asked, output: str, run: FinishedRun) -> str:
    """What was asked, and how to go on."""
    verified_C, unverified_C = (plan.counts[name].to_numpy() for name in ("verified", "unverified"))
    asked = f"{plan.table.num_rows:,} labels to verify, of {len(plan.table['label'].unique()):,}"
    known = f"{int(verified_C.sum()):,} were verified, of {int((verified_C > 0).sum()):,} classes"
    return "\n".join(
        [
            f"{output}: {asked} of the {int((unverified_C > 0).sum()):,} classes that have any left ({known})",
            "fill in `verified`: 1 the label is right, 0 it is wrong; `verified_label`, if you know it: what it is",
            f"then run the training again with --data.verification {together(run, output)}",
        ]
    )


def together(run: FinishedRun, output: str) -> str:
    """What to name as verification, so that this file counts and what was verified before goes on to count."""
    from cleanscale.datasets.generated import GENERATED
    from cleanscale.datasets.glyphs import EMBEDDED

    data = run.settings.data
    before = data.verification
    if before is None and data.train in (EMBEDDED, GENERATED):
        before = run.path("glyphs" if data.train == EMBEDDED else "generated", "verification.parquet")
    if before is None:
        column = f" (what the column '{data.verified}' of the data says goes on to count)" if data.verified else ""
        return output + column
    if uris.is_file(before):
        return f"FOLDER, a folder that holds this file and a copy of {before}"
    return f"{before}, where this file has to be put too"


if __name__ == "__main__":
    sys.exit(main())
