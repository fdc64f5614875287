"""How often a fragment is tried, and the pause after each failure. Decisions only."""

from dataclasses import dataclass, replace

# Storage that restarts is back within a minute or two; longer, and the run stops with an error
# (and continues from there when it is started again).
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
# After so many losses of its loading tasks a fragment may hold an image that is their end.
_LOSSES = 2


@dataclass(frozen=True)
class Failures:
    """What has befallen a fragment so far: failures in all, and those that lost a loading task."""

    count: int = 0
    losses: int = 0

    def and_another(self, *, loss: bool) -> "Failures":
        """One more failure; `loss`: a loading task was lost, nothing refused its work."""
        return replace(self, count=self.count + 1, losses=self.losses + loss)

    @property
    def pause_s(self) -> float | None:
        """Seconds until the next try; None: it is given up."""
        return PAUSES_S[self.count - 1] if self.count <= len(PAUSES_S) else None

    @property
    def apart(self) -> bool:
        """Whether each image must be decoded in a process of its own next time."""
        return self.losses >= _LOSSES
