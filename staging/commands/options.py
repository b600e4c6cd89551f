"""Options shared by several subcommands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from staging.commands.conditions import OnlyIf
from staging.errors import ConfigurationError
from staging.lesions.labels import ITC_MAX_UM
from staging.lesions.settings import PEAK


def _whole_tiles(tile_size: int) -> int:
    """Return the side of a tile, which TIFF requires to be a multiple of 16 px.

    Raises:
        ConfigurationError: it is not.
    """
    if tile_size % 16 or tile_size > 4096:
        raise ConfigurationError(
            None, f"--tile-size {tile_size} is not a multiple of 16 up to 4096", mend="take 256, 512 or 1024"
        )
    return tile_size


class Source:
    """Marks a text as the path of an input, a pattern of such paths, or a URL."""


SOURCE = Source()

SlideMpp = Annotated[
    float | None,
    typer.Option(help="um per pixel of the finest level, for slides that do not state it.", min=0.01, max=100),
]
OverrideMpp = Annotated[
    float | None,
    typer.Option(
        help="um per pixel of the finest level, even of slides that state another; it is reported.",
        min=0.01,
        max=100,
        show_default=False,
    ),
]
Upsample = Annotated[
    bool,
    typer.Option(
        "--upsample", help="Repeat the pixels of slides coarser than the model or --mpp, instead of refusing them."
    ),
]
Patients = Annotated[
    Path | None,
    typer.Option(
        "--patients",
        help="CSV slide,patient[,node]: whose slides these are, where their names do not say it.",
        show_default=False,
    ),
]
SlideSource = Annotated[
    str, SOURCE, typer.Argument(metavar="SLIDE", help="A slide file or its URL (s3://, https://).", show_default=False)
]
OnBadTile = Annotated[
    Literal["raise", "white"],
    typer.Option(help="A tile that cannot be decoded fails the slide (raise), or is read as white and reported."),
]
AllowPartial = Annotated[
    bool,
    typer.Option(
        "--allow-partial",
        help="Use slides of which too much tissue went unseen, and mark them, instead of quarantining them.",
    ),
]
Tolerance = Annotated[
    float, typer.Option(help="Share of a slide's tissue that may go unseen (missing or bad tiles).", min=0, max=1)
]


AllowEmpty = Annotated[bool, typer.Option("--allow-empty", help="Accept annotations and masks without tumour.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Write nothing: say what would be done, and how much room and time it would take."),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an earlier output of the same kind; never anything else.")
]
Model = Annotated[Path, typer.Option("--model", "-m", help="A checkpoint from sentinode train.", show_default=False)]
TileSize = Annotated[
    int,
    typer.Option(help="Side of the tiles in px, a multiple of 16.", min=16, callback=_whole_tiles),
]
Device = Annotated[str, typer.Option(help="Device of the network.", metavar="auto|cpu|cuda")]
Workers = Annotated[
    int | None,
    typer.Option(help="Number of processes; it does not change the results.", min=1, show_default="one per core"),
]
Nodes = Annotated[
    int,
    typer.Option(
        help="Number of slides a patient needs to be staged; one in a table of --patients needs those listed there.",
        min=1,
        max=1000,
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(
        help="Probability at which lesions are outlined.", min=0.01, max=0.99, show_default="the checkpoint's"
    ),
]
Peak = Annotated[
    float | None,
    typer.Option(
        help="Probability that a lesion's highest cell must reach.",
        min=0,
        max=1,
        show_default=f"the checkpoint's, else {PEAK:g}",
    ),
]
MergeGap = Annotated[float, typer.Option(help="Deposits closer than this many um are one lesion.", min=0)]
Smallest = Annotated[
    float, typer.Option(help="Lesions shorter than this many um count as noise.", min=0, max=ITC_MAX_UM)
]
RunHeatmaps = Annotated[
    Path, typer.Argument(help="Output of run, or a folder of heatmaps.", metavar="RUN", show_default=False)
]
LabelReference = Annotated[
    Path, typer.Argument(help="stage_labels.csv, or a CSV with header slide,label; also as -r.", show_default=False)
]
MadeBy = Annotated[
    Path | None,
    typer.Option(
        "--model",
        "-m",
        help="The checkpoint that made the heatmaps: patients that it was trained on are left out.",
        show_default=False,
    ),
]
HoldOut = Annotated[
    Literal["patients", "centres"], typer.Option(help="What is held out: patients, or one centre at a time.")
]
LeaveOneCentreOut = Annotated[
    bool, typer.Option("--leave-one-centre-out", help="One fold per medical centre; the default.")
]
FoldsOfPatients = Annotated[
    int | None,
    OnlyIf(lambda given: not given["leave_one_centre_out"], "with --leave-one-centre-out"),
    typer.Option("--folds", help="Number of folds of patients, instead of centres.", min=2, show_default=False),
]
Folds = Annotated[
    int,
    OnlyIf(lambda given: given["hold_out"] == "patients", "with --hold-out centres"),
    typer.Option(help="Number of folds of patients.", min=2, max=1000),
]
