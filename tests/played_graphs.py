"""CUDA graphs on a CPU: torch.cuda's functions, played for internals/graphs.py.

As on a GPU, nothing is computed while a function is recorded (here: what was computed is undone),
a replay reads and writes the memory of the recording, and reading a number on the CPU is an error.
"""

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from internals import graphs


def tensors_in(values):
    return [value for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def written_by(func, args, kwargs):
    """The tensors that an operation changes in place."""
    found = []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_in(args[i] if i < len(args) else kwargs.get(argument.name))
    return found


class Graph(TorchDispatchMode):
    """Operations that are recorded, and repeated by `replay`."""

    def __init__(self):
        super().__init__()
        self.operations = []
        self.replays = 0

    def __enter__(self):
        self.before = []  # the tensors that were changed, and their values
        self.random_state = torch.get_rng_state()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        with torch.no_grad():
            for tensor, value in reversed(self.before):
                tensor.copy_(value)
        torch.set_rng_state(self.random_state)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        for tensor in written_by(func, args, kwargs):
            self.before.append((tensor, tensor.clone()))
        outputs = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, tensors_in(outputs)))
        return outputs

    @torch.no_grad()
    def replay(self):
        self.replays += 1
        for func, args, kwargs, outputs in self.operations:
            inputs = [t.untyped_storage().data_ptr() for t in tensors_in((args, kwargs))]
            for old, new in zip(outputs, tensors_in(func(*args, **kwargs)), strict=True):
                if old.untyped_storage().data_ptr() not in inputs:  # neither a view nor in place
                    old.copy_(new)


class Stream:
    def wait_stream(self, other):
        pass


def play(monkeypatch):
    """Let graphs.recorded record functions on the CPU; returns the list of all Recorded."""
    found = []

    class Played(graphs.Recorded):
        def __init__(self, function):
            super().__init__(function)
            found.append(self)

    class Generator:
        """The CPU has one that needs no repair."""
        def clone_state(self):
            return None

        def graphsafe_set_state(self, state):
            pass

    def record(graph, stream):
        return graph

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "default_generators", [Generator()])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(graphs, "can_record", lambda device: True)
    monkeypatch.setattr(graphs, "Recorded", Played)
    return found
