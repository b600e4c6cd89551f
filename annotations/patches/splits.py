"""Whom to learn from and whom to test on: splits in which no patient is on both sides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from annotations.errors import SamplingError

TRAIN, VALIDATION, TEST = _NAMES = ("train", "validation", "test")
FOLD = "fold-"
"""Prefix of a fold's name; its number, from 0, follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """How patients are split.

    Attributes:
        kind: ``patient`` splits by shares, ``centre`` holds one centre out, ``folds`` makes equal parts.
        shares: of train, validation and test (two are train and test), for ``patient``.
        number: the centre, or the number of folds.
    """

    kind: Literal["patient", "centre", "folds"]
    shares: tuple[float, ...] = ()
    number: int = 0

    @classmethod
    def parse(cls, text: str) -> Split:
        """``patient:0.7,0.15,0.15``, ``patient:0.8,0.2`` (train and test), ``centre:4`` or ``folds:5``.

        Raises:
            ValueError: it is none of these.
        """
        kind, _, rest = text.strip().lower().partition(":")
        if kind == "patient":
            shares = tuple(float(part) for part in rest.split(","))
            if len(shares) not in (2, 3) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
                raise ValueError(f"a split needs two or three positive shares that add up to 1, got {rest}")
            return cls(kind="patient", shares=shares)
        if kind == "centre":
            return cls(kind="centre", number=int(rest))
        if kind == "folds" and int(rest) >= 2:
            return cls(kind="folds", number=int(rest))
        raise ValueError(f"a split must be patient:SHARES, centre:NUMBER or folds:NUMBER, got {text!r}")

    def of(
        self,
        patients: NDArray[np.str_],
        centres: NDArray[np.integer],
        has_tumour: NDArray[np.bool_],
        *,
        seed: int,
    ) -> NDArray[np.object_]:
        """The split of every patch: text (n,); see split_by_patient, leave_centre_out and k_fold.

        Raises:
            SamplingError: the patients cannot be split that way.
        """
        if self.kind == "centre":
            return leave_centre_out(patients, centres, self.number)
        if self.kind == "folds":
            return k_fold(patients, self.number, seed=seed, has_tumour=has_tumour)
        names = _NAMES if len(self.shares) == 3 else (TRAIN, TEST)
        shares = dict(zip(names, self.shares, strict=True))
        return split_by_patient(patients, shares, seed=seed, has_tumour=has_tumour)


def split_by_patient(
    patients: NDArray[np.str_], shares: Mapping[str, float], *, seed: int, has_tumour: NDArray[np.bool_] | None = None
) -> NDArray[np.object_]:
    """Assign every patient to one split.

    Patients with and without tumour are apportioned separately, so that each split gets some of both; a split's number
    of patients is its share of theirs, rounded, the remainders going to the largest fractions. A split that rounding
    gave too many with tumour gets correspondingly fewer without.

    Args:
        patients: text (n,), the patient of each patch.
        shares: of the patients, by the name of the split; positive, 1 in total.
        seed: determines the assignment.
        has_tumour: bool (n,), whether each patch is tumour.

    Returns:
        Text (n,): the split of each patch.

    Raises:
        SamplingError: there are too few patients to give every split one.
        ValueError: the shares are not positive or do not add up to 1.
    """
    if not shares or min(shares.values()) <= 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise ValueError(f"shares of a split must be positive and add up to 1, got {dict(shares)}")
    rng = np.random.default_rng(seed)
    split_of: dict[str, str] = {}
    owed = np.zeros(len(shares))
    for group in _strata(patients, has_tumour):
        exact = np.array(list(shares.values())) * len(group) + owed
        sizes = _apportioned(len(group), exact)
        owed = exact - sizes
        names = [name for name, size in zip(shares, sizes, strict=True) for _ in range(size)]
        split_of.update(zip(rng.permutation(group).tolist(), names, strict=True))
    empty = [name for name in shares if name not in split_of.values()]
    if empty:
        raise SamplingError(
            None,
            f"{len(split_of)} patients are too few for these shares: none are left for {' and '.join(empty)}",
            mend="give it a larger share, or more patients",
        )
    return np.array([split_of[patient] for patient in patients.tolist()], dtype=object)


def k_fold(
    patients: NDArray[np.str_], folds: int, *, seed: int, has_tumour: NDArray[np.bool_] | None = None
) -> NDArray[np.object_]:
    """Assign every patient to one of ``fold-0`` ... ; sizes differ by at most one patient with tumour and one without.

    Args:
        patients: text (n,), the patient of each patch.
        folds: their number, at least 2.
        seed: determines the assignment.
        has_tumour: bool (n,), whether each patch is tumour.

    Raises:
        SamplingError: there are fewer patients than folds.
        ValueError: fewer than 2 folds.
    """
    if folds < 2:
        raise ValueError(f"k-fold needs at least 2 folds, got {folds}")
    count = len(np.unique(patients))
    if count < folds:
        raise SamplingError(None, f"{count} patients cannot fill {folds} folds", mend="request fewer folds")
    rng = np.random.default_rng(seed)
    fold_of: dict[str, str] = {}
    at = 0  # the second stratum continues where the first ended: the folds stay equally large
    for group in _strata(patients, has_tumour):
        for patient in rng.permutation(group).tolist():
            fold_of[patient] = f"{FOLD}{at % folds}"
            at += 1
    return np.array([fold_of[patient] for patient in patients.tolist()], dtype=object)


def leave_centre_out(patients: NDArray[np.str_], centres: NDArray[np.integer], held_out: int) -> NDArray[np.object_]:
    """``test`` for the patients of one centre, ``train`` for all others.

    Args:
        patients: text (n,), the patient of each patch.
        centres: int (n,), the centre of each patch, -1 where unknown.
        held_out: the centre to test on.

    Raises:
        SamplingError: a centre is unknown, no patch or every patch is from the one held out, or a patient has two
            centres.
    """
    if (centres < 0).any():
        unknown = str(patients[centres < 0][0])
        raise SamplingError(None, f"the centre of {unknown} is unknown", mend="split by patient, or name its centre")
    tested = centres == held_out
    if tested.all() or not tested.any():
        reason = "all patches are" if tested.any() else "no patch is"
        raise SamplingError(None, f"{reason} from centre {held_out}", mend="hold another centre out")
    both = np.intersect1d(patients[tested].astype(str), patients[~tested].astype(str))
    if both.size:
        raise SamplingError(
            None, f"{both[0]} has slides from centre {held_out} and from another", mend="split by patient"
        )
    return np.where(tested, TEST, TRAIN).astype(object)


def _strata(patients: NDArray[np.str_], has_tumour: NDArray[np.bool_] | None) -> list[NDArray[np.str_]]:
    """The names of patients with tumour and of those without, sorted."""
    names = np.unique(patients.astype(str))
    if has_tumour is None:
        return [names]
    with_tumour = np.unique(patients[has_tumour].astype(str))
    return [with_tumour, np.setdiff1d(names, with_tumour)]


def _apportioned(count: int, exact: NDArray[np.float64]) -> list[int]:
    """``count`` in whole parts by the largest-remainder method; parts owed less than 0 get none."""
    parts = np.zeros(len(exact), np.int64)
    for _ in range(count):
        parts[np.argmax(np.round(exact - parts, 9))] += 1
    return [int(part) for part in parts]
