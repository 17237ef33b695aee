"""The plain execution path: arrays become tensors on a device, are computed at once, and come back.

It works on every device. Also here: what every path shares, which is padding and the names of a device's failures.
Knows neither the network nor HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.lines import Columns
from app.running import DeviceLost

Compute = Callable[..., tuple[Tensor, ...]]
Execute = Callable[[Columns, int], Columns]


class Eager:
    """Computes layer after layer, in whatever threads it is called from.

    Attributes:
        name: what ``GET /model`` calls this path.
        slots: 1; batches that have buffers of their own, for paths that have any.
    """

    name = "torch"
    slots = 1

    def __init__(self, device: torch.device) -> None:
        """Compute on ``device``."""
        self._device = device

    def executor(self, compute: Compute) -> Execute:
        """Return ``compute`` as a function of columns of n arrays, and of the batch size to which they are padded."""

        def execute(columns: Columns, size: int) -> Columns:
            rows = len(columns[0])
            with torch.inference_mode(), device_errors(self._device):
                tensors = [torch.from_numpy(padded(column, size)).to(self._device) for column in columns]
                return tuple(result[:rows].cpu().numpy() for result in compute(*tensors))

        return execute


def padded(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """Return ``rows`` repeated at the end up to ``size`` rows: real values, so padding costs no surprises."""
    if len(rows) == size:
        return np.require(rows, requirements=["C", "W"])  # torch warns of arrays that cannot be written to
    whole = np.empty((size, *rows.shape[1:]), rows.dtype)
    fill(whole, rows)
    return whole


def fill(whole: NDArray[Any], rows: NDArray[Any]) -> None:
    """Write ``rows`` to the beginning of ``whole``, and the last of them to the rest."""
    whole[: len(rows)] = rows
    whole[len(rows) :] = rows[-1]


@contextmanager
def device_errors(device: torch.device) -> Iterator[None]:
    """Translate the device's failures: out of memory to ``MemoryError``, a lost device to ``DeviceLost``.

    Libraries of a GPU report a lost device as an error of their own, so the GPU itself is asked after any.
    """
    try:
        yield
        return
    except torch.OutOfMemoryError:
        pass  # leave the except block first: the traceback holds the tensors
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error).splitlines()[0]) from error
    except RuntimeError:
        if device.type == "cuda":
            _check_cuda(device)
        raise
    torch.cuda.empty_cache()
    raise MemoryError("the device is out of memory")


def _check_cuda(device: torch.device) -> None:
    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        raise DeviceLost(str(error).splitlines()[0]) from error
