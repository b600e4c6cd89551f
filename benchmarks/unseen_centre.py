"""How well the shipped recipe stages synthetic patients of a centre that it was not trained on.

For each seed a network is made as the demonstration makes it, from patients of four centres, and runs on patients of
the fifth, drawn with another seed. Nothing is chosen on them. Give seeds that nobody looked at while the recipe was
made.

Run: python benchmarks/unseen_centre.py [--seeds 101 102 103] [--patients 12 --test-patients 20] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from staging import read_stage_table
from staging.demo import UNSEEN_CENTRE, DemoPlan, run_demo
from staging.scores.kappa import quadratic_kappa
from staging.training.training_progress import TrainingProgress


def main() -> None:
    """Print a row for each seed, and the kappa of all patients together."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[101, 102, 103])
    parser.add_argument("--patients", type=int, default=12)
    parser.add_argument("--test-patients", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="keep what was made in this folder")
    asked = parser.parse_args()
    pairs: list[tuple[int, int]] = []
    print("| seed | kappa | 95 % interval | patients in their stage | seconds |\n|---|---|---|---|---|", flush=True)
    for seed in asked.seeds:
        begun = time.perf_counter()
        plan = DemoPlan(
            seed=seed,
            training_patients=asked.patients,
            test_patients=asked.test_patients,
            test_centres=(UNSEEN_CENTRE,),
            workers=asked.workers,
        )
        with TemporaryDirectory() as name, TrainingProgress() as news:
            folder = asked.keep / str(seed) if asked.keep else Path(name)
            found = run_demo(folder, plan, news=news)
            truth = read_stage_table(folder / "test/stage_labels.csv").stages
        assert found.score is not None  # noqa: S101  (a run with a reference has one)
        of_seed = [(truth[one].rank, stage.rank) for one, stage in found.staging.stages.items()]
        pairs += of_seed
        low, high = found.score["interval"]
        print(
            f"| {seed} | {found.score['kappa']:.3f} | {low:.2f} to {high:.2f} "
            f"| {sum(true == claimed for true, claimed in of_seed)} of {len(of_seed)} "
            f"| {time.perf_counter() - begun:.0f} |",
            flush=True,
        )
    print(f"all together: kappa {quadratic_kappa(*zip(*pairs, strict=True)):.3f}")


if __name__ == "__main__":
    main()
