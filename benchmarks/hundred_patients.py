"""A public benchmark of CAMELYON17's full shape on synthetic slides: 100 patients, 5 centres, 500 slides, baselines.

The seeds are fixed, so everybody gets the same slides and stages. A network learns from other patients, of centres 0
to 3; centre 4 is new to it. The rows:

* colour: a random forest on smoothed stain densities at 16 um/px, learnt from the same patients as the network;
* size rule: the network's heatmaps, with the settings that its training stored;
* tuned size rule: threshold, peak, smallest size and merge gap tuned on the other centres;
* learned labels: a forest on the heatmaps' shapes and probabilities, trained on the other centres;
* MIL: an attention head on the network's own features (64 channels; mean and highest of a tile of 224 px at 2 um/px),
  trained on the other centres' slide labels.

Run: python benchmarks/hundred_patients.py [FOLDER] [--patients 100] [--training-patients 24] [--workers 2]

FOLDER is new: slides, network, heatmaps and tables stay there (4 GB); without one nothing is kept.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from colour_rule import fit, heatmap_of, pixels_of
from torch import nn

from staging import SlideLabel, StageTable, find_slides, read_stage_table, stage_patients
from staging.bars import CohortProgress
from staging.cohorts.errata import EXCLUDED
from staging.cohorts.names import CENTRES
from staging.comparison.comparison import Features, compare_methods
from staging.csv_rows import csv_text
from staging.demo import TRAINING_CENTRES, UNSEEN_CENTRE
from staging.phantom import generate_cohort
from staging.phantom.cohort import CohortTruth
from staging.runs.cohort import run_cohort
from staging.runs.encoding import EncodingPlan, encode_cohort
from staging.scores.patients import score_stages
from staging.scores.slides import score_auc, score_labels
from staging.training.labelled_cohort import LabelledCohort
from staging.training.recipe import CohortRecipe
from staging.training.rounds import run_training
from staging.training.training_progress import TrainingProgress
from staging.tuning.slides import gather_heatmaps
from staging.tuning.tuning import TuningRecipe
from wsi.cnn.checkpoint import load_checkpoint
from wsi.cnn.encoders.mil_training import MilTraining
from wsi.cnn.network import Network
from wsi.store import atomic_text

SEED, TRAINING_SEED = 17, 16
MPP, TILE_PX, COLOUR_UM = 2.0, 224, 16.0


class Encoder(nn.Module):
    """The network without its head: the mean and the highest of each channel over the cells of a tile."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles: torch.Tensor) -> torch.Tensor:
        """Float32 (n, 3, rows, columns) from 0 to 1, to (n, 2 x channels)."""
        cells = self.network.body(self.network.normalised(tiles * 255))
        return torch.cat([cells.mean(dim=(2, 3)), cells.amax(dim=(2, 3))], dim=1)


def write_encoder(model: Path, target: Path) -> None:
    """Export the encoder of a checkpoint."""
    network = load_checkpoint(model).network
    assert isinstance(network, Network)  # noqa: S101  (the recipe's)
    program = torch.export.export(
        Encoder(network).eval(),
        (torch.zeros(2, 3, TILE_PX, TILE_PX),),
        dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )
    torch.export.save(program, target)


def trained(folder: Path, patients: int, workers: int) -> tuple[Path, CohortTruth]:
    """Make the network from patients whose numbers none of the benchmark's has."""
    training, model = folder / "training", folder / "model.safetensors"
    truth = generate_cohort(
        training,
        patients=patients,
        centres=TRAINING_CENTRES,
        seed=TRAINING_SEED,
        mpp=MPP,
        workers=workers,
        first_patient=20 * len(TRAINING_CENTRES),
    )
    cohort = LabelledCohort(
        slides=find_slides([training / "images"]),
        annotations=training / "annotations",
        reference=read_stage_table(training / "stage_labels.csv"),
    )
    with TrainingProgress() as news:
        run_training(CohortRecipe(seed=SEED, device="cpu").plan(cohort, model, workers=workers), news=news)
    return model, truth


def by_colour(training: tuple[Path, CohortTruth], test: tuple[Path, CohortTruth], table: Path) -> dict[str, Any]:
    """The scores of a rule that knows colours alone; its labels go to a table."""
    rule = fit(list(pixels_of(*training, COLOUR_UM)), SEED)
    labels: dict[str, SlideLabel] = {}
    highest: dict[str, float] = {}
    for slide in pixels_of(*test, COLOUR_UM):
        heatmap = heatmap_of(rule.forest, slide)
        labels[slide.name], highest[slide.name] = rule.label(heatmap), float(heatmap.array.max())
    reference = read_stage_table(test[0] / "stage_labels.csv")
    atomic_text(table, csv_text(("slide", "label"), ((name, label.value) for name, label in labels.items())))
    tumour = {name: label is not SlideLabel.NEGATIVE for name, label in reference.labels.items()}
    return {
        "labels": score_labels(reference.labels, labels).to_json(),
        "auc": score_auc(tumour, highest, with_errata=False).to_json(),
    }


def staged(reference: StageTable, table: Path, column: str) -> dict[str, Any]:
    """The kappa of the stages that a column of labels gives, of all patients that have them and of each centre.

    Slides in the organisers' errata are left out by name, as real ones are, and with them three patients.
    """
    with table.open(encoding="utf-8") as file:
        labels = {row["slide"]: SlideLabel.parse(row[column]) for row in csv.DictReader(file)}
    found = stage_patients({name: label for name, label in labels.items() if name not in EXCLUDED}).stages
    truth = StageTable(stages={patient: reference.stages[patient] for patient in found})
    return score_stages(truth, StageTable(stages=found)).to_json()


def row(name: str, scores: Mapping[str, Any], stages: Mapping[str, Any]) -> str:
    """A row of the table."""
    labels, auc = scores["labels"], scores["auc"]
    low, high = stages["interval"]
    of_centres = [stages["centres"][centre]["kappa"] for centre in CENTRES]
    return (
        f"| {name} | {stages['kappa']:.3f} | {low:.2f} to {high:.2f} | "
        + " | ".join("-" if one is None else f"{one:.2f}" for one in of_centres)
        + f" | {labels['accuracy']:.3f} | {auc['auc']:.3f} |"
    )


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Print how long a step took."""
    begun = time.perf_counter()
    yield
    print(f"{what}: {time.perf_counter() - begun:.0f} s", flush=True)


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--patients", type=int, default=100)
    parser.add_argument("--training-patients", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with TemporaryDirectory() as name:
        measure(asked.folder or Path(name), asked)


def measure(folder: Path, asked: argparse.Namespace) -> None:
    """Draw, train, run, encode, compare; print the table."""
    cohort, results, features = (folder / name for name in ("cohort", "results", "features"))
    reference, workers = cohort / "stage_labels.csv", asked.workers
    with timed("drawing the benchmark"):
        truth = generate_cohort(
            cohort,
            patients=asked.patients,
            centres=(*TRAINING_CENTRES, UNSEEN_CENTRE),
            seed=SEED,
            mpp=MPP,
            workers=workers,
        )
    with timed("drawing and training"):
        model, training_truth = trained(folder, asked.training_patients, workers)
    slides = find_slides([cohort / "images"])
    with timed("running the network"), CohortProgress(len(slides)) as news:
        run_cohort(
            slides,
            results,
            model=model,
            config=CohortRecipe().run_configuration(model),
            reference=read_stage_table(reference),
            workers=workers,
            device="cpu",
            news=news,
        )
    with timed("encoding"):
        encoder = folder / "encoder.pt2"
        write_encoder(model, encoder)
        encode_cohort(
            slides,
            features,
            EncodingPlan(
                encoder=encoder,
                mpp=MPP,
                size_px=TILE_PX,
                stride_px=TILE_PX,
                mean=(0, 0, 0),
                std=(1, 1, 1),
                device="cpu",
                workers=workers,
            ),
        )
    with timed("colour"):
        training = folder / "training", training_truth
        methods = {"colour": by_colour(training, (cohort, truth), folder / "colour.csv")}
    with timed("comparing"):
        compared = compare_methods(
            gather_heatmaps(results, reference, model=model),
            folder / "compared",
            TuningRecipe(held_out="centres"),
            features=Features(folder=features, options=MilTraining(seed=SEED), device="cpu"),
            workers=workers,
        )
    methods |= compared["methods"]
    truth_table, tables = read_stage_table(reference), {"colour": (folder / "colour.csv", "label")}
    centres = " | ".join(f"centre {number}" for number in range(len(CENTRES)))
    print(f"| method | kappa | 95 % interval | {centres} | accuracy of labels | AUC of slides |")
    print("|---" * 10 + "|")
    for name, scores in methods.items():
        table, column = tables.get(name, (folder / "compared" / "labels.csv", name))
        print(row(name, scores, staged(truth_table, table, column)))


if __name__ == "__main__":
    main()
