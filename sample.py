"""Sample text from a model: one that train.py has trained, or GPT-2.

    python sample.py --out_dir=out-quickstart
    python sample.py --out_dir=out-quickstart --start="ROMEO:" --num_samples=3 --temperature=0.5
    python sample.py --out_dir=out-quickstart --interactive=True
    python sample.py --init_from=gpt2 --start=FILE:prompt.txt --out=samples.jsonl

A checkpoint includes the tokenizer. best.pt is read if it exists, else ckpt.pt. All samples are one
batch; the first is printed while it is sampled. stdout gets the text alone, stderr everything else.
GPT.generate in model.py is sampling in its simplest form; this file adds a KV cache, top-p and
other filters, and streaming.
"""

if __name__ == "__main__":  # before torch is imported
    from internals.cores import share_cores
    share_cores()

import functools
import itertools
import sys
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, fields
from os.path import expanduser
from pathlib import Path
from typing import Literal

import torch

from configurator import build, check_limit, configure
from internals import cpu, graphs, starting
from internals.chat import chat_format
from internals.devices import (
    attention_over_static_cache,
    attention_without_plans,
    check_cache_fits,
    find_device,
    for_sampling,
    num_params,
    out_of_memory_hint,
    read_late,
)
from internals.errors import UserError, one_line_errors, warn
from internals.limits import Count, Fraction, NonNegative, Positive, PositiveFraction, Seed
from internals.streaming import SEPARATOR, Sample, read_prompt, show, write_samples
from internals.words import counted
from model import GPT, GPTConfig
from prepare import CharTokenizer, GPT2Tokenizer, tokenizer_from_meta

Tokenizer = CharTokenizer | GPT2Tokenizer
SAMPLER_SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass
class SampleConfig:
    """The settings of sampling. nanoGPT's settings keep their names."""

    # -- model
    init_from: str = "resume"  # resume: the checkpoint in out_dir; gpt2, ...; a folder or .pt file
    out_dir: str = "out"  # folder of a run, or a checkpoint in it
    # -- text
    # the prompt, FILE:prompt.txt, or - for stdin; None: a newline, if the tokenizer has it
    start: str | None = None
    num_samples: Count = 10  # number of samples
    max_new_tokens: Count = 500  # tokens per sample, unless the text ends earlier
    stop: str | None = None  # end a sample before this string
    interactive: bool = False  # continue each line that is typed, until Ctrl-D
    out: str | None = None  # a .jsonl file for prompts, texts, tokens and log-probabilities
    # -- sampling
    temperature: NonNegative = 0.8  # below 1: less random, 0: always the most likely token
    top_k: Count | None = 200  # sample from the k most likely tokens; None: from all
    top_p: PositiveFraction = 1.0  # nucleus: sample from the most likely tokens that sum to top_p
    min_p: Fraction = 0.0  # sample from tokens at least this likely relative to the most likely one
    repetition_penalty: Positive = 1.0  # above 1: tokens of the context become less likely
    seed: Seed = 1337  # sample i uses seed + i
    # -- system
    cache: bool = True  # keep keys and values of past tokens; False: recompute them, slower
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"  # of the weights
    compile: bool = False  # torch.compile: takes half a minute, so it pays only for many tokens

    def __post_init__(self):
        if self.stop == "":
            raise ValueError("stop must have a character, or be None")
        has_prompt_or_file = self.start is not None or self.out
        if self.interactive and (has_prompt_or_file or not self.cache):
            raise ValueError("interactive=True needs cache=True, and excludes start and out")
        if self.out and Path(self.out).is_dir():
            raise ValueError(f"out={self.out} is a folder: give the name of a file")


class KVCache:
    """The tokens in the context, and their keys and values, which are computed only once.

    ids: the tokens (batch_size, n), n <= block_size; it has one row while all samples share a
        prompt.
    length: the number of tokens whose keys and values are stored.
    layers: {number of the block: [keys, values]}, each (batch_size, nh, block_size, hs). A token
        takes 2 x n_layer x C numbers.
    For the T tokens that are computed now, `begin` sets:
    positions: (T,)
    before: (B, T), the id before each token.
    mask: (T, n), True where a token attends to a key.

    static: whether n is always block_size, and the mask hides the positions that are not used yet.
        Then no shape changes from token to token, as CUDA graphs and torch.compile need.
    """

    def __init__(self, batch_size, block_size, dtype=None, static=False, keep=True):
        """dtype: of the stored keys and values; None: as they are computed. keep=False: nothing is
        stored, and every token recomputes the whole window."""
        self.batch_size = batch_size
        self.block_size = block_size
        self.dtype = dtype
        self.static = static
        self.keep = keep
        self.ids = None
        self.length = 0
        self.layers = {}

    def append(self, ids, n_kept):
        """Add ids (B, T). If they do not fit, only the last n_kept tokens stay."""
        if self.ids is not None:
            rows = max(len(self.ids), len(ids))  # a shared prompt has one row, new tokens B
            before = self.ids.expand(rows, -1)
            ids = torch.cat((before, ids.expand(rows, -1)), dim=1)
        if ids.shape[1] > self.block_size:
            ids = ids[:, -n_kept:]
            self.length = 0  # the tokens get new positions, so keys and values are recomputed
        self.ids = ids

    def begin(self):
        """Prepare a forward pass of the tokens that are not stored yet; returns their ids (B, T).
        """
        n = self.ids.shape[1]
        device = self.ids.device
        self.positions = torch.arange(self.length, n, device=device)
        n_keys = self.block_size if self.static else n
        key_positions = torch.arange(n_keys, device=device)
        self.mask = self.positions[:, None] >= key_positions  # causal: no key after the query
        before = torch.nn.functional.pad(self.ids, (1, -1))  # a 0 in front, the last id cut
        # contiguous: torch.compile would compile again for the stride of a slice
        self.before = before[:, self.length:].clone(memory_format=torch.contiguous_format)
        return self.ids[:, self.length:].clone(memory_format=torch.contiguous_format)

    def store(self, layer, k, v):
        """Called by the model: store k and v (B, nh, T, hs) of the new tokens; returns those of all
        tokens (B, nh, n, hs). One row, a shared prompt, is stored for the whole batch."""
        if layer not in self.layers:
            self.layers[layer] = self.allocate(v)
        keys, values = self.layers[layer]
        keys[:, :, self.positions] = k.to(keys.dtype)
        values[:, :, self.positions] = v.to(values.dtype)
        rows = len(k)  # 1 while a shared prompt is computed
        n = self.mask.shape[1]
        keys = keys[:rows, :, :n]
        values = values[:rows, :, :n]
        return keys, values

    def allocate(self, v):
        """[keys, values] of a block, all zeros. They are two tensors: if they were one,
        torch.compile would copy all of it for every token."""
        size = (self.batch_size, v.shape[1], self.block_size, v.shape[3])
        keys = v.new_zeros(size, dtype=self.dtype or v.dtype)
        values = torch.zeros_like(keys)
        return [keys, values]

    def end(self):
        """The forward pass is done: the new tokens are stored. (After a Ctrl-C during the pass, the
        cache is as it was before, because only `length` says what is stored.)"""
        self.length = self.ids.shape[1]


def make_cache(model, batch_size, static=False, keep=True):
    """A KVCache for `batch_size` samples of a model. On a CPU it stores float32, because attention
    is faster so; on a CUDA GPU it is static."""
    static = static or graphs.can_record(model.transformer.wte.weight.device)
    return KVCache(batch_size, model.block_size, cpu.cache_dtype(model), static, keep)


class Sampler:
    """Chooses the next tokens of a batch: called with logits (B, V) and the ids (B, n) so far, it
    returns ids (B, 1). Sample i has its own random numbers, from seeds[i]; see `draw` and
    `penalize`. n_vocab: `stream` keeps only so many logits, because later ids pad the vocabulary.
    Raises ValueError for a value outside the limits in SampleConfig."""

    def __init__(self, seeds, n_vocab=None, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0,
                 repetition_penalty=1.0):
        self.seeds = seeds
        self.numbers = None  # made at the first call, on the device of the logits
        self.choose = None  # `draw` with these settings
        self.n_vocab = n_vocab
        self.temperature = temperature
        self.top_k = top_k
        self.top_p = top_p
        self.min_p = min_p
        self.repetition_penalty = repetition_penalty
        for field in fields(SampleConfig):  # it has the limits of these settings
            if field.name in SAMPLER_SETTINGS:
                check_limit(field, getattr(self, field.name))

    def __call__(self, logits, ids):
        if self.numbers is None:
            self.numbers = uniform_numbers(self.seeds, logits.device)
            choose = functools.partial(
                draw, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p,
                min_p=self.min_p)
            self.choose = graphs.recorded(choose, logits.device)  # a CUDA graph on a GPU
        uniform = next(self.numbers)  # (B, 1)
        logits = penalize(logits, ids, self.repetition_penalty)
        return self.choose(logits, uniform)


def uniform_numbers(seeds, device):
    """Yields numbers in [0, 1), (B, 1), without end; row i depends on seeds[i] alone. They are made
    on the CPU, so that they are the same for every device, and copied for many tokens at once."""
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    while True:
        rows = [torch.rand(256, generator=generator) for generator in generators]
        numbers = torch.stack(rows).to(device)  # (B, 256)
        yield from numbers.split(1, dim=1)


def penalize(logits, ids, penalty):
    """Returns logits (B, V) in which the tokens of ids (B, n) are less likely if penalty > 1: their
    logits are divided by it, or multiplied if negative (Keskar et al. 2019, CTRL)."""
    if penalty == 1.0:
        return logits
    seen = logits.gather(1, ids)
    penalized = torch.where(seen > 0, seen / penalty, seen * penalty)
    return logits.scatter(1, ids, penalized)


def draw(logits, uniform, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0):
    """Sample ids (B, 1) from next-token logits (B, V), with numbers uniform in [0, 1): (B, 1).

    temperature: logits are divided by it. Below 1 is less random; 0 takes the most likely id.
    top_k: keep the k most likely ids.
    top_p: keep the fewest most likely ids whose probabilities sum to top_p (Holtzman et al. 2020).
    min_p: keep ids at least this likely relative to the most likely one (Nguyen et al. 2024).
    They act in this order, each on what the one before has kept."""
    if temperature < 1e-5:  # 0, or so small that the division could overflow
        return logits.argmax(dim=-1, keepdim=True)
    V = logits.shape[1]
    k = V if top_k is None else min(top_k, V)
    logits = logits.float() / temperature
    logits, ids = logits.topk(k)  # the most likely first
    probs = logits.softmax(dim=-1)
    # min_p compares ratios, which top_p would not change, so it can come first
    kept = probs >= min_p * probs[:, :1]  # the most likely one is always kept
    if top_p < 1:
        sum_before = probs.cumsum(dim=-1) - probs  # of the more likely ones
        kept &= sum_before < top_p
    # inverse-CDF sampling: the choice is where a uniform number falls among the cumulative sums
    probs = probs * kept
    cumulative = probs.cumsum(dim=-1)
    total = cumulative[:, -1:]
    choice = torch.searchsorted(cumulative, uniform * total)
    choice = choice.clamp(max=k - 1)  # with NaN, it is k, which is past the end
    return ids.gather(1, choice)


@torch.no_grad()
def stream(model, idx, sampler, cache):
    """Continue idx (B, T), T >= 1, token by token, without end; the tokens in `cache` come before.
    One row of idx may serve a larger batch: it is computed once. Call model.eval() first.
    Yields ids (B, 1) and the logits (B, n_vocab) from which they were chosen."""
    cache.append(idx, n_kept=model.block_size)
    one_token = functools.partial(after_one_token, model, cache)
    if cache.static:  # on a GPU, a CUDA graph: recorded once, and replayed for each token
        one_token = graphs.recorded(one_token, idx.device)
    while True:
        logits = next_logits(model, cache, one_token)
        logits = logits[:, -1, :sampler.n_vocab]  # later ids pad the vocabulary
        logits = logits.expand(cache.batch_size, -1)
        ids = sampler(logits, cache.ids.expand(cache.batch_size, -1))
        cache.append(ids, n_kept=max(1, model.block_size // 2))
        yield ids, logits


def next_logits(model, cache, one_token=None):
    """The logits (B, 1, V) of the token that follows those in the cache. one_token: after_one_token
    for this model and this cache, perhaps recorded as a CUDA graph."""
    if one_token is None:
        one_token = functools.partial(after_one_token, model, cache)
    with attention_without_plans():  # cuDNN's attention needs 45 ms for each new length
        if not cache.keep:
            logits, _ = model.forward(cache.ids)
            return logits
        new = cache.begin()
        if cache.length and new.shape[1] == 1:
            logits = one_token(new, cache.before, cache.positions, cache.mask)
        else:
            # a prompt or a halved window. model(...) would be compiled for its length, if
            # compile=True, and that would not pay; model.forward is never compiled
            logits, _ = model.forward(new, cache=cache)
        cache.end()
    return logits


def after_one_token(model, cache, new, before, positions, mask):
    """The logits (B, 1, V) after one more token, new (B, 1). before, positions and mask: see
    KVCache. They are arguments, because the replay of a CUDA graph sees new arguments, but not new
    attributes of the cache."""
    cache.before = before
    cache.positions = positions
    cache.mask = mask
    attention = nullcontext()
    if cache.static:
        attention = attention_over_static_cache()  # one plan of cuDNN's serves all tokens
    with attention:
        logits, _ = model(new, cache=cache)  # compiled, if compile=True
    return logits


def encode_prompt(model, tokenizer, prompt):
    """The ids (1, T) of a prompt, on the device of the model."""
    ids = tokenizer.encode(prompt, special=True)  # (T,)
    device = model.transformer.wte.weight.device
    return torch.tensor(ids, device=device)[None]


def complete(model: GPT, tokenizer: Tokenizer, prompt: str, max_new_tokens: int = 200,
             temperature: float = 0.8, top_k: int | None = 200, seed: int = 1337,
             stop: str | None = None, **filters: float) -> str:
    """The prompt and its continuation as text, up to `stop` or the end of text. filters: see
    Sampler. Dropout is off meanwhile. Raises ValueError if the prompt is empty or a value is not
    within its limits, and UserError for an unknown character or if the logits are NaN."""
    if not prompt:
        raise ValueError("the prompt is empty: the model needs at least one character to continue")
    if max_new_tokens < 0:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be 0 or more")
    sampler = Sampler([seed], tokenizer.n_vocab, temperature, top_k, **filters)
    sample = Sample(prompt, tokenizer, stop)  # collects the tokens of a text and finds its end
    was_training = model.training
    model.eval()
    try:
        idx = encode_prompt(model, tokenizer, prompt)
        tokens = stream(model, idx, sampler, make_cache(model, 1))
        for ids, logprobs in with_logprobs(itertools.islice(tokens, max_new_tokens)):
            sample.add(ids.item(), logprobs.item())
            if sample.done:
                break
    finally:
        model.train(was_training)
    sample.end()
    return sample.text


def load_model(init_from: str = "resume", out_dir: str | Path = "out",
               device: str | torch.device = "cpu") -> tuple[GPT, Tokenizer]:
    """(model, tokenizer), in eval mode on `device`: the best model of the run in out_dir, or the
    one that init_from names. Raises UserError if the model is missing or damaged, or the device is
    not available."""
    device = find_device(device)
    start = starting.to_sample_from(expanduser(init_from), expanduser(out_dir))
    config = build(GPTConfig, start.model_args)
    model = GPT.from_weights(config, start.model)
    model.to(device).eval()
    tokenizer = tokenizer_from_meta(start.meta)
    return model, tokenizer


def with_logprobs(tokens):
    """Yields ids (B, 1) and their log-probabilities (B, 1), from the ids and logits of `stream`."""
    for ids, logits in tokens:
        logprobs = logits.float().log_softmax(dim=-1)
        yield ids, logprobs.gather(1, ids)


def continue_text(model, tokenizer, cfg, prompt, seeds, cache, end=None):
    """Sample continuations of `prompt`, one per seed, and print them. end: the id of a token that
    ends a text, besides <|endoftext|>. Returns Samples. Raises UserError if the logits are NaN."""
    idx = encode_prompt(model, tokenizer, prompt)
    length = idx.shape[1]
    if length > model.block_size:
        warn(f"the prompt has {length:,} tokens, but the model sees only the last "
             f"{model.block_size:,}")
    if cfg.interactive:  # the prompt is on the screen already
        prompt = ""
        separator = "\n"
    else:
        separator = f"\n{SEPARATOR}\n"
    # each collects the tokens of one text and finds its end (internals/streaming.py)
    samples = [Sample(prompt, tokenizer, cfg.stop, end) for _ in seeds]
    waiting = show(samples, separator)  # prints; returns the samples that are not done
    sampler = Sampler(seeds, tokenizer.n_vocab, cfg.temperature, cfg.top_k, cfg.top_p, cfg.min_p,
                      cfg.repetition_penalty)
    tokens = stream(model, idx, sampler, cache)
    tokens = with_logprobs(itertools.islice(tokens, cfg.max_new_tokens))
    # a GPU is so fast that it would wait for the CPU: read_late lets it compute the next token
    # while this one is printed. So at a stop string, it has computed one token too many, which
    # would stay in the cache of a conversation
    if not cfg.interactive:
        tokens = read_late(tokens)
    try:
        for ids, logprobs in tokens:
            new_ids = ids[:, 0].tolist()
            new_logprobs = logprobs[:, 0].tolist()
            for sample, token, logprob in zip(samples, new_ids, new_logprobs, strict=True):
                sample.add(token, logprob)
            waiting = show(waiting, separator)
            if not waiting:
                break
    except KeyboardInterrupt:
        if not cfg.interactive:  # in interactive mode, Ctrl-C ends only the answer
            raise
    for sample in samples:
        sample.end()
    show(waiting, separator)
    return samples


def interact(model, tokenizer, cfg, loaded):
    """Continue from each line that is typed, until Ctrl-D. Earlier lines stay in the context. A
    model that stages/sft.py has trained answers each line as a new conversation instead."""
    with suppress(ImportError):
        import readline  # noqa: F401  # arrow keys and history in input(); not on Windows
    on_terminal = sys.stdin.isatty()
    if on_terminal:
        print(f"{loaded}\nCtrl-C ends an answer, Ctrl-D the conversation", file=sys.stderr)
    chat = chat_format(tokenizer.meta)
    end = None
    if chat:  # an answer ends with this token
        end = tokenizer.encode(chat.end, special=True).item()
    cache = make_cache(model, 1, static=cfg.compile)
    for turn in itertools.count():
        try:
            line = input("> " if on_terminal else "")
        except EOFError:
            print()
            return
        line = line.removesuffix("\r").removeprefix("\ufeff")  # of a file made on Windows
        try:
            if chat:
                prompt = chat.prompt(line)
                cache = make_cache(model, 1, static=cfg.compile)
            elif turn > 0 or not line:
                # default_start, usually a newline, ends the previous answer, or is the prompt if
                # the line is empty
                prompt = tokenizer.default_start + line
            else:
                prompt = line
            continue_text(model, tokenizer, cfg, prompt, [cfg.seed + turn], cache, end)
        except UserError as error:  # a character that the tokenizer does not know
            print(f"error: {error}", file=sys.stderr)


def main(argv=None):
    _, cfg = configure(__doc__, SampleConfig, argv=argv)
    model, tokenizer = load_model(cfg.init_from, cfg.out_dir, cfg.device)
    source = cfg.init_from
    if source == "resume":
        source = cfg.out_dir
    millions = num_params(model) / 1e6
    loaded = f"{source} ({millions:.2f}M parameters)"
    model = for_sampling(model, cfg.dtype, cfg.compile)
    if cfg.interactive:
        interact(model, tokenizer, cfg, loaded)
        return
    prompt = read_prompt(cfg.start, tokenizer)
    if cfg.cache:
        check_cache_fits(model, cfg.num_samples)
    seeds = range(cfg.seed, cfg.seed + cfg.num_samples)
    cache = make_cache(model, cfg.num_samples, keep=cfg.cache, static=cfg.compile)
    started = time.perf_counter()
    with out_of_memory_hint(f"num_samples={cfg.num_samples}", "use fewer, or a smaller model"):
        samples = continue_text(model, tokenizer, cfg, prompt, seeds, cache)
    seconds = time.perf_counter() - started
    count = sum(len(sample.tokens) for sample in samples)
    speed = count / seconds
    print(f"{loaded}: {counted(count, 'token')} in {seconds:.2f} s, {speed:,.0f} tok/s",
          file=sys.stderr)
    if cfg.out:
        write_samples(Path(cfg.out), prompt, samples)


if __name__ == "__main__":
    with one_line_errors():
        main()
