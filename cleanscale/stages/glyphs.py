"""glyphs: draw the embedded data set into the run folder, as Parquet files like those a user would bring."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from cleanscale.datasets.glyph_scenes import scene_files, scene_rows, scene_verification
from cleanscale.datasets.glyphs import (
    GlyphFile,
    GlyphsSettings,
    class_names,
    glyph_files,
    glyph_rows,
    glyph_verification,
)
from cleanscale.datasets.settings import DataSettings
from cleanscale.engine.tasks import map_shards
from cleanscale.stages.place import Place
from cleanscale.storage import uris
from cleanscale.storage.manifests import open_stage
from cleanscale.storage.tables import write_table

# Settings that change nothing when pictures show several characters, or one.
ONE_CHARACTER = {"verified_classes", "verified_per_class"}
SEVERAL_CHARACTERS = {"per_image", "missing", "verified_images"}


@dataclass(frozen=True)
class Job:
    settings: GlyphsSettings
    seed: int
    folder: str


def run(place: Place, folder: str, settings: GlyphsSettings, data: DataSettings) -> DataSettings:
    """Draw the data set and return where it is: the same data settings with places and columns filled in."""
    several = settings.per_image > 1
    files = scene_files(settings) if several else glyph_files(settings)
    drawn = settings.model_dump(mode="json", exclude=ONE_CHARACTER if several else SEVERAL_CHARACTERS)
    stage = open_stage(folder, "glyphs", {"glyphs": drawn, "run": {"seed": place.seed}}, {})
    if not stage.complete:
        total = sum(f.stop - f.start for f in files)
        with place.timed("glyphs", total, folder=folder), place.progress.step("draw glyphs", total) as step:
            job = Job(settings, place.seed, folder)
            there = {f.path for f in uris.list_files(folder)}
            missing = [f for f in files if f"{f.split}/{f.name}" not in there]
            for _, rows in map_shards(draw_file, missing, job):
                step.advance(rows)
            checked = (scene_verification if several else glyph_verification)(settings, place.seed)
            write_table(stage.path("verification.parquet"), named(settings, checked, "label", "verified_label"))
        stage.finish([{"file": f"{f.split}/{f.name}", "rows": f.stop - f.start} for f in files])
    return data.found_at(places(folder, settings))


def places(folder: str, settings: GlyphsSettings) -> dict[str, str | None]:
    """The data settings that find the data set drawn in `folder`."""
    return {
        "train": uris.join(folder, "train"),
        "test": uris.join(folder, "test") if settings.test_per_class else None,
        "clean": uris.join(folder, "clean") if settings.clean_per_class else None,
        "verification": uris.join(folder, "verification.parquet"),
        "true_label": "true_label",
    }


def draw_file(file: GlyphFile, job: Job) -> int:
    rows = scene_rows if job.settings.per_image > 1 else glyph_rows
    table = rows(job.settings, job.seed, file.split, file.start, file.stop)
    table = named(job.settings, table, "label", "true_label")
    unsaid = [name for name in ("verified",) if name in table.column_names]  # it has a table of its own
    write_table(uris.join(job.folder, file.split, file.name), table.drop_columns(unsaid))
    return table.num_rows


def named(settings: GlyphsSettings, table: pa.Table, *columns: str) -> pa.Table:
    """Class names in place of numbers: the labels that a user's data would have."""
    names = pa.array(class_names(settings), pa.string())
    for name in (one for one in columns if one in table.column_names):
        label = table[name].combine_chunks()
        several = pa.types.is_list(label.type)
        value = names.take(label.values if several else label)
        value = pa.ListArray.from_arrays(label.offsets, value) if several else value
        table = table.set_column(table.schema.get_field_index(name), name, value)
    return table
