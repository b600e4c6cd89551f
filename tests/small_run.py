"""A run on a few small slides, as several test modules need it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from staging.cohorts.camelyon import SlideFile
from staging.runs.cohort import CohortResult, run_cohort
from staging.runs.config import RunConfig
from wsi.cnn.checkpoint import load_checkpoint

MPP = 8.0


class Silence:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, str]] = []
        self.counted: set[str] = set()

    def tiles(self, slide: str, done: int, total: int) -> None:
        assert 0 <= done <= total
        self.counted.add(slide)

    def slide(self, name: str, outcome: str = "") -> None:
        self.ended.append((name, outcome))


def configuration(path: Path, **changes: Any) -> RunConfig:
    return RunConfig(**{"model": load_checkpoint(path).digest, "threshold": 0.5, "peak": 0.9, **changes})


def run(slides: Sequence[SlideFile], output: Path, model: Path, **options: Any) -> CohortResult:
    options.setdefault("config", configuration(model))
    options.setdefault("news", Silence())
    return run_cohort(slides, output, model=model, device="cpu", **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }
