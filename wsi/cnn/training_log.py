"""The log of a training, pass by pass: a CSV file, and TensorBoard if installed."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from wsi.cnn.training import Epoch
from wsi.errors import PathologyError
from wsi.store import atomic_text

_HEADER = ("epoch", "loss", "held_out_loss", "held_out_auc")


class TrainingLog:
    """Records passes as they are made; the CSV file is complete after each.

    Args:
        path: the CSV file; an older one is replaced at the first pass.
        tensorboard: a folder for TensorBoard's events; None for none.

    Raises:
        PathologyError: TensorBoard is requested but not installed.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None) -> None:
        self._path = path
        self._rows: list[Epoch] = []
        self._board = None if tensorboard is None else load_summary_writer()(str(tensorboard))

    def note(self, epoch: Epoch) -> None:
        """Add a pass.

        Raises:
            StorageError: the file system refuses.
        """
        self._rows.append(epoch)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADER)
        for row in self._rows:
            numbers = (row.loss, row.judges_loss, row.judges_auc)
            writer.writerow([row.number, *("" if number is None else f"{number:.6f}" for number in numbers)])
        atomic_text(self._path, text.getvalue())
        if self._board is not None:
            values = dict(zip(_HEADER[1:], (epoch.loss, epoch.judges_loss, epoch.judges_auc), strict=True))
            for name, value in values.items():
                if value is not None:
                    self._board.add_scalar(name, value, epoch.number)
            self._board.flush()


def load_summary_writer() -> Any:  # noqa: ANN401  (a package that need not be there)
    """Import TensorBoard's SummaryWriter.

    Raises:
        PathologyError: TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  (need not be there)
    except ImportError as error:
        raise PathologyError(
            None, "TensorBoard is not installed", mend="pip install tensorboard, or leave the option out"
        ) from error
    return SummaryWriter
