"""Do two models stage patients equally well? The difference of their kappas, its interval and a permutation test.

Run: python examples/compare_two_models.py REFERENCE.csv ONE.csv OTHER.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

from staging import compare_submissions, read_stage_table


def main(reference: Path, one: Path, other: Path) -> None:
    """Print the comparison, paired patient by patient."""
    found = compare_submissions(
        read_stage_table(reference),
        read_stage_table(one, submission=True),
        read_stage_table(other, submission=True),
    ).to_json()
    for name, value in found.items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
