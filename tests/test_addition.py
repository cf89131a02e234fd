"""pytest tests/test_addition.py - sums: how they are made, held out and counted"""

import re

import add
import pytest
import torch

import prepare
import train
from internals import dataset
from prepare import tokenizer_from_meta


def made(folder, *options):
    """Prepare sums there; the lines of train.bin and of val.bin."""
    prepare.main(["addition", f"--data_dir={folder}", *options])
    data = dataset.load(folder / "addition")
    tokenizer = tokenizer_from_meta(data.meta)
    return [tokenizer.decode(ids).splitlines() for ids in (data.train, data.val)]


def problems(lines):
    """The sums in these lines, the same one for a+b and b+a."""
    return {frozenset(line.split("=")[0].split("+")) for line in lines}


@pytest.mark.parametrize("digits, train, val", [
    (1, "9b4527e896dde647", "fdefa46698c510b1"), (2, "60d7aebd3c47d0f7", "dcc1482321b3464b")])
def test_every_sum_is_there_once_and_right_and_a_tenth_is_held_out_in_both_orders(
        tmp_path, digits, train, val):
    trained, held_out = made(tmp_path, f"--digits={digits}")
    lines = trained + held_out
    pattern = rf"(\d{{{digits}}})\+(\d{{{digits}}})=(\d{{{digits + 1}}})"
    found = set()
    for line in lines:
        a, b, total = re.fullmatch(pattern, line).groups()
        assert int(a) + int(b) == int(total[::-1])
        found.add((a, b))
    assert len(found) == len(lines) == 100**digits
    assert lines != sorted(lines) and len(held_out) == 100**digits // 10
    assert not problems(trained) & problems(held_out)
    meta = dataset.load(tmp_path / "addition").meta  # the bits of every earlier version
    assert meta["train_sha256"].startswith(train) and meta["val_sha256"].startswith(val)


def test_sums_can_be_written_in_the_usual_order(tmp_path):
    trained, held_out = made(tmp_path, "--digits=1", "--reverse=False")
    assert sorted(trained + held_out)[7] == "0+7=07"
    command = dataset.load(tmp_path / "addition").meta["command"]
    assert command.endswith(" --digits=1 --reverse=False")


# ---- the count


@pytest.fixture
def sums(tiny, tmp_path):
    """The folder of a run on sums of one digit."""
    made(tmp_path, "--digits=1")
    train.main(tiny(dataset="addition", data_dir=tmp_path, block_size=7, align=7, max_iters=1))
    return tmp_path / "out"


def test_an_answer_is_what_the_model_says_token_by_token(sums, tmp_path, monkeypatch):
    model, tokenizer = add.load_model("resume", sums, torch.device("cpu"))
    lines = tokenizer.decode(dataset.load(tmp_path / "addition").val).splitlines(keepends=True)
    expected = []
    for line in lines:
        said = line[:4]
        while len(said) < 7:
            ids = torch.tensor(tokenizer.encode(said))[None]
            said += tokenizer.chars[model(ids)[0][0, -1].argmax()]
        expected.append(said)
    monkeypatch.setattr(add, "BATCH", 4)  # so that the last batch is a smaller one
    assert list(add.answers(model, tokenizer, lines, torch.device("cpu"))) == expected


def test_each_wrong_sum_is_counted_and_the_first_ones_are_shown(sums, capsys, monkeypatch):
    def answers(model, tokenizer, lines, device):
        return ["9+9=99\n"] * 2 + [line.replace("\n", "0") for line in lines[2:7]] + lines[7:]

    monkeypatch.setattr(add, "answers", answers)
    capsys.readouterr()
    add.main([f"--out_dir={sums}", "--device=cpu"])
    first, *shown = capsys.readouterr().out.splitlines()
    assert first == "exact: 3 of 10 (30.00%)" and len(shown) == add.SHOWN
    assert shown[0].startswith("  9+9=99, but the correct line is ")


@pytest.mark.parametrize("n, end, whole", [(100, "\n", 10), (95, "\n", 9), (93, "", 9)])
def test_the_sums_can_be_a_text_that_is_cut_inside_a_line(tiny, tmp_path, capsys, n, end, whole):
    """Lines of 6 characters. The last tenth are 60, 57 and 56 characters, without a last newline.
    """
    lines = []
    for i in range(n):
        a, b = divmod(i, 10)
        lines.append(f"{a}+{b}={(a + b) % 10}\n")
    (tmp_path / "sums.txt").write_text("".join(lines).removesuffix("\n") + end)
    prepare.main([str(tmp_path / "sums.txt"), f"--data_dir={tmp_path}"])
    train.main(tiny(dataset="sums", data_dir=tmp_path, max_iters=1))
    capsys.readouterr()
    add.main([f"--out_dir={tmp_path / 'out'}", "--device=cpu"])
    assert re.match(rf"exact: \d of {whole} ", capsys.readouterr().out)


def test_sums_other_than_those_of_the_training_are_not_counted(sums, tiny, mistake, tmp_path):
    made(tmp_path, "--digits=1", "--reverse=False")
    assert "is not what the model" in mistake(add.main, f"--out_dir={sums}")
    train.main(tiny(max_iters=1, out_dir=tmp_path / "text"))
    assert "was not trained on sums" in mistake(add.main, f"--out_dir={tmp_path / 'text'}")
