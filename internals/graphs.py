"""CUDA graphs: the kernels of a function are recorded once, and replayed with one call.

Python takes about 5 us to start a kernel, and a training step has about a thousand of them. A small
model computes them faster than that, so the GPU waits for Python most of the time.
"""

import torch
from torch.utils._pytree import tree_map_only

from internals.errors import reason, warn

ORDINARY_CALLS = 3  # they make what must exist before the recording, such as gradients and moments


def can_record(device):
    return device.type == "cuda"


def recorded(function, device):
    """The function; on a CUDA GPU, as a Recorded, which computes the same."""
    if can_record(device):
        return Recorded(function)
    return function


class Recorded:
    """A function whose fourth call is recorded as a CUDA graph, and replayed from then on. Its
    results are the same.

    function: takes tensors; if their shapes change, it is recorded again. What it changes, such as
    gradients, must stay in the same memory. What it does on the CPU happens only in the first four
    calls. If it cannot be recorded, for example because it reads a number on the CPU, prints a
    warning, and calls the function from then on.
    """

    def __init__(self, function):
        self.function = function
        self.shapes = None
        self.graph = None
        self.can_record = True
        # a graph cannot be recorded on the default stream, and what autograd has begun on one
        # stream, it continues there
        self.stream = torch.cuda.Stream()

    def __call__(self, *inputs):
        shapes = [x.shape for x in inputs]
        if shapes != self.shapes:
            self.shapes = shapes
            self.graph = None
            self.ordinary_calls = ORDINARY_CALLS  # so many are left
        if self.ordinary_calls > 0 or not self.can_record:
            self.ordinary_calls -= 1
            return self.call(inputs)
        if self.graph is None:
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            random_state = generator.clone_state()
            try:
                self.record(inputs)
            except Exception as error:  # torch raises many kinds
                generator.graphsafe_set_state(random_state)  # else it waits for the graph's end
                warn("the work of the GPU cannot be recorded as a CUDA graph; it continues, slower "
                     f"({type(error).__name__}: {reason(error):.100})")
                self.can_record = False
                return self.call(inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)
        self.graph.replay()
        # copies, because the next replay writes to the same memory
        return tree_map_only(torch.Tensor, torch.clone, self.outputs)

    def call(self, inputs):
        """Call the function on the stream of the graph."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = self.function(*inputs)
        current.wait_stream(self.stream)
        return outputs

    def record(self, inputs):
        self.inputs = []
        for x in inputs:  # with the same strides, or torch.compile would compile again
            kept = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            self.inputs.append(kept.copy_(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.outputs = self.function(*self.inputs)
        self.graph = graph
