"""Look inside a trained model: write one HTML file that shows what it computes for a text.

    python tools/look.py --out_dir=out-quickstart --start="ROMEO:"
    python tools/look.py --out_dir=out-novel --start=FILE:prompt.txt --max_new_tokens=0
    python tools/look.py --init_from=gpt2 --start="The capital of France is"

The page needs no network and no server. docs/look.md explains each view. If the run had
snapshots=True, the page also shows how all of this developed during training.
internals/recording.py has what is measured; this file turns it into a page.

If the tokens are characters and the model has at most 12 million parameters, the page contains the
weights and runs the model itself (tools/look/model.js), so that you can edit the text. The weights
are rounded to 8 bits, those of earlier snapshots to 6 bits. All other values in the page are then
computed by model.py with the rounded weights. Otherwise the page shows recorded values.

Left out: running larger models, or models with BPE, in the page: the file would be large.
"""

import base64
import itertools
import json
import math
import re
import sys
import zlib
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.distributions import Categorical

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configurator import build, configure
from internals import checkpoint, checks, starting
from internals.cpu import replace
from internals.devices import find_device
from internals.errors import UserError, one_line_errors, warn
from internals.files import printable, replacing
from internals.limits import Count, Natural, NonNegative, Seed
from internals.recording import (
    RecordingAttend,
    ablation,
    head,
    logits_of,
    record,
    text_loss,
    votes,
)
from internals.streaming import read_prompt
from internals.words import counted
from model import GPT, Attend, GPTConfig
from prepare import CharTokenizer, tokenizer_from_meta
from sample import Sampler, encode_prompt, make_cache, stream, uniform_numbers

TEMPLATES = Path(__file__).resolve().parent / "look"
TEXT_TOKENS = 64  # length of the text, if max_new_tokens is not given
FILM_TOKENS = 60  # of the continuation by each snapshot
MAX_PARAMETERS = 12_000_000  # of a model that runs in the page
LEVELS = 127  # weights are rounded to whole numbers from -LEVELS to LEVELS, times a scale per row
SNAPSHOT_LEVELS = 31  # of the snapshots: ten of them are in the page of the quick start
MAX_MOMENTS = 10  # steps of the training in a page
MAX_RECORDED = 6  # of these, if the page has the weights of the main model only
MAX_WEIGHTS = 15 * 10**6  # bytes of weights in the file, about
MAX_ATTENTION = 64 * 2**20  # bytes of attention weights in the file
TOP = 10  # most likely tokens per position


@dataclass
class LookConfig:
    """The settings of a page."""

    # -- model
    init_from: str = "resume"  # resume: the checkpoint in out_dir; gpt2, ...; a folder or .pt file
    out_dir: str = "out"  # folder of a run, or a checkpoint in it
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest one available
    # -- text
    start: str | None = None  # the prompt, FILE:prompt.txt, or - for stdin; None: a line break
    # number of tokens that the model adds to the prompt; None: as many as make 64 in total
    max_new_tokens: Natural | None = None
    temperature: NonNegative = 0.8  # below 1: less random, 0: always the most likely token
    top_k: Count | None = 200  # sample from the k most likely tokens; None: from all
    seed: Seed = 1337  # of the sampled tokens
    # -- output
    out: str | None = None  # the file to write; None: look.html in out_dir


# --------------------------------------------------------------------------------------------------
# Weights in the page


def round_weights(model, levels):
    """Round the matrices of a model. Returns its weights for the page: shapes, whole numbers, and
    scales and vectors. A tied LM head is left out, because it is the token embedding."""
    shapes = []
    integers = []
    floats = []
    for name, p in model.named_parameters():
        weight = p.cpu()
        shapes.append([name, *weight.shape])
        if weight.dim() == 2:
            numbers, scales = rounded_rows(weight, levels)
            p.data = (numbers * scales).to(p.device)
            integers.append(numbers.flatten())
            weight = scales
        floats.append(weight.flatten())
    return {
        "shapes": shapes,
        "integers": packed(torch.cat(integers), "<i1"),
        "floats": packed(torch.cat(floats), "<f4"),
    }


def rounded_rows(weight, levels):
    """(whole numbers int8, scales): row i of a matrix is about numbers[i] * scales[i]."""
    scales = weight.abs().amax(dim=1, keepdim=True) / levels
    scales = scales.clamp(min=torch.finfo(torch.float32).tiny)  # of a row of zeros
    scales = scales.bfloat16().float()  # half of its bytes are zeros, which the file does not store
    numbers = (weight / scales).round()
    return numbers.clamp(-levels, levels).to(torch.int8), scales


def why_not_live(tokenizer, n_parameters):
    """Why the page cannot contain the model, as the end of a sentence; or None if it can."""
    if not isinstance(tokenizer, CharTokenizer):
        return "its tokens are not single characters"
    if n_parameters > MAX_PARAMETERS:
        return (f"it has {short_count(n_parameters)} parameters, and at most "
                f"{short_count(MAX_PARAMETERS)} run in a page")
    return None


def short_count(count):
    """A number of parameters in words: 0.6M, 12M, 4,128."""
    if count < 100_000:
        return f"{count:,}"
    millions = count / 1e6
    if millions < 99.5:
        return f"{millions:.1f}M".replace(".0M", "M")
    return f"{millions:.0f}M"


# --------------------------------------------------------------------------------------------------
# From tensors to the numbers in the file


def numbers(tensor):
    """A tensor as nested lists of numbers with six decimals, which makes the file smaller."""
    return tensor.cpu().double().round(decimals=6).tolist()


def packed(tensor, dtype):
    """The numbers of a tensor, compressed, in base64. dtype: of NumPy, such as "<f4"."""
    array = tensor.cpu().numpy()
    data = array.astype(dtype).tobytes()
    data = zlib.compress(data, 9)
    return base64.b64encode(data).decode()


def moment(model, idx, logits):
    """(what the page shows of a model, as plain values; the Recording). The lists are indexed by
    layer, if they depend on it, and then by position. logits: of logits_of."""
    seen = record(model, idx)
    T, n_vocab = logits.shape
    top = logits.softmax(dim=-1).topk(min(TOP, n_vocab))
    first = top.indices[:, 0].to(idx.device)
    second = top.indices[:, min(1, n_vocab - 1)].to(idx.device)
    entropy = Categorical(logits=logits).entropy() / math.log(2)  # bits
    before = logits[:-1]
    came = before.gather(1, idx[0, 1:, None].cpu())  # logits of the tokens that came
    higher = before > came
    ties = before == came
    lens_ids = []
    lens_probs = []
    for x in seen.stream:
        guess = head(model, x)[:, :n_vocab]
        best = guess.softmax(dim=-1).max(dim=-1)
        lens_ids.append(best.indices.tolist())
        lens_probs.append(numbers(best.values))
    rows, columns = torch.tril_indices(T, T)
    attention = seen.attention[..., rows, columns]  # the lower triangle, row by row
    result = {
        "top_ids": top.indices.tolist(),
        "top_probs": numbers(top.values),
        "entropy": numbers(entropy),
        "next_prob": next_probs(logits, idx),
        "next_rank": (higher.sum(dim=-1) + 1).tolist(),
        "next_ties": ties.sum(dim=-1).tolist(),
        "lens_ids": lens_ids,
        "lens_probs": lens_probs,
        "votes": numbers(votes(model, seen, first, second)),
        "attention": packed((attention * 65535).round(), "<u2"),
        "ablated_loss": None,
    }
    if T > 1:
        result["ablated_loss"] = numbers(ablation(model, idx, n_vocab))
    return result, seen


def next_probs(logits, idx):
    """The probabilities (T - 1) of the tokens that came, from logits (T, V) and idx (1, T)."""
    probs = logits[:-1].softmax(dim=-1)
    came = idx[0, 1:].cpu()
    probs = probs.gather(1, came[:, None])
    return probs.flatten().tolist()


def build_model(weights, settings, device):
    """A GPT that can be recorded."""
    model = GPT.from_weights(settings, weights)
    model.requires_grad_(False)
    replace(model, Attend, RecordingAttend)
    return model.to(device).eval()


def continuation(model, tokenizer, idx, n_new, cfg):
    """(ids, probabilities) of at most n_new tokens that the model samples after idx (1, T). The
    probabilities are those before temperature and top-k."""
    sampler = Sampler([cfg.seed], tokenizer.n_vocab, cfg.temperature, cfg.top_k)
    sampled = stream(model, idx, sampler, make_cache(model, 1))
    new = []
    probs = []
    for ids, logits in itertools.islice(sampled, n_new):
        i = ids.item()
        if i == tokenizer.end_of_text:
            break
        new.append(i)
        p = logits[0].softmax(dim=-1)[i]
        probs.append(p.item())
    return new, probs


def new_tokens(T, block_size, max_new_tokens):
    """The number of tokens that are sampled after a prompt of T tokens."""
    n_new = max_new_tokens
    if n_new is None:
        n_new = max(0, min(TEXT_TOKENS, block_size) - T)
    if T + n_new > block_size:
        raise UserError(f"a prompt of {counted(T, 'token')} and max_new_tokens={n_new} exceed the "
                        f"context of the model, {counted(block_size, 'token')}: use a shorter "
                        "prompt or a smaller max_new_tokens")
    return n_new


def chosen_steps(steps, main, limit):
    """At most `limit` of the steps, which is 3 or more. The first, the last and `main` stay; of the
    others, those go whose neighbors are closest to each other on a log scale."""
    steps = sorted({*steps, main})
    while len(steps) > limit:
        gaps = {}
        triples = zip(steps, steps[1:], steps[2:], strict=False)
        for before, step, after in triples:
            if step != main:
                gaps[step] = (after + 1) / (before + 1)
        steps.remove(min(gaps, key=gaps.get))
    return steps


def text_of(tokenizer, i):
    """The text of a token. Bytes that are not UTF-8 by themselves are written as \\xe2."""
    if isinstance(tokenizer, CharTokenizer):
        return tokenizer.decode([i])
    return tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace")


def title(parameters, source, task):
    """What the model is, in words: the heading of the page. source: of the training text. task: of
    a stage (stages/), or None."""
    words = f"A GPT with {short_count(parameters)} parameters"
    if source:
        words += f", trained on {without_path(source)}"
    if task:
        words += f", then on the task {without_path(task)}"
    return words


def without_path(source):
    """The name of a file or corpus: a page that is sent to others contains no path."""
    name = str(source).split(", from ")[0]
    return name.replace("\\", "/").split("/")[-1]


# --------------------------------------------------------------------------------------------------
# What there is to find


def turning_point(shown, ids, first, spaces):
    """The position at which a late layer turns a wrong guess into a confident right one.

    shown: a moment. spaces: ids of white space, which is less interesting, so it counts a quarter.
    Positions before `first`, and the last one, which no token follows, do not count.
    Returns (position, row): the row of the lens that is the first with the right answer. Without
    such a position: the one at which the model gave most to what came, and None."""
    lens_ids = torch.tensor(shown["lens_ids"])  # (rows, T)
    lens_probs = torch.tensor(shown["lens_probs"])
    last = len(lens_ids) - 1
    positions = range(min(first, len(ids) - 2), len(ids) - 1)
    best_score = 0
    best = (max(positions, key=shown["next_prob"].__getitem__), None)
    for t in positions:
        guesses = lens_ids[:, t].tolist()
        row = last
        while row > 0 and guesses[row - 1] == guesses[last]:
            row -= 1
        if row == 0 or guesses[last] != ids[t + 1]:
            continue
        right = lens_probs[last, t]
        wrong = lens_probs[row - 1, t]
        score = right**2 * wrong * row / last
        if guesses[last] in spaces:
            score /= 4
        if score > best_score:
            best_score = score
            best = (t, row)
    return best


def place_of_largest(values):
    """(row, column) of the largest number of a matrix."""
    return divmod(values.argmax().item(), values.shape[1])


def most_learned(probs, ids, spaces):
    """(moment, position): the position whose next token gained most probability from one moment to
    the next. White space, which is learned first, counts a quarter. probs: at each moment, the
    probabilities (T - 1) of the tokens that came, ids[1:]."""
    probs = torch.tensor(probs)
    gains = probs[1:] - probs[:-1]
    is_space = torch.tensor([i in spaces for i in ids[1:]])
    gains[:, is_space] /= 4
    number, position = place_of_largest(gains)
    return number + 1, position


def discoveries(shown, ids, attention, n_prompt, probs, spaces):
    """(where the page opens, up to three things to find in it), as settings of the page.

    shown: the moment of the main model. attention: (L, nh, T, T). probs, spaces: see most_learned.
    """
    if len(ids) < 3:
        return {"token": 0, "layer": 0, "head": 0}, []
    token, row = turning_point(shown, ids, n_prompt - 1, spaces)
    ablated = torch.tensor(shown["ablated_loss"])
    layer, number = place_of_largest(ablated[:, :-1])  # without the MLPs
    opening = {"token": token, "layer": layer, "head": number}
    found = []
    if row is not None:
        found.append(opening | {"kind": "lens", "row": row})
    to_previous = attention.diagonal(offset=-1, dim1=-2, dim2=-1)  # (L, nh, T - 1)
    shares = to_previous[..., 1:].mean(dim=-1)  # the second token has few others to look at
    layer, number = place_of_largest(shares)
    share = shares[layer, number].item()
    previous = {"kind": "previous", "layer": layer, "head": number, "share": share}
    found.append(opening | previous)
    if len(probs) > 1:
        when, where = most_learned(probs, ids, spaces)
        found.append(opening | {"kind": "time", "moment": when, "token": where + 1})
    found.append(opening | {"kind": "cause"})
    return opening, found[:3]


# --------------------------------------------------------------------------------------------------
# The page


@dataclass
class Page:
    """What goes into one page."""

    cfg: LookConfig
    start: checks.Checkpoint
    settings: GPTConfig
    tokenizer: object
    idx: torch.Tensor  # (1, T): the prompt, and what the model has sampled after it
    n_prompt: int  # tokens of the prompt
    n_parameters: int
    is_live: bool  # whether the model runs in the page


def run_folder(cfg):
    """The folder of the run, of which out_dir can also be a checkpoint."""
    folder = Path(cfg.out_dir)
    if folder.is_file():
        folder = folder.parent
    return folder


def levels_of(this, steps):
    """{step: levels} of the steps of the training that the page shows: how the weights are rounded,
    or None if they are not in the page. Snapshots are in it if at least three models fit."""
    main = this.start.step
    if not this.is_live:
        return dict.fromkeys(chosen_steps(steps, main, MAX_MOMENTS))
    n_fit = MAX_WEIGHTS // this.n_parameters  # a weight takes about a byte
    if n_fit < 3:
        levels = dict.fromkeys(chosen_steps(steps, main, MAX_RECORDED))
    else:
        steps = chosen_steps(steps, main, min(n_fit, MAX_MOMENTS))
        levels = dict.fromkeys(steps, SNAPSHOT_LEVELS)
    levels[main] = LEVELS
    return levels


def check_attention(this, n_moments):
    """Raises UserError if the attention weights would make the file too large."""
    T = this.idx.shape[1]
    n_maps = n_moments * this.settings.n_layer * this.settings.n_head
    size = n_maps * T * (T + 1)  # two bytes for each weight of a triangle
    if size > MAX_ATTENTION:
        raise UserError(f"the attention weights of {T:,} tokens would take {size / 2**20:,.0f} MB "
                        f"in the file, and at most {MAX_ATTENTION / 2**20:.0f} MB are allowed: use "
                        "a shorter prompt, or a smaller max_new_tokens")


def moments_of(this):
    """(what the page has of each step of the training, the number of the main model's, where it
    opens, what there is to find)."""
    paths = {}
    if this.cfg.init_from == "resume":
        paths = checkpoint.snapshot_paths(run_folder(this.cfg))
    levels = levels_of(this, paths)
    check_attention(this, len(levels))
    n_vocab = this.tokenizer.n_vocab
    moments = []
    probs = []
    for step in levels:
        is_main = step == this.start.step
        weights = this.start.model
        if not is_main:  # the checkpoint has the same weights as the snapshot of its step
            weights = checkpoint.read_snapshot(paths[step], this.start.model_args)
        model = build_model(weights, this.settings, this.idx.device)
        shown = {"step": step}
        try:
            logits = logits_of(model, this.idx, n_vocab)
        except UserError as error:
            if is_main:
                raise
            warn(f"the page leaves out step {step}: {error}")
            continue
        if levels[step] is not None:
            shown["exact_loss"] = text_loss(logits, this.idx)
            shown["weights"] = round_weights(model, levels[step])
            logits = logits_of(model, this.idx, n_vocab)
            compared = logits  # with those that the page computes
            if not is_main:
                compared = logits[-1:]  # of the last token
            shown["logits"] = packed(compared, "<f4")
        shown["loss"] = text_loss(logits, this.idx)
        probs.append(next_probs(logits, this.idx))
        if is_main or levels[step] is None:  # else the page computes the rest itself
            recorded, seen = moment(model, this.idx, logits)
            shown |= recorded
        if is_main:
            main = shown
            attention = seen.attention
        prompt = this.idx[:, :this.n_prompt]
        film_ids, film_probs = continuation(
            model, this.tokenizer, prompt, FILM_TOKENS, this.cfg)
        shown["film_ids"] = film_ids
        shown["film_probs"] = film_probs
        moments.append(shown)
    ids = this.idx[0].tolist()
    spaces = {i for i in ids if not text_of(this.tokenizer, i).strip()}
    opening, found = discoveries(main, ids, attention, this.n_prompt, probs, spaces)
    return moments, moments.index(main), opening, found


def used_vocabulary(this, moments):
    """{id: text} of all tokens that a page without its model shows."""
    used = set(this.idx[0].tolist())
    for shown in moments:
        used.update(shown["film_ids"])
        for row in shown["top_ids"] + shown["lens_ids"]:
            used.update(row)
    return {i: text_of(this.tokenizer, i) for i in sorted(used)}


def look(start, tokenizer, prompt, cfg):
    """Everything that the page shows, as plain values. start: a Checkpoint. prompt: text."""
    settings = build(GPTConfig, start.model_args)
    model = build_model(start.model, settings, find_device(cfg.device))
    n_parameters = sum(p.numel() for p in model.parameters())
    why = why_not_live(tokenizer, n_parameters)
    if not why:
        round_weights(model, LEVELS)
    prompt_ids = encode_prompt(model, tokenizer, prompt)
    n_prompt = prompt_ids.shape[1]
    n_new = new_tokens(n_prompt, settings.block_size, cfg.max_new_tokens)
    new, _ = continuation(model, tokenizer, prompt_ids, n_new, cfg)
    new = prompt_ids.new_tensor([new])
    idx = torch.cat((prompt_ids, new), dim=1)
    this = Page(cfg, start, settings, tokenizer, idx, n_prompt, n_parameters, not why)
    moments, main, opening, found = moments_of(this)

    name = cfg.init_from
    if cfg.init_from == "resume":
        name = cfg.out_dir
    if isinstance(tokenizer, CharTokenizer):
        unit = "character"
        vocab = list(tokenizer.chars)
    else:
        unit = "token"
        vocab = used_vocabulary(this, moments)
    task = (start.config or {}).get("task")
    val_loss = None
    if 0 < start.best_loss < math.inf:
        val_loss = start.best_loss
    dice = itertools.islice(uniform_numbers([cfg.seed], "cpu"), FILM_TOKENS)
    return {
        "name": printable(Path(name).resolve().name),  # no path: the page is sent to others
        "title": printable(title(n_parameters, start.meta.get("source"), task)),
        "unit": unit,
        "config": asdict(settings),
        "parameters": n_parameters,
        "val_loss": val_loss,
        "n_vocab": tokenizer.n_vocab,
        "vocab": vocab,
        "prompt_length": n_prompt,
        "ids": idx[0].tolist(),
        "moments": moments,
        "main": main,
        "why_not_live": why,
        "sampled": {"temperature": cfg.temperature, "top_k": cfg.top_k},
        "dice": [number.item() for number in dice],
        "open": opening,
        "discoveries": found,
    }


def page(data):
    """The HTML file. The data becomes JSON in ASCII, without "<", so that no text in it can end the
    script element that contains it."""
    html = (TEMPLATES / "page.html").read_text(encoding="utf-8")
    for name in re.findall(r"{{(\w+\.\w+)}}", html):
        part = (TEMPLATES / name).read_text(encoding="utf-8")
        html = html.replace("{{" + name + "}}", part)
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return html.replace("{{data}}", text.replace("<", "\\u003c"))


def main(argv=None):
    _, cfg = configure(__doc__, LookConfig, argv=argv)
    out = Path(cfg.out or run_folder(cfg) / "look.html")
    if out.is_dir():
        raise UserError(f"out={out} is a folder: give the name of a file")
    start = starting.to_sample_from(cfg.init_from, cfg.out_dir)
    tokenizer = tokenizer_from_meta(start.meta)
    data = look(start, tokenizer, read_prompt(cfg.start, tokenizer), cfg)
    text = page(data)
    with replacing(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    runs = "the model runs in it"
    if data["why_not_live"]:
        runs = f"the model does not run in it, because {data['why_not_live']}"
    print(f"{out}: {len(text) / 1e6:.1f} MB; {runs}")


if __name__ == "__main__":
    with one_line_errors():
        main()
