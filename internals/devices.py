"""What "auto" becomes on this machine: device, dtype, compilation."""

import sys
from contextlib import nullcontext

import torch

from configurator import UserError, reason

PEAK_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12}  # dense bfloat16


def compiled(model, try_out):
    """The model compiled, if it passes try_out(model), which is when it is compiled; or as it is:
    a compiler is missing, a GPU too old, torch has many reasons."""
    try:
        faster = torch.compile(model)
        try_out(faster)
        return faster
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        print(f"warning: torch.compile failed, training goes on without it "
              f"({type(error).__name__}: {reason(error):.100})", file=sys.stderr)
        return model


def find_device(name):
    """`name` as a torch.device; "auto" is a CUDA GPU, else Apple's, else the CPU. Raises UserError
    where the device is not there."""
    if name == "auto":
        mps = torch.backends.mps.is_available()
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("it is none of cpu, cuda, mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: {reason(error)}; "
                        "device=auto takes what there is") from None
    return device


def find_dtype(name, device, n_embd):
    """The type of matrix products: `name`, or for "auto" the fastest that trains as well. Raises
    UserError where the device cannot do it."""
    bf16_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and device.type == "cuda" and not bf16_gpu:
        raise UserError("dtype=bfloat16 is not possible on this GPU: float16 is")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if bf16_gpu else "float16"
    instructions = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch
    # narrow models lose more by the conversions than they gain: see docs/benchmarks.md
    pays = device.type == "cpu" and instructions.get("avx512_bf16") and n_embd >= 128
    return "bfloat16" if pays else "float32"


def autocast_to(dtype, device):
    """A context in which matrix products are done in `dtype`; weights and their updates stay
    float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))
