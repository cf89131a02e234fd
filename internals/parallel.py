"""Several processes as one run."""

import os

import torch
import torch.distributed as dist
import torch.distributed.nn  # first imported by DDP, it would keep the group's threads to the end

from internals.devices import find_device


def start_process(cfg):
    """(rank, number of processes, device) of this process: torchrun starts one per GPU, and tells
    each its number."""
    ddp = "RANK" in os.environ
    rank, local_rank, world = (int(os.environ.get(name, default)) for name, default in
                               (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))
    own_gpu = ddp and cfg.device in ("auto", "cuda") and torch.cuda.is_available()
    device = find_device(f"cuda:{local_rank}" if own_gpu else cfg.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.set_float32_matmul_precision("high")  # TF32 for what is not in bfloat16
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic needs it
    torch.use_deterministic_algorithms(cfg.deterministic)
    if ddp:
        best = "nccl" if device.type == "cuda" else "gloo"
        backend = best if cfg.backend == "auto" else cfg.backend
        # the stop flag is a CPU tensor, so that looking at it does not wait for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl" if backend == "nccl" else backend)
    return rank, world, device
