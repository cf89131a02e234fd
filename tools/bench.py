"""Measure training and sampling, and what train.py's loop costs beside the bare one.

    python tools/bench.py train config/train_gpt2.py       a step, beside transformers' GPT-2
    python tools/bench.py sample --size=gpt2               decoding, beside transformers' and others
    python tools/bench.py loop config/quickstart.py        train.py's loop beside the bare one

All sides take turns in one process; printed are the median of each, and the ratio round by round,
for on a machine that others use only ratios of neighbours mean something. Weights are random: none
of this depends on what they are. `sample --nanogpt=FOLDER` measures nanoGPT's model.py there too.
"""

import contextlib
import copy
import io
import resource
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from configurator import UserError, build, configure, one_line_errors
from internals import devices, files
from internals.dataset import load_bins
from internals.devices import autocast_to, find_device, find_dtype
from internals.optimizers import make_optimizers
from model import GPT, GPTConfig, KVCache
from sample import Packed, packed, quantized

ROUNDS, STEPS = 7, 100


@dataclass
class BenchConfig:
    """The settings of `sample`, beside those of the model."""

    size: Literal[*train.SIZES] = "gpt2"  # n_layer, n_head and n_embd by a name
    batch: int = 10  # samples in one batch, beside a single one
    prompt: int = 16  # tokens of the prompt
    new_tokens: int = 256  # tokens that are drawn
    rounds: int = 3  # turns of each side
    device: str = "auto"  # as in sample.py
    dtypes: str = "float32,bfloat16"  # of the weights; int8 is one more
    nanogpt: str | None = None  # a folder with nanoGPT's model.py
    compile: bool = False  # a static cache, compiled


def synchronize(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function, device):
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def in_turns(sides, rounds, unit, count):
    """Run the functions in turn, each returning its seconds; print count / seconds of each as
    `unit`, and the ratio to the first, round by round. Returns the medians of the rates."""
    taken = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            taken[name].append(side())
    first = next(iter(taken.values()))
    for name, times in taken.items():
        ratios = [a / b for a, b in zip(times, first, strict=True)]
        print(f"  {name:42s} {count / statistics.median(times):10,.1f} {unit}   time to the first: "
              f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})",
              flush=True)
    return {name: count / statistics.median(times) for name, times in taken.items()}


def matmul_flops(dtype, device):
    """FLOP/s of a product of matrices of 2048: what this device can do."""
    a = torch.randn(2048, 2048, device=device, dtype=getattr(torch, dtype))
    best = min(seconds(lambda: a @ a, device) for _ in range(8))
    return 2 * 2048**3 / best


def read_bandwidth(device):
    """Bytes a second of a sum over 1 GB."""
    x = torch.ones(2**28, device=device)
    return x.numel() * 4 / min(seconds(x.sum, device) for _ in range(5))


def transformers_gpt2(c, vocab_size, dtype=torch.float32):
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        print("  (transformers is not installed, so not measured: pip install transformers)")
        return None
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
        n_head=c.n_head, resid_pdrop=c.dropout, embd_pdrop=c.dropout, attn_pdrop=c.dropout,
        bos_token_id=0, eos_token_id=0, pad_token_id=0)).to(dtype)


# --------------------------------------------------------------------------------------------------
# Training


def stepper(raw_model, loss_of, cfg, device, dtype, optimizers, vocab_size):
    """A function: one bare step, forward, backward, clip, step, on a batch that stays in memory."""
    autocast = autocast_to(dtype, device)
    compiles = cfg.compile is True or (cfg.compile == "auto" and device.type == "cuda")
    model = torch.compile(raw_model) if compiles else raw_model
    block_size = getattr(raw_model, "block_size", None) or raw_model.config.n_positions
    x, y = torch.randint(vocab_size, (2, cfg.batch_size, block_size), device=device)

    def step():
        for _ in range(cfg.gradient_accumulation_steps):
            with autocast:
                loss = loss_of(model, x, y) / cfg.gradient_accumulation_steps
            loss.backward()
        torch.nn.utils.clip_grad_norm_(raw_model.parameters(), cfg.grad_clip)
        for optimizer in optimizers:
            optimizer.step()
        raw_model.zero_grad(set_to_none=True)

    return step


def our_step(cfg, model_cfg, device, dtype):
    torch.manual_seed(cfg.seed)
    model = GPT(model_cfg).to(device)
    optimizers = make_optimizers(model, cfg, dtype)
    return model, stepper(model, lambda m, x, y: m(x, y)[1], cfg, device, dtype, optimizers,
                          model_cfg.vocab_size)


def settings_of(argv):
    """The settings, with the vocabulary of the dataset where it is there."""
    given, cfg, model_cfg = configure(__doc__, train.TrainConfig, GPTConfig, argv=argv,
                                      expand=train.sized)
    folder = Path(cfg.data_dir or files.DATA) / cfg.dataset
    if "vocab_size" not in given and (folder / "train.bin").exists():
        meta, _ = load_bins(folder)
        if meta["tokenizer"] != "gpt2":
            model_cfg = replace(model_cfg, vocab_size=meta["vocab_size"])
    device = find_device(cfg.device)
    return cfg, model_cfg, device, find_dtype(cfg.dtype, device, model_cfg.n_embd)


def bench_train(argv):
    cfg, model_cfg, device, dtype = settings_of(argv)
    model, step = our_step(cfg, model_cfg, device, dtype)
    tokens = cfg.batch_size * cfg.gradient_accumulation_steps * model_cfg.block_size
    many = max(1, min(20, int(5 / max(1e-3, seconds(step, device)))))
    print(f"{model.num_params() / 1e6:.2f}M parameters, {tokens:,} tokens a step, {dtype} on "
          f"{device}, torch {torch.__version__}, {torch.get_num_threads()} threads; {many} steps a "
          f"turn, {ROUNDS} turns")
    memory = (torch.cuda.max_memory_allocated(device) if device.type == "cuda"
              else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    sides = {"glassGPT": step}
    if theirs := transformers_gpt2(model_cfg, model_cfg.vocab_size):
        theirs.to(device).train()
        adamw = torch.optim.AdamW(theirs.parameters(), lr=1e-3, fused=True)
        sides["transformers' GPT-2"] = stepper(
            theirs, lambda m, x, y: m(x, labels=x).loss, cfg, device, dtype, [adamw],
            model_cfg.vocab_size)
    sides = {name: lambda side=side: seconds(lambda: [side() for _ in range(many)], device)
             for name, side in sides.items()}
    for side in sides.values():
        side()  # to be warm
    rates = in_turns(sides, ROUNDS, "tok/s", many * tokens)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = next((flops for name, flops in devices.PEAK_FLOPS.items() if name in gpu), None)
    source = f"{gpu}'s" if peak else "a 2048^3 product's, measured:"
    peak = peak or matmul_flops(dtype, device)
    print(f"  {tokens / rates['glassGPT'] * 1e3:.1f} ms a step; "
          f"MFU {model.flops_per_token() * rates['glassGPT'] / peak:.1%} of {source} "
          f"{peak / 1e12:.2f} TFLOP/s; peak memory {memory / 2**30:.2f} GB")


def whole_loop(argv):
    """Milliseconds a step of train.py, by its own log, from when it is warm."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        metrics = train.main([*argv, f"--out_dir={out}", f"--max_iters={STEPS + STEPS // 4}",
                              f"--log_interval={STEPS // 4}", "--eval_interval=1000000",
                              "--eval_iters=1", "--sample_tokens=0", "--lr_decay_iters=None",
                              "--warmup_iters=None"])
    steps = [m["ms"] for m in metrics if "ms" in m]
    return statistics.mean(steps[1:])


def bench_loop(argv):
    cfg, model_cfg, device, dtype = settings_of(argv)

    def bare_loop():
        _, step = our_step(cfg, model_cfg, device, dtype)
        for _ in range(STEPS // 4):
            step()
        return seconds(lambda: [step() for _ in range(STEPS)], device) / STEPS * 1e3

    rounds = []
    for number in range(ROUNDS):
        rounds.append((whole_loop(argv), bare_loop()))
        print(f"round {number + 1}: train.py {rounds[-1][0]:.2f} ms, bare {rounds[-1][1]:.2f} ms a "
              f"step, ratio {rounds[-1][0] / rounds[-1][1]:.3f}", flush=True)
    whole, bare = (statistics.median(side) for side in zip(*rounds, strict=True))
    ratio = statistics.median(a / b for a, b in rounds)
    print(f"median: train.py {whole:.2f} ms, bare {bare:.2f} ms a step, ratio {ratio:.3f}")


# --------------------------------------------------------------------------------------------------
# Sampling


def linear_layers(model, batch, device):
    """A function: the products of one token with all linear layers, and nothing else: the floor."""
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Linear, Packed))]
    dtype = model.transformer.wte.weight.dtype
    inputs = [torch.randn(batch, m.in_features, device=device, dtype=dtype) for m in layers]

    @torch.no_grad()
    def run():
        for layer, x in zip(layers, inputs, strict=True):
            layer(x)

    return run


@torch.no_grad()
def bench_sample(argv):
    given, cfg, _ = configure(__doc__, BenchConfig, GPTConfig, argv=argv)
    gpt2 = {"size": cfg.size, "vocab_size": 50257, "bias": True}
    model_cfg = build(GPTConfig, train.sized(gpt2 | given))
    device, n = find_device(cfg.device), cfg.new_tokens
    torch.manual_seed(0)
    model = GPT(model_cfg).to(device).eval()
    weights = sum(p.numel() for p in model.parameters()) - model.transformer.wpe.weight.numel()
    bandwidth = read_bandwidth(device)
    print(f"{weights / 1e6:.1f}M weights, {n} tokens behind {cfg.prompt}, on {device}, torch "
          f"{torch.__version__}, {torch.get_num_threads()} threads, {bandwidth / 1e9:.1f} GB/s")
    one, many = (torch.randint(model_cfg.vocab_size, (b, cfg.prompt), device=device)
                 for b in (1, cfg.batch))

    def ours(name, idx, cache=True, count=n):
        def run():
            kv = cache and KVCache(len(idx), model_cfg.block_size, static=cfg.compile)
            models[name].generate(idx, count, temperature=0, cache=kv)

        return lambda: seconds(run, device)

    plain, models = {}, {}  # by the names of their dtypes; plain: with torch's linear layers
    for name in cfg.dtypes.split(","):
        if name == "int8":
            models[name] = quantized(model, device)
            continue
        plain[name] = copy.deepcopy(model).to(getattr(torch, name))
        models[name] = plain[name] if cfg.compile else packed(copy.deepcopy(plain[name]))
    if cfg.compile:
        for each in models.values():
            each.compile(mode="reduce-overhead" if device.type == "cuda" else "default")
    theirs = {name: transformers_gpt2(model_cfg, model_cfg.vocab_size, getattr(torch, name))
              for name in plain}

    def generate(them, idx):
        return lambda: seconds(lambda: them.generate(
            idx, attention_mask=torch.ones_like(idx), max_new_tokens=n, min_new_tokens=n,
            do_sample=False), device)

    sides = {f"glassGPT {name}": ours(name, one) for name in reversed(models)}
    for name, them in theirs.items():
        if them is not None:
            sides[f"transformers {name}"] = generate(them.to(device).eval(), one)
    if cfg.nanogpt:
        sys.modules.pop("model")
        sys.path.insert(0, cfg.nanogpt)
        import model as nano
        names = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd", "bias")
        config = nano.GPTConfig(**{name: getattr(model_cfg, name) for name in names})
        nano_model = nano.GPT(config).to(device).eval()
        sides["nanoGPT float32"] = lambda: seconds(
            lambda: nano_model.generate(one, n, top_k=1), device)
    for side in sides.values():
        side()  # to be warm
    print("one sample")
    rates = in_turns(sides, cfg.rounds, "tok/s", n)
    for name in plain:
        floors = []
        for each in (plain[name], models[name]):
            floor = linear_layers(each, 1, device)
            floor()
            floors.append(statistics.median(1 / seconds(floor, device) for _ in range(20)))
        rate = rates[f"glassGPT {name}"]
        read = weights * getattr(torch, name).itemsize * rate
        print(f"  {name}: {rate / floors[0]:.0%} of the {floors[0]:.1f} tok/s of torch's linear "
              f"layers alone, {rate / floors[1]:.0%} of the {floors[1]:.1f} of ours; reads "
              f"{read / 1e9:.1f} GB/s, {read / bandwidth:.0%} of the memory's")
    print(f"{cfg.batch} samples in one batch")
    sides = {f"glassGPT {name}, batch of {cfg.batch}": ours(name, many)
             for name in reversed(models)}
    for name, them in theirs.items():
        if them is not None:
            sides[f"transformers {name}, batch of {cfg.batch}"] = generate(them, many)
    together = in_turns(sides, cfg.rounds, "tok/s", n * cfg.batch)
    for name in models:
        gain = together[f"glassGPT {name}, batch of {cfg.batch}"] / rates[f"glassGPT {name}"]
        print(f"  {name}: {gain:.1f} x the tok/s of one sample")
    print("without the cache, and the prompt alone")
    few = min(32, n)
    for name in models:
        uncached = ours(name, one, cache=False, count=few)()
        prompt = torch.randint(model_cfg.vocab_size, (1, min(512, model_cfg.block_size)),
                               device=device)
        prefill = min(ours(name, prompt, count=1)() for _ in range(3))
        print(f"  {name}: {few / uncached:.1f} tok/s without a cache (the first {few}); prefill "
              f"{prompt.shape[1] / prefill:,.0f} tok/s")
    size = 2 * model_cfg.n_layer * cfg.batch * model_cfg.block_size * model_cfg.n_embd
    cache = KVCache(cfg.batch, model_cfg.block_size)
    model.extend(many, cache)
    held = sum(kv.numel() for kv in cache.layers.values())
    print(f"cache of {cfg.batch}: {held:,} numbers, by the formula {size:,}: "
          f"{size * 4 / 2**20:.0f} MB in float32")


if __name__ == "__main__":
    with one_line_errors():
        kinds = {"train": bench_train, "sample": bench_sample, "loop": bench_loop}
        if (kind := sys.argv[1] if len(sys.argv) > 1 else "") not in kinds:
            raise UserError(f"say what to measure, one of {', '.join(kinds)}, as in "
                            "python tools/bench.py loop config/quickstart.py")
        kinds[kind](sys.argv[2:])
