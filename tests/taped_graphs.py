"""CUDA graphs for a machine without CUDA: a recording tapes every operation and its replay runs the tape again.

As with the real ones, a replay reads and writes the very tensors that the recording saw, and nothing else.
"""

from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from app import graphs


class Tape(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.calls.append((function, args, kwargs or {}, result))
        return result

    def replay(self):
        for function, args, kwargs, result in self.calls:
            result.copy_(function(*args, **kwargs))


class Stream:
    def __init__(self, device):
        pass

    def wait_stream(self, other):
        pass

    def synchronize(self):
        pass


@contextmanager
def recording(graph, pool, stream, capture_error_mode):
    assert capture_error_mode == "thread_local"
    with graph:
        yield


def tape_graphs(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Replace what ``app.graphs`` uses of CUDA; return the list of tapes, which grows with each recording."""
    tapes = []

    def graph():
        tapes.append(Tape())
        return tapes[-1]

    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: None)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(graphs, "_pinned", lambda shape, dtype: torch.empty(shape, dtype=dtype))
    return tapes
