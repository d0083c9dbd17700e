"""What a node has to have before a run starts on it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """seconds: all probes together. run_gb, tmp_gb: free where the run folder is, and where temporary files go. skew: seconds
    between clocks. link: bandwidth, as a part of the median of its kind.
    """

    seconds: float = 120.0
    run_gb: float = 10.0
    tmp_gb: float = 1.0
    skew: float = 2.0
    link: float = 0.4

    def options(self) -> list[str]:
        """The words of `launch/health.py` that say the same."""
        return [f"--{name.replace('_', '-')}={value:g}" for name, value in vars(self).items()]
