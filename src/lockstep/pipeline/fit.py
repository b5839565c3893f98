"""Latency and bandwidth of a backend, from the times that `check` measured at many sizes.

The model is `comm.cost`'s, t = steps(P) * alpha + bytes(P) / beta.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from lockstep.measure.cost import bus_factor, steps

# torch's Gloo goes round a ring; MPI and NCCL choose by size, among trees for what is short.
RINGS = ("gloo",)
# No link is faster or slower than that: seconds of latency, bytes per second.
ALPHAS, BETAS = (1e-9, 1e2), (1e2, 1e14)


@dataclass(frozen=True)
class Fit:
    """What was found for one operation over one backend."""

    backend: str
    operation: str
    alpha: float
    """The latency of a step, in seconds."""
    beta: float
    """The bandwidth, in bytes per second."""
    deviation: float
    """The median over the sizes of |measured / fitted - 1|."""

    @property
    def bandwidth_shows(self) -> bool:
        """Whether the times grew with the size at all."""
        return self.beta < 0.5 * BETAS[1]

    def seconds(self, size: float, ranks: int) -> float:
        """Return the time of the operation at `size` bytes on so many ranks; none on one."""
        if ranks == 1:
            return 0.0
        count = steps(self.operation, ranks, self.backend in RINGS)
        return count * self.alpha + size * bus_factor(self.operation, ranks) / self.beta


def fit(
    backend: str, operation: str, ranks: int, sizes: Sequence[float], times: Sequence[float]
) -> Fit | None:
    """Fit alpha and beta to times (seconds) at sizes (bytes), or return None for fewer than 3.

    Least squares of the logarithm, so that 8 B count as much as 64 MB, with a loss that grows
    linearly (soft L1): where a backend changes its algorithm, a few sizes lie far off.
    """
    if len(set(sizes)) < 3:
        return None
    size, time = np.asarray(sizes, float), np.asarray(times, float)
    messages = steps(operation, ranks, backend in RINGS)
    moved = size * bus_factor(operation, ranks)

    def model(logarithms: np.ndarray) -> np.ndarray:
        alpha, beta = np.exp(logarithms)
        return messages * alpha + moved / beta

    bounds = np.log(np.transpose([ALPHAS, BETAS]))
    start = np.log([time[size.argmin()] / messages, moved.max() / time[size.argmax()]])
    found = least_squares(
        lambda logarithms: np.log(model(logarithms) / time),
        np.clip(start, *bounds),
        bounds=bounds,
        loss="soft_l1",
        f_scale=0.1,
    )
    alpha, beta = np.exp(found.x)
    deviation = np.median(np.abs(time / model(found.x) - 1))
    return Fit(backend, operation, float(alpha), float(beta), float(deviation))


def fit_all(table: pd.DataFrame, ranks: int) -> list[Fit]:
    """Fit every operation of every backend in a table of `check`'s, by its medians."""
    found = [
        fit(str(backend), str(operation), ranks, list(rows["bytes"]), list(rows["median_us"] / 1e6))
        for (operation, backend), rows in table.groupby(["operation", "backend"], sort=False)
        if rows["bytes"].max() > 0
    ]
    return [one for one in found if one is not None]
