"""CUDA graphs: what a function lets a GPU do is recorded once, and then replayed with one call.

A GPU runs kernels, functions such as one matrix product or one softmax. Python takes about 5 us to
start a kernel, and a training step has about a thousand. In a small model, most kernels take less
time than that, so the GPU waits for Python.
"""

import torch
from torch.utils._pytree import tree_map_only

from internals.errors import reason, warn

# Calls before the recording. They make what must exist by then: gradients, the moments of AdamW,
# and what PyTorch prepares in the first call of a kernel. PyTorch's documentation has three, too
ORDINARY_CALLS = 3


def can_record(device):
    return device.type == "cuda"


def recorded(function, device):
    """Returns the function itself or, on a CUDA GPU, a Recorded, which computes the same."""
    if can_record(device):
        return Recorded(function)
    return function


class Recorded:
    """A function that is recorded as a CUDA graph in its fourth call, and replayed from then on. If
    the shapes of its arguments change, this begins again (tools/add.py has batches of several
    sizes).

    A replay runs the same kernels on the same memory, and no Python. So the function takes tensors,
    and what it changes, such as gradients, must stay where it is. A number that changes must be in
    a tensor, as the learning rate is. Random numbers are new ones in each replay: PyTorch hands the
    seed of torch.manual_seed to the graph.

    A function that copies a number from the GPU to the CPU, for example, cannot be recorded. Then
    there is a warning, and the function is called without a graph from then on.
    """

    def __init__(self, function):
        self.function = function
        self.shapes = None
        self.ordinary_calls = 0  # so many are left before the recording
        self.graph = None
        self.failed = False
        # A stream is a queue of kernels. PyTorch cannot record the default one. Autograd adds to a
        # gradient on the stream on which the parameter was used first. So all calls are on this one
        self.stream = torch.cuda.Stream()

    def __call__(self, *inputs):
        shapes = [x.shape for x in inputs]
        if shapes != self.shapes:
            self.shapes = shapes
            self.graph = None
            self.ordinary_calls = ORDINARY_CALLS
        if self.failed:
            return self.call(inputs)
        if self.ordinary_calls > 0:
            self.ordinary_calls -= 1
            return self.call(inputs)
        if self.graph is None:
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            random_state = generator.clone_state()
            try:
                self.record(inputs)  # runs no kernel: the replay below is the first
            except Exception as error:  # torch raises many kinds
                # after a failed recording, the generator still takes part in it, and the next
                # random number would be an error
                generator.graphsafe_set_state(random_state)
                warn("the work of the GPU cannot be recorded as a CUDA graph; it continues, slower "
                     f"({type(error).__name__}: {reason(error):.100})")
                self.failed = True
                return self.call(inputs)
        for kept, given in zip(self.inputs, inputs, strict=True):
            kept.copy_(given)  # the graph reads its inputs here
        self.graph.replay()
        # copies, because the next replay writes to the same memory
        return tree_map_only(torch.Tensor, torch.clone, self.outputs)

    def call(self, inputs):
        """Call the function on the stream of the graph. Streams do not wait for each other unless
        they are told to; the CPU does not wait at all."""
        current = torch.cuda.current_stream()
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            outputs = self.function(*inputs)
        current.wait_stream(self.stream)
        return outputs

    def record(self, inputs):
        """Record a call without running its kernels."""
        self.inputs = []
        for x in inputs:  # with the same strides, or torch.compile would compile again
            kept = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            self.inputs.append(kept.copy_(x))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            self.outputs = self.function(*self.inputs)
        self.graph = graph
