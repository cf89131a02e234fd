"""The capabilities of this machine: device, dtype, torch.compile, memory, peak FLOP/s."""

import copy
import os
import re
import sys
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from internals import cpu
from internals.errors import UserError, reason, warn

# peak dense bfloat16 TFLOP/s from data sheets and white papers, for GeForce cards with float32
# accumulation; the first of these names is used that is in the device's name and is not followed by
# the ending of another card
PEAK_TFLOPS = {
    "A100": 312, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "H200": 989, "H20": 148,
    "B200": 2250, "L4": 121, "L40S": 362, "A10G": 70, "A10": 125,
    "RTX 3080": 59.5, "RTX 3090": 71, "RTX 4070": 58.3, "RTX 4080": 97.5, "RTX 4090": 165.2,
    "RTX 5070": 61.7, "RTX 5070 Ti": 87.9, "RTX 5080": 112.6, "RTX 5090": 209.5,
}
OTHER_CARD = r"(?! (Ti|SUPER|D|Laptop)\b)"  # after its name: a card with another peak


def find_device(name):
    """`name` as a torch.device, a GPU with its index; "auto" is a CUDA GPU, else Apple's GPU, else
    the CPU. Raises UserError if the device is not available."""
    if name == "auto":
        name = "cpu"
        if torch.backends.mps.is_available():
            name = "mps"
        if torch.cuda.is_available():
            name = "cuda"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("only cpu, cuda and mps are supported")
        if device.type == "cuda" and device.index is None:  # torch.cuda.set_device needs an index
            device = torch.device("cuda", torch.cuda.current_device())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device={name} cannot be used here: {reason(error)}; "
                        "--device=auto chooses an available device") from None
    return device


def trusted(device, model):
    """`device`; or the CPU, with a warning, if the device is Apple's GPU and does not compute the
    loss and the gradients of `model` that the CPU computes. Some versions of PyTorch have such
    bugs, for example in Linear layers as large as a vocabulary."""
    if device.type != "mps":
        return device
    expected = loss_and_gradient(model, torch.device("cpu"))
    if torch.allclose(loss_and_gradient(model, device), expected, rtol=1e-2, atol=1e-3,
                      equal_nan=True):
        return device
    warn(f"device={device} computes another loss or gradient than the CPU: training on the CPU")
    return torch.device("cpu")


def loss_and_gradient(model, device):
    """The loss of a model like `model` with random weights, on 16 tokens, and the norms of its
    gradients: a tensor on the CPU."""
    model = copy.deepcopy(model).cpu().eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():  # zero_init would hide most of the model
            p.normal_(0.0, 0.1, generator=generator)
    model = model.to(device)
    ids = torch.arange(17, device=device)[None] % model.config.vocab_size
    ids = ids[:, :model.block_size + 1]
    _, loss = model(ids[:, :-1], ids[:, 1:])
    loss.backward()
    norms = [p.grad.norm() for p in model.parameters()]
    return torch.stack([loss.detach(), *norms]).cpu()


def find_dtype(name, device, n_embd):
    """The dtype of matrix products: `name` or, for "auto", the fastest one that does not make the
    loss worse. Raises UserError if the device does not support it."""
    bf16_gpu = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bfloat16" and device.type == "cuda" and not bf16_gpu:
        raise UserError("dtype=bfloat16 is not supported by this GPU; use float16")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bfloat16" if bf16_gpu else "float16"
    return "bfloat16" if device.type == "cpu" and cpu.bfloat16_pays(n_embd) else "float32"


def autocast_to(dtype, device):
    """A context manager: in its body, matrix products are computed in `dtype`. Weights stay
    float32."""
    if dtype == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


class WithoutLogits(nn.Module):
    """A GPT that returns (None, loss). If the compiled graph returned the logits too, its backward
    pass would allocate and add a gradient of zeros for them, B x T x V numbers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, idx, targets):
        return None, self.model(idx, targets)[1]


# FLOPs of a run for which torch.compile pays on a GPU: on an H200, it takes about 20 s and makes a
# step of config/quickstart.py (1.2e12 FLOPs) 9 ms faster
PAYS = 2e15


def wants_compile(model, device, cfg, steps):
    """Whether a run of so many steps should use torch.compile."""
    if cfg.eval_only:  # evaluation does not use the compiled model
        return False
    if cfg.compile != "auto":
        return bool(cfg.compile)
    if device.type != "cuda":
        return False
    tokens = steps * cfg.gradient_accumulation_steps * cfg.batch_size * model.block_size
    return tokens * flops_per_token(model) >= PAYS


def compiled(model, cfg, dtype, steps):
    """The model, compiled for training: it returns (None, loss). To find out whether compilation
    works, a forward and a backward pass are run. If they fail, for example because there is no
    compiler or the GPU is too old, prints a warning and returns `model` itself.

    cfg: a TrainConfig. dtype: of matrix products. steps: of this run, for compile="auto".
    """
    device = model.transformer.wte.weight.device
    if not wants_compile(model, device, cfg, steps):
        return model
    # with the shape and the strides of the batches in train.py, or it would be compiled again
    ids = torch.zeros(cfg.batch_size, model.block_size + 1, dtype=torch.int64, device=device)
    try:
        faster = torch.compile(WithoutLogits(model))
        with autocast_to(dtype, device):
            loss = faster(ids[:, :-1], ids[:, 1:])[1]
        loss.backward()
        return faster
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # torch.compile raises many kinds
        warn("torch.compile failed; training continues without it "
             f"({type(error).__name__}: {reason(error):.100})")
        return model
    finally:
        model.zero_grad()


def for_sampling(model, dtype, compile):
    """Prepare a model in eval mode for fast sampling on its device; returns it.

    dtype: of the weights: "float32", "bfloat16", "float16", "int8", or "auto" for the fastest.
    compile: whether to use torch.compile. Raises UserError if the device does not support the
    dtype.
    """
    device, n_embd = model.transformer.wte.weight.device, model.config.n_embd
    if dtype == "auto" and device.type == "cpu" and n_embd < cpu.WIDE:
        dtype = "float32"
    if dtype == "int8":
        if compile:
            raise UserError("dtype=int8 cannot be combined with compile=True; use bfloat16")
        return cpu.quantized(model)
    model.to(getattr(torch, find_dtype(dtype, device, n_embd)))
    cpu.speed_up(model, inference=not compile)  # torch.compile cannot handle packed layers
    if compile:
        # what Module.compile sets: calls of the model are compiled, model.forward stays as it is
        model._compiled_call_impl = CompiledOrPlain(model.forward)
    return model


class CompiledOrPlain:
    """A function that is compiled at its first call. If that fails, prints a warning, and calls the
    plain function from then on."""

    def __init__(self, function):
        self.function = function
        self.compiled = torch.compile(function)

    def __call__(self, *args, **kwargs):
        if self.compiled is not None:
            try:
                return self.compiled(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # torch.compile raises many kinds
                warn("torch.compile failed; sampling continues without it "
                     f"({type(error).__name__}: {reason(error):.100})")
                self.compiled = None
        return self.function(*args, **kwargs)


class CopyToCPU:
    """Copies of tensors on the CPU. They are complete after `wait`, which returns them."""

    def __init__(self, tensors):
        self.copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        self.event = None
        if tensors[0].is_cuda:
            self.event = torch.cuda.Event()
            self.event.record()

    def wait(self):
        if self.event is not None:
            self.event.synchronize()
        return self.copies


def read_late(results):
    """Copies tuples of tensors to the CPU. Each is yielded only after the next one was requested,
    so that a GPU computes the next token while the CPU prints this one. If the caller stops early,
    the last result was computed in vain."""
    waiting = None
    for tensors in results:
        copy_of_this = CopyToCPU(tensors)
        if waiting is not None:
            yield waiting.wait()
        waiting = copy_of_this
    if waiting is not None:
        yield waiting.wait()


def peak_flops(device, dtype):
    """The peak FLOP/s of the device in `dtype` according to its data sheet; None if unknown."""
    if device.type == "cuda" and dtype != "float32":
        name = torch.cuda.get_device_name(device)
        for known, tflops in PEAK_TFLOPS.items():
            if re.search(rf"\b{known}\b{OTHER_CARD}", name):
                return tflops * 1e12
    return None


def num_params(model):
    """The number of parameters without the position embeddings, as nanoGPT counts them."""
    total = sum(p.numel() for p in model.parameters())
    if model.config.pos == "learned":
        total -= model.transformer.wpe.weight.numel()
    return total


def flops_per_token(model):
    """FLOPs per token, forward and backward: 6 N + 12 L C T (Chowdhery et al. 2022, PaLM, appendix
    B). N is the number of parameters in matrix products; the token embedding counts only if it is
    tied to the LM head."""
    c, n = model.config, num_params(model)
    if not c.tied:
        n -= model.transformer.wte.weight.numel()
    return 6 * n + 12 * c.n_layer * c.n_embd * c.block_size


def mfu(model, tokens_per_second, peak, n_devices=1):
    """Model FLOPs utilization (Chowdhery et al. 2022, PaLM): the FLOP/s that training needs at this
    throughput, divided by the total peak of n_devices with `peak` FLOP/s each."""
    return flops_per_token(model) * tokens_per_second / (peak * n_devices)


def memory_bytes(device):
    """The memory of the device in bytes; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def peak_memory(device):
    """The largest number of bytes that this process has used on the device so far; None if it is
    not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "cpu" and sys.platform == "linux":
        import resource
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return None


def check_model_fits(c, device, training=True):
    """Raises UserError if a model of GPTConfig c cannot fit into the memory of the device.

    Training stores at least three float32 numbers per parameter: weight, gradient, and momentum.
    """
    block = 12 * c.n_embd**2  # attention has 4 C^2 weights, the MLP 8 C^2
    parameters = c.n_layer * block + c.n_embd * c.vocab_size * (1 if c.tied else 2)
    if c.pos == "learned":
        parameters += c.block_size * c.n_embd
    needed, available = parameters * (12 if training else 4), memory_bytes(device)
    if available is not None and needed > available:
        raise UserError(f"a model of {parameters / 1e9:,.1f}B parameters needs at least "
                        f"{needed / 1e9:,.0f} GB, but {device} has {available / 1e9:,.0f} GB: use "
                        "a smaller n_layer, n_embd or block_size")


def attention_without_plans():
    """A context manager for attention over sequences of many different lengths: without cuDNN's
    attention, which needs 45 ms to plan for each new length. torch prefers it on Hopper GPUs."""
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
                        SDPBackend.MATH])


def attention_over_static_cache():
    """A context manager for attention of one token over a cache of fixed size. cuDNN's attention
    takes a fifth of the time of the others (docs/benchmarks.md), and plans only once."""
    return sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION,
                        SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH], set_priority=True)


@contextmanager
def allow_nondeterministic():
    """A context manager: in its body, --deterministic=True is off. Sampling uses cumsum, which has
    no deterministic algorithm on CUDA, and does not affect training."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic)


def check_cache_fits(model, batch_size):
    """Raises UserError if the keys and values of so many samples cannot fit into the memory of the
    device of the model."""
    c = model.config
    weight = model.transformer.wte.weight
    device = weight.device
    dtype = cpu.cache_dtype(model) or weight.dtype
    needed = 2 * c.n_layer * batch_size * c.block_size * c.n_embd * dtype.itemsize
    available = memory_bytes(device)
    if available is not None and needed > available:
        raise UserError(f"num_samples={batch_size} needs at least {needed / 1e9:,.0f} GB for keys "
                        f"and values, but {device} has {available / 1e9:,.0f} GB: use fewer")


def training_memory_hint(cfg):
    """out_of_memory_hint for a training run with the settings of TrainConfig."""
    hint = "use a smaller model or block_size"
    if cfg.batch_size > 1:
        hint = ("a smaller batch_size with more gradient_accumulation_steps needs less memory for "
                "the same number of tokens per step")
    return out_of_memory_hint(f"batch_size={cfg.batch_size}", hint)


@contextmanager
def out_of_memory_hint(setting, hint):
    """A context manager: an out-of-memory error in its body becomes a UserError, which names a
    setting with its value, and what needs less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not known and "allocate memory" not in str(error):  # in the CPU allocator's message
            raise
        raise UserError(f"out of memory with {setting}: {hint}") from None
