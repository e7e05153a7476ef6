"""Choose the device and the number of threads on which networks run."""

import os

from stunet.errors import UsageError


def choose_device(requested: str | None) -> str:
    """Return the device to use: the requested one, or "cuda" if there is one, else "cpu".

    Raises:
        UsageError: The requested device does not exist.
    """
    import torch

    if requested is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if requested not in available:
        raise UsageError(f"-device {requested!r} is not cuda, cpu or mps", "-device cpu")
    if not available[requested]:
        raise UsageError(f"-device {requested}: torch finds no such device here", "-device cpu")
    return requested


def physical_cores() -> int:
    """Return the number of physical cores of this machine, as torch counts them."""
    import torch

    return int(torch.cpu.get_capabilities().get("num_physical_cores") or os.cpu_count() or 1)


def set_threads(threads: int | None) -> None:
    """Set the number of threads, by default at most one per physical core.

    Some builds of torch start twice as many, which wait for each other.
    """
    import torch

    if threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads or min(physical_cores(), torch.get_num_threads()))
