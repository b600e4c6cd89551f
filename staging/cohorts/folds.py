"""Folds for cross-validation: whole patients or centres, dealt so that the worst labels spread evenly."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from staging.cohorts.names import centre_name
from staging.errors import CohortError, listed
from staging.stages.pn import BY_NAME, SlideNodes

HeldOut = Literal["patients", "centres"]
"""What is held out together."""


def groups_of(
    slides: Sequence[str], held_out: HeldOut, *, nodes: SlideNodes = BY_NAME, source: Path | None = None
) -> tuple[str, ...]:
    """What each slide must not be divided from: its patient (a slide of an unknown one is its own), or its centre.

    Args:
        slides: names.
        held_out: patients or centres.
        nodes: which patient each slide is of.
        source: the file to name in errors.

    Raises:
        CohortError: a slide's name does not give its centre.
    """
    if held_out == "patients":
        return tuple(nodes.patient(name) or name for name in slides)
    centres = {name: centre_name(name) for name in slides}
    strangers = sorted(name for name, centre in centres.items() if centre is None)
    if strangers:
        raise CohortError(
            source, f"there is no centre in the name for {listed(strangers)}", mend="split by patients instead"
        )
    return tuple(centre for name in slides if (centre := centres[name]) is not None)


def deal_folds(
    groups: Sequence[str], ranks: Sequence[int] | NDArray[np.int64], *, count: int, held_out: HeldOut, seed: int
) -> NDArray[np.int64]:
    """The fold of each slide: whole groups, dealt so that the worst labels spread evenly.

    Args:
        groups: of each slide.
        ranks: of its label.
        count: number of folds of patients; centres are always left out one at a time.
        held_out: what the groups are.
        seed: of the draw.

    Returns:
        int64 (slides,), 0 to folds - 1.

    Raises:
        CohortError: there are fewer groups than folds, or one.
    """
    names = sorted(set(groups))
    count = len(names) if held_out == "centres" else count
    if count < 2 or len(names) < count:
        raise CohortError(
            None,
            f"too few {held_out} for {max(2, count)} folds: {len(names)}",
            mend="give more, or ask for fewer folds",
        )
    order = np.random.default_rng(seed).permutation(len(names))
    worst = dict.fromkeys(names, 0)
    for group, rank in zip(groups, np.asarray(ranks).tolist(), strict=True):
        worst[group] = max(worst[group], rank)
    dealt = sorted((names[at] for at in order), key=lambda group: worst[group])
    fold = {group: number % count for number, group in enumerate(dealt)}
    return np.array([fold[group] for group in groups], dtype=np.int64)
