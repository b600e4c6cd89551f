"""Smooth random fields and their resampling by small matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float32]
_ONE_THREAD = 200_000  # OpenBLAS takes several threads from 262,144 multiplications on
_SPLINE_LOSS = np.float32(1.12)  # splines smooth the finest waves, which divides the standard deviation by this


def periodic_noise(
    rng: np.random.Generator, size: int, *, wavelength: float, roughness: float = 1.0, finest: float = 0.0
) -> Field:
    """Make a random field that continues over its edges.

    Args:
        rng: source of randomness.
        size: rows and columns.
        wavelength: the longest wave in samples.
        roughness: exponent by which amplitudes fall towards shorter waves; larger is smoother.
        finest: the shortest wave in samples; 0 for no limit.

    Returns:
        float32 (size, size), mean 0, standard deviation 1.
    """
    return rectangle_noise(rng, (size, size), wavelength=wavelength, roughness=roughness, finest=finest)


def rectangle_noise(
    rng: np.random.Generator,
    shape: tuple[int, int],
    *,
    wavelength: float,
    roughness: float = 1.0,
    finest: float = 0.0,
) -> Field:
    """``periodic_noise`` on a rectangle of (rows, columns)."""
    from scipy import fft  # noqa: PLC0415  (slow to import)

    rows, columns = shape
    frequency = np.sqrt(np.square(fft.fftfreq(rows))[:, None] + np.square(fft.rfftfreq(columns))[None, :])
    frequency = frequency.astype(np.float32)
    amplitude = np.maximum(frequency, np.float32(1e-9)) ** np.float32(-(roughness + 1.0))
    amplitude[frequency < 0.6 / wavelength] = 0.0
    if finest > 0:
        amplitude *= np.exp(-np.square(frequency * np.float32(finest)))
    waves = rng.standard_normal((rows, columns // 2 + 1, 2), dtype=np.float32) * amplitude[..., None]
    field = fft.irfft2(waves.view(np.complex64)[..., 0], s=shape)
    return np.asarray((field - field.mean()) / (float(field.std()) or 1.0), dtype=np.float32)


def spline_rows(count: int, step: float, phase: float) -> Field:
    """Make the matrix that samples a coarse signal by quadratic B-splines.

    Args:
        count: number of samples.
        step: distance of the samples in coarse cells.
        phase: position of the first sample in coarse cells, where cell j covers j to j + 1; at least 1.

    Returns:
        float32 (count, cells): each row sums to 1; multiply it by the coarse cells from index 0 on.
    """
    position = phase + step * np.arange(count)
    cell = np.floor(position).astype(np.intp)
    within = position - cell
    matrix = np.zeros((count, int(cell[-1]) + 2), dtype=np.float32)
    index = np.arange(count)
    matrix[index, cell - 1] = 0.5 * (1 - within) ** 2
    matrix[index, cell] = 0.5 + within * (1 - within)
    matrix[index, cell + 1] = 0.5 * within**2
    return matrix


def product(left: Field, right: Field) -> Field:
    """Compute ``left @ right`` in pieces that BLAS does not spread over threads.

    Several processes draw side by side: threads waiting for each other would cost more than they gain.
    """
    rows, inner = left.shape
    columns = right.shape[1]
    if rows * inner * columns <= _ONE_THREAD:
        return left @ right
    out = np.empty((rows, columns), dtype=np.float32)
    tall = min(rows, 64)
    wide = max(8, _ONE_THREAD // (tall * inner))
    for row in range(0, rows, tall):
        for column in range(0, columns, wide):
            part = slice(row, row + tall), slice(column, column + wide)
            out[part] = left[part[0]] @ right[:, part[1]]
    return out


def enlarge(field: Field, down: Field, across: Field) -> Field:
    """Compute ``down @ field @ across.T`` for matrices from spline_rows, each row of which needs only three columns.

    Returns:
        float32 (rows of down, rows of across).
    """
    middle = np.empty((len(down), field.shape[1]), dtype=np.float32)
    for rows, cells in _bands(down):
        middle[rows] = product(down[rows, cells], field[cells])
    out = np.empty((len(down), len(across)), dtype=np.float32)
    for columns, cells in _bands(across):
        out[:, columns] = product(middle[:, cells], across[columns, cells].T)
    return out


def _bands(matrix: Field) -> Iterator[tuple[slice, slice]]:
    """Yield ranges of rows with the columns in which they are not zero."""
    for first in range(0, len(matrix), 64):
        rows = slice(first, min(first + 64, len(matrix)))
        low = int(np.argmax(matrix[first] > 0))
        high = matrix.shape[1] - int(np.argmax(matrix[rows.stop - 1, ::-1] > 0))
        yield rows, slice(low, high)


def enlarge_periodic(field: Field, size: int) -> Field:
    """Sample a periodic field more finely, smooth and still periodic: float32 (size, size)."""
    small = field.shape[0]
    matrix = spline_rows(size, small / size, 1.0 + 0.5 * small / size)
    padded = np.pad(field, ((1, matrix.shape[1] - 1 - small),) * 2, mode="wrap")
    return enlarge(padded, matrix, matrix)


def coarse_noise(
    rng: np.random.Generator, shape: tuple[int, int], *, wavelength: float, roughness: float = 0.8, finest: float = 0.0
) -> Field:
    """Make a random field on (rows, columns), drawn as coarsely as its waves allow and enlarged smoothly.

    Returns:
        float32 ``shape``, mean about 0, standard deviation about 1.
    """
    stride = max(1, int((finest or wavelength / 5) / 2))
    from scipy.fft import next_fast_len  # noqa: PLC0415  (slow to import)

    small = rectangle_noise(
        rng,
        (next_fast_len(shape[0] // stride + 4), next_fast_len(shape[1] // stride + 4, real=True)),
        wavelength=wavelength / stride,
        roughness=roughness,
        finest=finest / stride,
    )
    if stride == 1:
        return small[: shape[0], : shape[1]]
    down, across = spline_rows(shape[0], 1 / stride, 1.0), spline_rows(shape[1], 1 / stride, 1.0)
    return enlarge(small[: down.shape[1], : across.shape[1]], down, across) * _SPLINE_LOSS
