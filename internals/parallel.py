"""Several processes as one run (DDP). torchrun starts one process per GPU and numbers them.

    with World(device="auto") as world:
        model = world.wrap(model)      # its gradients become the mean over all processes
        loss = world.mean(loss)

Without torchrun there is one process, and every method returns at once.
"""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

# DDP imports this module, and default arguments in it hold the process group that exists then: the
# threads of that group would live until the process exits, and could abort the exit. So it is
# imported here, before a process group exists.
import torch.distributed.nn
from torch.nn.parallel import DistributedDataParallel

from configurator import UserError
from internals.devices import find_device


class World:
    """The processes of a run.

    rank: the number of this process, from 0 on. size: how many processes there are.
    device: the torch.device of this process. is_master: rank 0, the one that prints and writes.
    """

    def __init__(self, device="auto", backend="auto", deterministic=False):
        """device, backend, deterministic: as in TrainConfig. Raises UserError for a device that is
        not available."""
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_master = self.rank == 0
        under_torchrun = "RANK" in os.environ
        if under_torchrun and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"  # a GPU for each process
        self.device = find_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")  # TF32 for products not in bfloat16
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic needs it
        torch.use_deterministic_algorithms(deterministic)
        self.is_distributed = under_torchrun
        if under_torchrun:
            if backend == "auto":
                # `any` and `must_agree` use CPU tensors, so that they do not wait for the GPU
                backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            elif backend == "nccl":
                backend = "cpu:gloo,cuda:nccl"
            dist.init_process_group(backend)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if dist.is_initialized():
            dist.destroy_process_group()

    def share(self, total, name):
        """The share of this process in `total`. Raises UserError if it is not a whole number."""
        if total % self.size:
            raise UserError(f"{name}={total} is divided among {self.size} processes, so it must be "
                            f"a multiple of {self.size}")
        return total // self.size

    def wrap(self, model):
        """`model`, such that a backward pass leaves the mean of all processes' gradients."""
        if not self.is_distributed:
            return model
        return DistributedDataParallel(model, [self.device] if self.device.type == "cuda" else None)

    def sum(self, tensor):
        """The sum of `tensor` over all processes, in place."""
        if self.is_distributed:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, tensor):
        """The mean of `tensor` over all processes."""
        return self.sum(tensor) / self.size

    def any(self, flag):
        """Whether `flag` is true in any process: the same answer in all of them."""
        if not self.is_distributed:
            return bool(flag)
        found = torch.tensor(float(bool(flag)))
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def must_agree(self, number, message):
        """Raises UserError(message) in all processes if `number` is not the same in all of them."""
        if self.is_distributed:
            largest = torch.tensor([number, -number])
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            if largest.sum():  # the largest is not the smallest
                raise UserError(message)

    @contextmanager
    def master_first(self):
        """The body runs in the master, and then in the others."""
        if self.is_distributed and not self.is_master:
            dist.barrier()
        yield
        if self.is_distributed and self.is_master:
            dist.barrier()
