"""One run in several processes (DDP). torchrun starts one process per GPU and numbers them.

    with World(device="auto") as world:
        model = world.wrap(model)      # averages the gradients over all processes
        loss = world.mean(loss)

Without torchrun there is one process, and the methods do not communicate.
"""

import os
from contextlib import contextmanager

import torch
import torch.distributed as dist

# DDP imports this module. Default arguments in it keep a reference to the process group that exists
# at that time, and the threads of that group would run until the process exits and could abort the
# exit. So we import it here, before a process group exists.
import torch.distributed.nn
from torch.nn.parallel import DistributedDataParallel

from configurator import UserError
from internals.devices import find_device


class World:
    """The processes of a run.

    rank: the number of this process, starting at 0. size: the number of processes (world size).
    device: the torch.device of this process. is_master: whether this is rank 0, which prints and
    writes files.
    """

    def __init__(self, device="auto", backend="auto", deterministic=False):
        """device, backend, deterministic: as in TrainConfig. Raises UserError if the device is not
        available."""
        self.rank = int(os.environ.get("RANK", 0))
        self.size = int(os.environ.get("WORLD_SIZE", 1))
        self.is_master = self.rank == 0
        under_torchrun = "RANK" in os.environ
        if under_torchrun and device in ("auto", "cuda") and torch.cuda.is_available():
            device = f"cuda:{os.environ['LOCAL_RANK']}"  # one GPU per process
        self.device = find_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")  # TF32 for products not in bfloat16
            # torch.use_deterministic_algorithms requires this
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        self.is_distributed = under_torchrun
        if under_torchrun:
            if backend == "auto":
                # `any` and `must_agree` use CPU tensors (gloo), so they do not wait for the GPU
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
        """total / size. Raises UserError if `total` is not divisible by the number of processes.
        name: the setting, for the error message."""
        if total % self.size:
            raise UserError(f"{name}={total} is divided among {self.size} processes, so it must be "
                            f"a multiple of {self.size}")
        return total // self.size

    def wrap(self, model):
        """Wrap the model in DDP, which averages gradients over all processes during backward."""
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
        """Whether `flag` is true in any process. All processes get the same answer."""
        if not self.is_distributed:
            return bool(flag)
        found = torch.tensor(float(bool(flag)))
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return bool(found)

    def must_agree(self, number, message):
        """Raises UserError(message) in all processes if `number` differs between them."""
        if self.is_distributed:
            largest = torch.tensor([number, -number])
            dist.all_reduce(largest, op=dist.ReduceOp.MAX)
            if largest.sum():  # the largest number minus the smallest is not 0
                raise UserError(message)

    @contextmanager
    def master_first(self):
        """A context manager: its body runs in the master first, and then in the other processes."""
        if self.is_distributed and not self.is_master:
            dist.barrier()
        yield
        if self.is_distributed and self.is_master:
            dist.barrier()
