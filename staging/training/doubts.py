"""Why something that was trained should not be used."""

from __future__ import annotations

_NEAR_CHANCE = 0.6


def near_chance(area: float | None) -> tuple[str, ...]:
    """Say that an area under the ROC curve of unseen patients is near that of guessing, 0.5, if it is."""
    if area is None or area >= _NEAR_CHANCE:
        return ()
    return (f"the AUC on unseen patients is {area:.2f}, near chance (0.5): it has learnt too little to be used",)


def at_its_bound(temperature: float) -> tuple[str, ...]:
    """Say that calibration ended at one of its bounds, if it did."""
    from wsi.cnn.calibration import TEMPERATURES  # noqa: PLC0415  (loads torch)

    if temperature not in TEMPERATURES:
        return ()
    return (f"calibration ended at its bound ({temperature:g}): the probabilities do not say how often they hold",)


def best_at_the_end(best: int, passes: int) -> tuple[str, ...]:
    """Say that the best pass (its index) is the last, if it is: the network was still learning."""
    return ("the best pass is the last: more --epochs may do better",) if passes > 1 and best == passes - 1 else ()


def worse_than_begun(begun: float | None, loss: float | None) -> tuple[str, ...]:
    """Say that training made held-out patients worse, by the losses of the network it started from and of the best."""
    if begun is None or loss is None or loss <= begun:
        return ()
    losses = f"loss {begun:.4f}, now {loss:.4f}; it may have learnt from them"
    return (f"the network that it started from does better on the held-out patients ({losses})",)
