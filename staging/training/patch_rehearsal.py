"""What sampling patches would do, and how much room and time it would take, without doing it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from staging.bars import watched
from staging.cohorts.camelyon import SlideFile, StageTable
from staging.training.outputs import PatchOutput, SlidePart, form_of
from staging.training.room import expected_bytes
from staging.training.sampling import check_sources
from staging.training.sources import PatchRecipe, PatchSource, draw, find_sources
from staging.training.storing import check_output

_SAMPLE = 3


def rehearse_patches(
    slides: Sequence[SlideFile],
    annotations: Path,
    reference: StageTable,
    output: Path,
    *,
    recipe: PatchRecipe,
    workers: int,
    form: str | None = None,
    quality: int | None = None,
) -> dict[str, Any]:
    """Find the slides, and draw and write the patches of a few of them elsewhere; arguments as for sample_cohort.

    Returns:
        ``slides``, ``left_out`` (name and reason), ``wanted`` (patches of each kind at most), ``sampled``, and by these
        ``count``, ``seconds`` and ``bytes`` of the whole.

    Raises:
        PathologyError: as sample_cohort before it draws, or a sampled slide is faulty.
    """
    sources, left_out = find_sources(slides, annotations, reference, recipe)
    check_sources(sources, recipe)
    target = PatchOutput(path=output, form=form_of(output, form), quality=quality, slide_mpp=recipe.slide_mpp)
    check_output(target)
    chosen = sources[:: max(1, len(sources) // _SAMPLE)][:_SAMPLE]
    count, seconds, size = 0, 0.0, 0
    for source in watched(chosen, count=len(chosen), verb="slides sampled", name=lambda one: one.slide.name):
        rows, spent, stored = _tried(source, recipe, target)
        count, seconds, size = count + rows, seconds + spent, size + stored
    scale = len(sources) / len(chosen)
    wanted = {kind: sum(getattr(one, kind) for one in sources) for kind in ("tumour", "normal", "hard")}
    return {
        "slides": len(sources),
        "left_out": left_out,
        "wanted": wanted,
        "sampled": len(chosen),
        "count": min(round(count * scale), sum(wanted.values())),
        "seconds": round(seconds * scale / max(1, min(workers, len(sources))), 1),
        "bytes": round(size * scale) + expected_bytes(target, []),
    }


def _tried(source: PatchSource, recipe: PatchRecipe, target: PatchOutput) -> tuple[int, float, int]:
    """(patches, seconds, bytes) of a slide, drawn and written to a folder that is removed."""
    begun = time.perf_counter()
    with TemporaryDirectory() as folder:
        elsewhere = replace(target, path=Path(folder) / target.path.name)
        elsewhere.work.mkdir(parents=True)
        rows = draw((source, recipe, elsewhere.work), lambda _slide, _done, _total: None)
        part = SlidePart(file=source.slide.path, annotation_file=source.annotation_file, rows=rows, output=elsewhere)
        if len(rows):
            target.form.write(part)
        return len(rows), time.perf_counter() - begun, expected_bytes(elsewhere, [part]) - expected_bytes(elsewhere, [])
