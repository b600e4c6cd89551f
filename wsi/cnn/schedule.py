"""How fast a network learns at each step: pure functions of the step, so that a resumed training needs no state."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, TypeAlias

ScheduleName: TypeAlias = Literal["one-cycle", "cosine"]

_RISE = 0.2
_FIRST_PART = 25
_LAST_PART = 1e4
_MOMENTUM = (0.95, 0.85)
_ADAM_MOMENTUM = 0.9


class Pace(NamedTuple):
    """Learning rate, and decay of the running mean of gradients (AdamW's first beta)."""

    learning_rate: float
    momentum: float


def pace(name: ScheduleName, step: int, *, steps: int, highest: float, warm_up: float) -> Pace:
    """The pace of one step.

    ``one-cycle`` rises for a fifth of the steps from a 25th of the highest rate and falls to a 250,000th, each along
    half a cosine, momentum moving the opposite way: L. N. Smith, N. Topin, "Super-Convergence", 2018, as in
    ``torch.optim.lr_scheduler.OneCycleLR``. ``cosine`` rises linearly and falls along half a cosine towards zero:
    I. Loshchilov, F. Hutter, "SGDR", 2017.

    Args:
        name: which schedule.
        step: from 0.
        steps: of the whole training.
        highest: highest learning rate.
        warm_up: share of the steps in which ``cosine`` rises.
    """
    if name == "one-cycle":
        return _one_cycle(step, steps, highest)
    rising = max(1, math.ceil(warm_up * steps)) if warm_up else 0
    if step < rising:
        return Pace(highest * (step + 1) / rising, _ADAM_MOMENTUM)
    done = (step - rising + 1) / (steps - rising + 1)
    return Pace(highest * (1 + math.cos(math.pi * done)) / 2, _ADAM_MOMENTUM)


def _one_cycle(step: int, steps: int, highest: float) -> Pace:
    # one step more than there are: the last step does not reach the very end
    top, end = _RISE * (steps + 1) - 1, float(steps)
    first = highest / _FIRST_PART
    if step <= top:
        share = step / top if top else 1.0
        return Pace(_between(first, highest, share), _between(*_MOMENTUM, share))
    share = (step - top) / (end - top)
    return Pace(_between(highest, first / _LAST_PART, share), _between(*_MOMENTUM[::-1], share))


def _between(start: float, end: float, share: float) -> float:
    """From start to end along half a cosine."""
    return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
