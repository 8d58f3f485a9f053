"""When a full queue has room again, by how long the last requests took."""

from __future__ import annotations

from pressoir.serving.errors import QueueFullError

_SMOOTHING = 0.2  # weight of the last duration in the mean
_LEAST_RETRY_S = 0.05


class RetryEstimate:
    """The exponential moving average of a duration."""

    def __init__(self) -> None:
        self._mean_s = 0.0

    def add(self, seconds: float) -> None:
        """Include another duration."""
        self._mean_s += (seconds - self._mean_s) * (_SMOOTHING if self._mean_s else 1.0)

    def after_s(self, rounds: float) -> float:
        """Expected time of that many durations in a row, seconds."""
        return max(rounds * self._mean_s, _LEAST_RETRY_S)

    def refusal(self, waiting: int, rounds: float) -> QueueFullError:
        """The error of a request that finds `waiting` others, which need that many durations."""
        retry_s = self.after_s(rounds)
        return QueueFullError(
            f"{waiting} requests are already waiting; try again in {retry_s:.1f} s", retry_s
        )
