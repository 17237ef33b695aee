"""The execution path on CUDA: every operation recorded once for every batch size, then replayed.

A replay costs one launch instead of a hundred. Graphs read and write fixed addresses, so a batch on its way needs a
slot: a stream with pinned arrays, device buffers and graphs of its own. With two slots, two threads overlap: one
copies rows in and out while the other's batch is computed. Memory is taken when a graph is recorded, never later.
"""

from __future__ import annotations

from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor

from app.eager import Compute, Eager, Execute, device_errors, fill
from app.lines import Columns


class CudaGraphs:
    """Records and replays; batches above the largest size are computed layer after layer.

    Attributes:
        name: what ``GET /model`` calls this path.
        slots: batches that can be on their way at the same time.
    """

    name = "cuda-graphs"

    def __init__(self, device: torch.device, largest: int, slots: int = 1) -> None:
        """Replay batches of up to ``largest`` rows on ``device``; float32 stays float32 from here on.

        (By default cuDNN rounds the inputs of a float32 convolution to 10 bits, TF32.)
        """
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
        self.slots = slots
        self._device, self._largest = device, largest
        self._eager = Eager(device)
        self._free: SimpleQueue[_Slot] = SimpleQueue()  # first in, first out: `slots` calls visit every slot
        for _ in range(slots):
            self._free.put(_Slot(device))

    def executor(self, compute: Compute) -> Execute:
        """Return ``compute`` as a function of columns of n arrays, and of the batch size to which they are padded.

        The first call with a size records it in one slot, so a warm-up calls each size once for every slot.
        """
        at_once = self._eager.executor(compute)
        places: dict[_Slot, _Place] = {}

        def execute(columns: Columns, size: int) -> Columns:
            if size > self._largest:
                return at_once(columns, size)
            slot = self._free.get()
            try:
                with torch.inference_mode(), device_errors(self._device), torch.cuda.stream(slot.stream):
                    if slot not in places:
                        places[slot] = _Place(compute, slot, columns, self._largest)
                    return places[slot].run(columns, size)
            finally:
                self._free.put(slot)

        return execute


class _Slot:
    """A stream, and the memory that its graphs share, since they never run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.stream.wait_stream(torch.cuda.current_stream(device))  # on which the weights were copied
        self.pool = torch.cuda.graph_pool_handle()


class _Recording(NamedTuple):
    """A graph, what it writes on the device, and where that lands, in pinned memory."""

    graph: torch.cuda.CUDAGraph
    outputs: tuple[Tensor, ...]
    landings: tuple[Tensor, ...]


class _Place:
    """Where one operation runs in one slot: its input buffers and its recordings."""

    def __init__(self, compute: Compute, slot: _Slot, columns: Columns, largest: int) -> None:
        self._compute, self._slot = compute, slot
        like = [torch.from_numpy(column[:1]) for column in columns]
        self._staged = [_pinned((largest, *column.shape[1:]), column.dtype) for column in like]
        self._arrays: list[NDArray[Any]] = [staged.numpy() for staged in self._staged]
        self._inputs = [torch.empty_like(staged, device=slot.device) for staged in self._staged]
        self._recordings: dict[int, _Recording] = {}

    def run(self, columns: Columns, size: int) -> Columns:
        """Compute n rows as a batch of ``size``, on the slot's stream, which is the current one."""
        rows = len(columns[0])
        for array, column in zip(self._arrays, columns, strict=True):
            fill(array[:size], column)
        for tensor, staged in zip(self._inputs, self._staged, strict=True):
            tensor[:size].copy_(staged[:size], non_blocking=True)
        if size not in self._recordings:
            self._recordings[size] = self._record(size)
        graph, outputs, landings = self._recordings[size]
        graph.replay()
        for landing, output in zip(landings, outputs, strict=True):
            landing[:rows].copy_(output[:rows], non_blocking=True)
        self._slot.stream.synchronize()
        return tuple(landing[:rows].numpy().copy() for landing in landings)

    def _record(self, size: int) -> _Recording:
        """Record the operation on the values that are in its buffers.

        It is computed once before: libraries choose their algorithms and take their workspaces outside of a graph,
        and a size that does not fit into memory fails here, where it does no harm.
        """
        inputs = [tensor[:size] for tensor in self._inputs]
        self._compute(*inputs)
        graph = torch.cuda.CUDAGraph()
        mode = "thread_local"  # other threads, of the engine that is being replaced, go on with what they do
        with torch.cuda.graph(graph, self._slot.pool, self._slot.stream, capture_error_mode=mode):
            outputs = self._compute(*inputs)
        return _Recording(graph, outputs, tuple(_pinned(tuple(output.shape), output.dtype) for output in outputs))


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return an array that the device reads and writes by itself, while the processor does something else."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)
