"""One run in several processes (DDP). torchrun starts one process per GPU and numbers them.

    with World(device="auto") as world:
        model = world.wrap(model)      # averages the gradients over all processes
        loss = world.mean(loss)

Without torchrun there is one process, and the methods do not communicate.
"""

import os
import traceback
from contextlib import contextmanager

import torch
import torch.distributed as dist

# DDP imports this module. Default arguments in it keep a reference to the process group that exists
# at that time, and the threads of that group would run until the process exits and could abort the
# exit. So we import it here, before a process group exists.
import torch.distributed.nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from internals.devices import find_device
from internals.errors import UserError, reason

START = "(torchrun sets it: start the run with torchrun, or unset RANK for a single process)"


class World:
    """The processes of a run.

    rank: the number of this process, starting at 0. size: the number of processes (world size).
    device: the torch.device of this process. is_master: whether this is rank 0, which prints and
    writes files.
    """

    def __init__(self, device="auto", backend="auto", deterministic=False):
        """device, backend, deterministic: as in TrainConfig. Raises UserError if the device is not
        available."""
        self.is_distributed = bool(os.environ.get("RANK"))
        self.rank, self.size = 0, 1
        if self.is_distributed:
            self.rank, self.size, local_rank = numbers_of_process()
            if device in ("auto", "cuda") and torch.cuda.is_available():
                device = f"cuda:{local_rank}"  # one GPU per process
        self.is_master = self.rank == 0
        self.device = find_device(device)
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
            torch.set_float32_matmul_precision("high")  # TF32 for products not in bfloat16
            # torch.use_deterministic_algorithms requires this
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(deterministic)
        if self.is_distributed:
            connect(backend, self.device)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if dist.is_initialized():
            # DDP must be gone before the processes disconnect, or a process can hang at its end.
            # After an exception, such as Stopped, the frames of its traceback still have it
            traceback.clear_frames(trace)
            dist.destroy_process_group()

    def per_process(self, total, name):
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

    def progress(self, rounds, text):
        """An iterator over range(rounds). The master shows a bar if it takes more than 3 s and
        stderr is a terminal."""
        hidden = None if self.is_master else True  # None: hidden unless stderr is a terminal
        return tqdm(range(rounds), text, delay=3, leave=False, disable=hidden)

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


def numbers_of_process():
    """(rank, world size, local rank) from the environment. Raises UserError unless all variables
    are set that torchrun sets. (Without RANK there is one process, whatever WORLD_SIZE is: scripts
    for Slurm export it too.)"""
    numbers = []
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        value = os.environ.get(name, "")
        if not (value.isascii() and value.isdecimal()):
            raise UserError(f"RANK is set in the environment, but {name}={value!r} is not a number "
                            f"{START}")
        numbers.append(int(value))
    rank, size, local_rank, _ = numbers
    if rank >= size:
        raise UserError(f"RANK={rank} must be below WORLD_SIZE={size} {START}")
    if not os.environ.get("MASTER_ADDR"):
        raise UserError(f"RANK is set in the environment, but MASTER_ADDR is not {START}")
    return rank, size, local_rank


def connect(backend, device):
    """Connect the processes. Raises UserError if that fails."""
    if backend == "nccl" and device.type != "cuda":
        raise UserError(f"backend=nccl is for GPUs, but the device is {device}: use --backend=auto")
    if device.type == "cuda" and backend in ("auto", "nccl"):
        # `any` and `must_agree` use CPU tensors (gloo), so they do not wait for the GPU
        backend = "cpu:gloo,cuda:nccl"
    elif backend == "auto":
        backend = "gloo"
    try:
        dist.init_process_group(backend)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes of the run cannot be connected with backend={backend} "
                        f"({reason(error)})") from None
