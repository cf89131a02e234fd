"""pytest tests/test_addition.py - sums: how they are made, held out and counted"""

import re

import add
import pytest
import torch
from helpers import ROOT, state

import prepare
import train
from internals import dataset
from internals.data.corpora import make_addition
from prepare import tokenizer_from_meta
from train import training_starts


def made(folder, *options):
    """Prepare sums there; the lines of train.bin and of val.bin."""
    prepare.main(["addition", f"--data_dir={folder}", *options])
    data = dataset.load(folder / "addition")
    tokenizer = tokenizer_from_meta(data.meta)
    return [tokenizer.decode(ids).splitlines() for ids in (data.train, data.val)]


def all_made(folder, *options):
    trained, held_out = made(folder, *options)
    return trained + held_out


@pytest.fixture(scope="module", params=[1, 2])
def sums(request, tmp_path_factory):
    return request.param, *made(tmp_path_factory.mktemp("sums"), f"--digits={request.param}")


def test_every_sum_is_there_once_and_right(sums):
    digits, lines = sums[0], sums[1] + sums[2]
    pattern = rf"(\d{{{digits}}})\+(\d{{{digits}}})=(\d{{{digits + 1}}})"
    found = [re.fullmatch(pattern, line).groups() for line in lines]
    assert len({(a, b) for a, b, _ in found}) == len(found) == 100**digits
    assert all(int(a) + int(b) == int(total[::-1]) for a, b, total in found)
    assert lines != sorted(lines)


def test_a_tenth_is_held_out_and_is_not_trained_on_in_either_order(sums):
    digits, trained, held_out = sums
    assert len(held_out) == 100**digits // 10
    assert not problems(trained) & problems(held_out)


def problems(lines):
    """The sums in these lines, the same one for a+b and b+a."""
    return {frozenset(line.split("=")[0].split("+")) for line in lines}


def test_no_pair_is_on_both_sides_of_the_cut_for_any_seed():
    for seed in range(100):
        lines = make_addition(digits=1, seed=seed).splitlines()
        assert len(set(lines)) == 100 and not problems(lines[:90]) & problems(lines[90:]), seed


def test_sums_are_reversed_unless_it_is_refused(tmp_path):
    assert "07+46=350" in all_made(tmp_path, "--digits=2")
    assert "07+46=350" in all_made(tmp_path, "--digits=2", "--reverse=True")
    plain = all_made(tmp_path, "--digits=2", "--reverse=False")
    assert "07+46=053" in plain and "07+46=350" not in plain
    command = dataset.load(tmp_path / "addition").meta["command"]
    assert command.startswith("python prepare.py addition ")
    assert command.endswith(" --digits=2 --reverse=False")


def test_the_vocabulary_and_the_bins_are_always_the_same(tmp_path):
    made(tmp_path, "--digits=2")
    first = dataset.load(tmp_path / "addition").meta
    made(tmp_path, "--digits=2")
    assert dataset.load(tmp_path / "addition").meta == first
    assert first["chars"] == "\n+0123456789="


@pytest.mark.parametrize("digits, train, val", [
    (1, "9b4527e896dde647", "fdefa46698c510b1"), (2, "60d7aebd3c47d0f7", "dcc1482321b3464b")])
def test_the_bins_are_those_of_every_earlier_version(tmp_path, digits, train, val):
    made(tmp_path, f"--digits={digits}")
    meta = dataset.load(tmp_path / "addition").meta
    assert meta["train_sha256"].startswith(train) and meta["val_sha256"].startswith(val)


def test_options_of_sums_are_refused_for_other_corpora(mistake, tmp_path):
    (tmp_path / "a.txt").write_text("1+1=2\n" * 100)
    data = f"--data_dir={tmp_path}"
    for what in ("plays_char", "openwebtext", tmp_path / "a.txt"):
        line = mistake(prepare.main, what, "--digits=2", data)
        assert f"--digits applies only to addition, not to {what}" in line
        line = mistake(prepare.main, what, "--reverse=False", data)
        assert "--reverse applies only to addition" in line
    assert "digits=4 must be 1, 2 or 3" in mistake(prepare.main, "addition", "--digits=4", data)
    assert "give it alone" in mistake(prepare.main, "addition", "--name=sums", data)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_config_makes_its_sums_anew_and_each_window_is_one(tmp_path, capsys):
    made(tmp_path, "--digits=1")
    (tmp_path / "addition" / "train.bin").unlink()
    train.main([str(ROOT / "config/train_addition.py"), f"--data_dir={tmp_path}", "--max_iters=2",
                f"--out_dir={tmp_path / 'out'}", "--eval_iters=1", "--device=cpu"])
    assert "is missing: preparing it" in capsys.readouterr().out
    cfg = state(tmp_path / "out").config
    data = dataset.load(tmp_path / "addition")
    assert data.meta["command"] == "python prepare.py addition"
    assert len(data.val) == 13 * 100_000
    tokenizer = tokenizer_from_meta(data.meta)
    for start in training_starts(0, 100, len(data.train), 13, cfg["seed"], cfg["align"]):
        assert re.fullmatch(r"\d{3}\+\d{3}=\d{4}\n", tokenizer.decode(data.train[start:][:13]))


# ---- the count


@pytest.fixture
def run(tiny, tmp_path):
    """A function: prepare sums of one digit, train for some steps, give the folder of the run."""
    def trained(max_iters):
        made(tmp_path, "--digits=1")
        train.main(tiny(dataset="addition", data_dir=tmp_path, block_size=7, align=7, n_embd=32,
                        batch_size=32, dropout=0, max_iters=max_iters, eval_interval=1000))
        return tmp_path / "out"

    return trained


def counted(capsys, out_dir):
    capsys.readouterr()
    add.main([f"--out_dir={out_dir}", "--device=cpu"])
    first, *wrong = capsys.readouterr().out.splitlines()
    exact, total, percent = re.fullmatch(r"exact: (\S+) of (\S+) \((\S+)%\)", first).groups()
    assert float(percent) == pytest.approx(100 * int(exact) / int(total), abs=0.01)
    return int(exact), int(total), wrong


def test_what_is_counted_is_what_the_model_says_sum_by_sum(run, tmp_path, capsys):
    out_dir = run(max_iters=150)
    model, tokenizer = add.load_model("resume", out_dir, torch.device("cpu"))
    exact = 0
    for line in tokenizer.decode(dataset.load(tmp_path / "addition").val).splitlines():
        said = line[:4]
        while len(said) < 6:
            ids = torch.tensor(tokenizer.encode(said))[None]
            said += tokenizer.chars[model(ids)[0][0, -1].argmax()]
        exact += int(said[0]) + int(said[2]) == int(said[4:][::-1])
    assert counted(capsys, out_dir)[:2] == (exact, 10)


class Calculator:
    """In place of a model: adds two digits, but begins a sum in `wrong` with a 9, and writes
    a 0 in place of the line break after a sum in `endless`."""

    block_size = 7

    def __init__(self, tokenizer, wrong, endless=()):
        self.tokenizer, self.wrong, self.endless = tokenizer, wrong, endless

    def modules(self):
        return []

    def answer(self, prompt):
        total = int(prompt[0]) + int(prompt[2])
        first, second, end = f"{total:02}"[::-1] + "\n"
        if prompt in self.wrong:
            first = "9"
        if prompt in self.endless:
            end = "0"
        return first + second + end

    def forward(self, new, cache):
        """Logits of the next token only; cache.ids are the tokens of the line so far."""
        texts = map(self.tokenizer.decode, cache.ids.tolist())
        said = [self.answer(text[:4])[len(text) - 4] for text in texts]
        ids = torch.tensor(self.tokenizer.encode("".join(said)))
        return torch.nn.functional.one_hot(ids, self.tokenizer.n_vocab)[:, None].float(), None

    __call__ = forward


def test_each_wrong_sum_is_counted_and_shown(run, tmp_path, capsys, monkeypatch):
    out_dir = run(max_iters=1)
    monkeypatch.setattr(add, "BATCH", 4)  # so that the last batch is a smaller one
    data = dataset.load(tmp_path / "addition")
    tokenizer = tokenizer_from_meta(data.meta)
    lines = [line for line in tokenizer.decode(data.val).splitlines() if line[4] != "9"]
    prompts = [line[:4] for line in lines]

    def use(wrong, endless=()):
        monkeypatch.setattr(add, "load_model",
                            lambda *_: (Calculator(tokenizer, wrong, endless), tokenizer))

    use([])
    assert counted(capsys, out_dir) == (10, 10, [])
    use(prompts[1:3], prompts[3:4])
    exact, total, shown = counted(capsys, out_dir)
    assert (exact, total, len(shown)) == (7, 10, 3)
    assert f"  {prompts[1]}9{lines[1][5]}, but the correct line is {lines[1]}" in shown
    use(prompts[:7])
    exact, _, shown = counted(capsys, out_dir)
    assert (exact, len(shown)) == (3, add.SHOWN)


def test_sums_other_than_those_of_the_training_are_not_counted(run, mistake, tmp_path):
    out_dir = run(max_iters=1)
    made(tmp_path, "--digits=1", "--reverse=False")
    assert "is not what the model" in mistake(add.main, f"--out_dir={out_dir}")


def test_a_run_on_another_text_is_refused(tiny, mistake, tmp_path):
    train.main(tiny(max_iters=1))
    assert "was not trained on sums" in mistake(add.main, f"--out_dir={tmp_path / 'out'}")
    assert "has no checkpoint" in mistake(add.main, f"--out_dir={tmp_path / 'nothing'}")
    assert "unknown setting 'out'" in mistake(add.main, "--out=x")
