"""pytest tests/test_addition.py - sums: how they are made and held out, and how they are counted"""

import re
import sys

import pytest
import torch
from conftest import ROOT

import prepare
import train
from internals.checkpoint import load_checkpoint
from internals.dataset import load_bins
from prepare import decode, tokenizer_from_meta
from train import training_windows

sys.path.insert(0, str(ROOT / "tools"))

import add


def made(folder, *options):
    """Prepare sums there; the lines of train.bin and of val.bin."""
    prepare.main(["addition", f"--data_dir={folder}", *options])
    meta, bins = load_bins(folder / "addition")
    tokenizer = tokenizer_from_meta(meta)
    return [decode(tokenizer, bins[split]).splitlines() for split in ("train", "val")]


def all_made(folder, *options):
    trained, held_out = made(folder, *options)
    return trained + held_out


@pytest.fixture(scope="module", params=[1, 2, 3])
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
    problems = [{frozenset(line.split("=")[0].split("+")) for line in split}
                for split in (trained, held_out)]
    assert not problems[0] & problems[1]


def test_sums_are_reversed_unless_it_is_refused(tmp_path):
    assert "07+46=350" in all_made(tmp_path, "--digits=2")
    assert "07+46=350" in all_made(tmp_path, "--digits=2", "--reverse")
    plain = all_made(tmp_path, "--digits=2", "--no-reverse")
    assert "07+46=053" in plain and "07+46=350" not in plain
    meta, _ = load_bins(tmp_path / "addition")
    assert meta["command"].startswith("python prepare.py addition ")
    assert meta["command"].endswith(" --digits=2 --no-reverse")


def test_the_vocabulary_and_the_bins_are_always_the_same(tmp_path):
    made(tmp_path, "--digits=2")
    first, _ = load_bins(tmp_path / "addition")
    made(tmp_path, "--digits=2")
    assert load_bins(tmp_path / "addition")[0] == first and first["chars"] == "\n+0123456789="


def test_options_of_sums_are_refused_for_other_corpora(mistake, tmp_path):
    (tmp_path / "a.txt").write_text("1+1=2\n" * 100)
    data = f"--data_dir={tmp_path}"
    for what in ("plays_char", "openwebtext", tmp_path / "a.txt"):
        line = mistake(prepare.main, what, "--digits=2", data)
        assert f"--digits is for addition alone, not for {what}" in line
        assert "--reverse is for addition" in mistake(prepare.main, what, "--no-reverse", data)
    assert "invalid choice: 4" in mistake(prepare.main, "addition", "--digits=4", data)
    assert "give it alone" in mistake(prepare.main, "addition", "--name=sums", data)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_config_makes_its_sums_anew_and_each_window_is_one(tmp_path, capsys):
    made(tmp_path, "--digits=1")
    (tmp_path / "addition" / "train.bin").unlink()
    train.main([str(ROOT / "config/train_addition.py"), f"--data_dir={tmp_path}", "--max_iters=2",
                f"--out_dir={tmp_path / 'out'}", "--eval_iters=1", "--device=cpu"])
    assert "preparing it" in capsys.readouterr().out
    cfg = load_checkpoint(tmp_path / "out" / "ckpt.pt")["config"]
    meta, bins = load_bins(tmp_path / "addition")
    assert meta["command"] == "python prepare.py addition"
    tokenizer = tokenizer_from_meta(meta)
    for start in training_windows(0, 100, len(bins["train"]), 13, cfg["seed"], cfg["align"]):
        assert re.fullmatch(r"\d{3}\+\d{3}=\d{4}\n", decode(tokenizer, bins["train"][start:][:13]))


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
    out_dir = run(max_iters=400)
    model, tokenizer = add.load_model("resume", out_dir, torch.device("cpu"))
    _, bins = load_bins(tmp_path / "addition")
    exact = 0
    for line in decode(tokenizer, bins["val"]).splitlines():
        said = line[:4]
        while len(said) < 6:
            ids = torch.from_numpy(tokenizer.encode(said).astype("int64"))[None]
            said += tokenizer.chars[model(ids)[0][0, -1].argmax()]
        exact += int(said[0]) + int(said[2]) == int(said[4:][::-1])
    assert counted(capsys, out_dir)[:2] == (exact, 10)


class Reckoner:
    """In place of a model: adds one digit and one digit, but says 9 for the last digit of `wrong`,
    or goes on where the line should end."""

    def __init__(self, tokenizer, wrong, endless=()):
        self.tokenizer, self.wrong, self.endless = tokenizer, wrong, endless

    def generate(self, prompts, n, temperature):
        assert n == 3 and temperature == 0
        rows = []
        for prompt in (decode(self.tokenizer, row) for row in prompts.tolist()):
            a, b = int(prompt[0]), int(prompt[2])
            answer = f"{a + b:02}"[::-1] + "\n"
            if prompt in self.wrong:
                answer = "9" + answer[1:]
            if prompt in self.endless:
                answer = answer[:2] + "0"
            rows.append(self.tokenizer.encode(prompt + answer).astype("int64"))
        return torch.tensor([row.tolist() for row in rows])


def test_each_wrong_sum_is_counted_and_shown(run, tmp_path, capsys, monkeypatch):
    out_dir = run(max_iters=1)
    monkeypatch.setattr(add, "BATCH", 4)  # so that the last batch is a smaller one
    meta, bins = load_bins(tmp_path / "addition")
    tokenizer = tokenizer_from_meta(meta)
    lines = [line for line in decode(tokenizer, bins["val"]).splitlines() if line[4] != "9"]
    prompts = [line[:4] for line in lines]

    def use(wrong, endless=()):
        monkeypatch.setattr(add, "load_model",
                            lambda *_: (Reckoner(tokenizer, wrong, endless), tokenizer))

    use([])
    assert counted(capsys, out_dir) == (10, 10, [])
    use(prompts[1:3], prompts[3:4])
    exact, total, shown = counted(capsys, out_dir)
    assert (exact, total, len(shown)) == (7, 10, 3)
    assert f"  {prompts[1]}9{lines[1][5]}, but it is {lines[1][4:]}" in shown
    use(prompts[:7])
    exact, _, shown = counted(capsys, out_dir)
    assert (exact, len(shown)) == (3, add.SHOWN)


def test_sums_other_than_those_of_the_training_are_not_counted(run, mistake, tmp_path):
    out_dir = run(max_iters=1)
    made(tmp_path, "--digits=1", "--no-reverse")
    assert "is not what the model" in mistake(add.main, f"--out_dir={out_dir}")


def test_a_run_on_another_text_is_refused(tiny, mistake, tmp_path):
    train.main(tiny(max_iters=1))
    assert "was not trained on sums" in mistake(add.main, f"--out_dir={tmp_path / 'out'}")
    assert "there is no checkpoint" in mistake(add.main, f"--out_dir={tmp_path / 'nothing'}")
    assert "unknown setting 'out'" in mistake(add.main, "--out=x")
