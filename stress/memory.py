"""Memory of this process: a limit, and the most it has held. Linux alone knows both."""

import os
import sys
from contextlib import suppress
from pathlib import Path

PROCESS = Path("/proc/self")


def limit_memory(size: float) -> None:
    """From here on a call for more than `size` bytes beyond what is held fails with a MemoryError."""
    if sys.platform == "linux":
        import resource  # not on Windows

        held = int((PROCESS / "statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (int(held + size), resource.RLIM_INFINITY))


def forget_peak() -> None:
    with suppress(OSError):
        (PROCESS / "clear_refs").write_text("5")


def peak_megabytes() -> float:
    """The most since the start, or since `forget_peak`; 0 where the system does not say."""
    with suppress(OSError):
        for line in (PROCESS / "status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
