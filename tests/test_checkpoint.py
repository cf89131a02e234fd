"""pytest tests/test_checkpoint.py - checkpoints: written, read, checked, and started from"""

import math
import os
import shutil
import zipfile
from dataclasses import fields, replace

import pytest
import torch
from helpers import TINY_RUN, command_line, equal

import sample
import train
from internals import checks
from internals.checkpoint import first_undamaged, read, write
from internals.checks import Checkpoint
from internals.errors import UserError
from internals.starting import read_model, starting_point
from model import GPT, GPTConfig

MUON = {"optimizer": "muon", "tied": False, "pos": "rope", "muon_lr": 0.01}


@pytest.fixture(scope="module")
def runs(data_dir, tmp_path_factory):
    """{optimizer: folder of a run}, each of four steps."""
    folder = tmp_path_factory.mktemp("runs")
    made = {}
    for name, changes in ("adamw", {}), ("muon", MUON):
        made[name] = folder / name
        settings = TINY_RUN | {"data_dir": data_dir, "out_dir": made[name], "max_iters": 4}
        settings |= changes
        train.main(command_line(settings))
    return made


@pytest.fixture(params=["adamw", "muon"])
def run(runs, request):
    return runs[request.param]


@pytest.fixture
def out(runs, tmp_path):
    """A copy of the AdamW run."""
    return shutil.copytree(runs["adamw"], tmp_path / "out")


@pytest.fixture
def lone(out):
    """The ckpt.pt of a run that has no best.pt."""
    (out / "best.pt").unlink()
    return out / "ckpt.pt"


def raw(path):
    return torch.load(path, weights_only=True)


def resume(out_dir, **settings):
    """The settings and the checkpoint that a resumed run begins with."""
    return begin(out_dir=str(out_dir), init_from="resume", **settings)


def begin(**given):
    """(cfg, model_cfg, checkpoint) of a run with these settings."""
    return starting_point(given, train.TrainConfig)


# ---- written and read


def test_what_is_written_is_read(run, tmp_path):
    before = read(run / "ckpt.pt")
    assert before.step == 4 and before.sequences == 4 * 8 and before.best_step <= 4
    before = replace(before, best_step=3, best_loss=1.5)  # not those of its last step
    write(before, tmp_path / "new" / "again.pt")
    after = read(tmp_path / "new" / "again.pt")
    assert all(equal(getattr(before, f.name), getattr(after, f.name)) for f in fields(Checkpoint))
    assert os.listdir(tmp_path / "new") == ["again.pt"]


def test_an_older_file_has_consumed_steps_of_its_own_size(run, tmp_path):
    content = raw(run / "ckpt.pt")
    del content["sequences"]
    content["config"] |= {"batch_size": 3, "gradient_accumulation_steps": 5}
    content["best_val_loss"] = math.nan
    torch.save(content, tmp_path / "old.pt")
    old = read(tmp_path / "old.pt")
    assert old.sequences == 4 * 3 * 5 and old.best_loss == math.inf


def test_weights_become_float32(run, tmp_path):
    content = raw(run / "ckpt.pt")
    content["model"] = {name: weight.double() for name, weight in content["model"].items()}
    torch.save(content, tmp_path / "wide.pt")
    assert {w.dtype for w in read(tmp_path / "wide.pt").model.values()} == {torch.float32}


# ---- what is refused


REMOVED = object()


def change(*keys, to=REMOVED):
    """A function that changes or removes one entry of a nested container; `to` may be a function of
    it."""
    def apply(content):
        *outer, last = keys
        for key in outer:
            content = content[key]
        if to is REMOVED:
            del content[last]
        elif callable(to):
            content[last] = to(content[last])
        else:
            content[last] = to

    return apply


WTE, FC = "transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"
MOMENT = ("optimizer", 0, "state", 3)
OTHER = "its optimizer is not AdamW as this version has it, or has other parameters"


@pytest.mark.parametrize("damage, message", [
    (change("model", WTE, to=lambda w: w[0]), "size mismatch for transformer.wte.weight"),
    (change("model", WTE, to=torch.zeros(1).expand(41, 16)), "more numbers than are stored"),
    (change("model", "lm_head.weight", to=lambda w: w + 1), "differs from the token embedding"),
    (change("model", FC), 'Missing key(s) in state_dict'),
    (change("model", "transformer.h.0.gate", to=torch.zeros(3)), "Unexpected key(s)"),
    (change("model_args", "n_head"), "model_args has no n_head"),
    (change("model_args", "experts", to=8), "this model.py has no setting 'experts'"),
    (change("meta", "chars", to="abc"), "as many as vocab_size, 41"),
    (change("meta", to=lambda meta: meta | {"chars": meta["chars"] + "Ω", "vocab_size": 42}),
     "its tokenizer has 42 tokens, but its model has 41"),
    (change("meta"), "it has no meta, which says what its tokens mean"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_damaged_field_is_one_line(mistake, lone, damage, message):
    content = raw(lone)
    damage(content)
    torch.save(content, lone)
    line = mistake(train.main, f"--out_dir={lone.parent}", "--init_from=resume", "--max_iters=5")
    assert message in line and "ckpt.pt cannot be used: " in line


@pytest.mark.parametrize("damage, message", [
    (change("config"), "it has no optimizer state"),
    (change("iter_num", to=-1), "it has -1 steps or sequences, which must be a whole number"),
    (change("optimizer", to=[{"state": {}}]), "it has no optimizer state"),
    (change("scaler", to={"scale": 1.0}), "its scaler is not the state of a gradient scaler"),
    (change("config", "optimizer", to="muon"), "its optimizer is not AdamW and Muon as this"),
    (change(*MOMENT, "exp_avg"), OTHER), (change(*MOMENT, "exp_avg", to=torch.zeros(2)), OTHER),
    (change(*MOMENT, "exp_avg", to=torch.zeros(1).expand(64, 16)), OTHER),
    (change(*MOMENT, "step", to=10**400), OTHER),
], ids=lambda value: value if isinstance(value, str) else "")
def test_what_only_a_resume_needs_is_checked_only_by_a_resume(mistake, lone, damage, message):
    """Sampling and new runs work with the optimizer of any program."""
    weights = read(lone).model
    content = raw(lone)
    damage(content)
    torch.save(content, lone)
    line = mistake(train.main, f"--out_dir={lone.parent}", "--init_from=resume", "--max_iters=5")
    assert message in line and " cannot be resumed: " in line
    assert "to start a new run from its weights, set --init_from=" in line
    model, _ = sample.load_model("resume", lone.parent)
    assert equal(dict(model.state_dict()), weights)
    assert equal(begin(init_from=str(lone))[2].model, weights)


@pytest.mark.parametrize("name", ["n_layer", "vocab_size", "n_embd", "block_size"])
def test_an_absurd_size_takes_no_memory(run, tmp_path, name):
    content = raw(run / "ckpt.pt")
    content["model_args"][name] = 10**9
    if name == "n_embd":  # a view that repeats one number has any shape
        for key, w in content["model"].items():
            content["model"][key] = torch.zeros(1).expand([10**9] * w.dim())
    torch.save(content, tmp_path / "ckpt.pt")
    with pytest.raises(UserError):
        read(tmp_path / "ckpt.pt")


def test_what_is_no_checkpoint_is_refused(mistake, lone):
    lone.write_bytes(b"To be, or not to be")
    message = "not a checkpoint (File is not a zip file)"
    assert message in mistake(train.main, f"--out_dir={lone.parent}", "--init_from=resume")
    assert message in mistake(sample.main, f"--out_dir={lone.parent}")


def test_a_flipped_bit_in_a_tensor_is_noticed_and_the_other_file_is_used(out, capsys):
    content = bytearray((out / "ckpt.pt").read_bytes())
    tensor = raw(out / "ckpt.pt")["model"][FC].numpy().tobytes()
    content[content.index(tensor) + 40] ^= 1
    (out / "ckpt.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"ckpt.pt is damaged.*the checksum of .* is wrong"):
        read(out / "ckpt.pt")
    found = first_undamaged(out, "ckpt.pt", "best.pt")
    warning, = capsys.readouterr().err.splitlines()
    assert warning.startswith("warning: ") and f"using {out / 'best.pt'} instead" in warning
    assert equal(found.model, read(out / "best.pt").model)


def test_a_file_that_would_grow_when_it_is_read_is_refused(out):
    with zipfile.ZipFile(out / "best.pt") as file:
        with zipfile.ZipFile(out / "ckpt.pt", "w", zipfile.ZIP_DEFLATED) as packed:
            for name in file.namelist():
                packed.writestr(name, file.read(name))
    with pytest.raises(UserError, match="is compressed"):
        read(out / "ckpt.pt")


def test_a_file_that_cannot_grow_is_one_line_and_the_old_one_stays(out, mistake):
    resource = pytest.importorskip("resource")
    before = (out / "best.pt").read_bytes()
    limit, highest = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores its signal
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, highest))
    try:
        line = mistake(lambda _: write(read(out / "ckpt.pt"), out / "best.pt"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, highest))
    assert line.startswith("error: [Errno 27]") and "best.pt" in line
    assert (out / "best.pt").read_bytes() == before and not list(out.glob("*.tmp"))


# ---- where a run starts


def test_a_setting_of_the_model_that_an_older_checkpoint_lacks_has_its_default(lone, mistake):
    content = raw(lone)
    del content["model_args"]["qk_norm"]
    torch.save(content, lone)
    for init_from in "resume", lone:
        line = mistake(train.main, f"--out_dir={lone.parent}", f"--init_from={init_from}",
                       "--qk_norm=True", "--max_iters=5")
        assert "qk_norm=True, but the model to start from has False: leave it out" in line
    assert resume(lone.parent, qk_norm=False)[1].qk_norm is False


def test_a_setting_of_the_run_that_an_older_checkpoint_lacks_is_told(out, capsys):
    content = raw(out / "ckpt.pt")
    del content["config"]["patience"]
    content["config"]["magic"] = 3
    torch.save(content, out / "ckpt.pt")
    cfg, *_ = resume(out, patience=5, dropout=0.2, log_interval=1)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == ["patience changes from 0 to 5",
                                        "dropout changes from 0.1 to 0.2"]
    assert "does not know these settings of the checkpoint, and ignores them: magic" in printed.err
    assert cfg.patience == 5 and cfg.learning_rate == 0.01


@pytest.mark.parametrize("name, value, given", [
    ("learning_rate", "fast", 0.1), ("batch_size", 0, 4), ("seed", torch.zeros(2), 1),
])
def test_a_setting_of_the_wrong_type_in_a_checkpoint_is_one_line(out, mistake, name, value, given):
    content = raw(out / "ckpt.pt")
    content["config"][name] = value
    torch.save(content, out / "ckpt.pt")
    line = mistake(train.main, f"--out_dir={out}", "--init_from=resume")
    assert name in line and "a setting that is not given is that of the checkpoint" in line
    cfg, *_ = resume(out, **{name: given})
    assert getattr(cfg, name) == given  # what is given now counts


class WithGate(GPT):
    """A model.py that a learner has changed."""

    def __init__(self, config):
        super().__init__(config)
        self.gate = torch.nn.Parameter(torch.ones(3))


def test_a_model_py_that_was_changed_reads_its_own_checkpoints(tiny, lone, mistake, monkeypatch):
    out = lone.parent
    with monkeypatch.context() as patch:
        patch.setattr(checks, "GPT", WithGate)
        patch.setattr(train, "GPT", WithGate)
        assert 'Missing key(s) in state_dict: "gate"' in mistake(sample.main, f"--out_dir={out}")
        train.main(tiny(max_iters=1))
        assert read(lone).model["gate"].shape == (3,)
        assert resume(out, max_iters=2)[2].optimizer


def test_auto_resumes_from_a_lone_best(out):
    (out / "ckpt.pt").unlink()
    cfg, _, start = begin(out_dir=str(out), init_from="auto")
    assert cfg.init_from == "resume" and start.step == read(out / "best.pt").step > 0
    cfg, model_cfg, start = begin(out_dir=str(out / "new"), init_from="auto")
    assert cfg.init_from == "scratch" and start.model is None and model_cfg == GPTConfig()


def test_a_file_can_be_named(out, mistake):
    ckpt = out / "ckpt.pt"
    named = read_model(ckpt)
    assert equal(named.model, read(ckpt).model) and named.optimizer is None and named.step == 0
    assert first_undamaged(ckpt, "best.pt").step == 4
    line = mistake(train.main, f"--out_dir={ckpt}", "--init_from=resume")
    assert f"out_dir={ckpt} is not a folder: give the name of one" in line
    assert "does not exist" in mistake(sample.main, f"--init_from={out / 'bets.pt'}")
    (out / "model.safetensors").write_bytes(b"")
    assert "give its folder" in mistake(sample.main, f"--init_from={out / 'model.safetensors'}")


def test_a_run_starts_from_the_best_model_of_a_folder_and_resumes_the_last(out):
    best = raw(out / "best.pt")
    best["model"][FC] += 1
    torch.save(best, out / "best.pt")
    assert equal(read_model(out).model[FC], best["model"][FC])
    assert equal(resume(out)[2].model[FC], raw(out / "ckpt.pt")["model"][FC])


def test_a_folder_whose_runs_were_put_aside_names_them(lone, mistake):
    out = lone.parent
    newest = out.parent / "out-2"
    for time, folder in enumerate((out / "previous-2", out / "previous-10", newest)):
        folder.mkdir()
        shutil.copy(lone, folder)
        os.utime(folder / "ckpt.pt", (time, time))
    (out / "previous-11").mkdir()  # without a checkpoint
    lone.unlink()
    named = f"; there is one in {out / 'previous-2'}, {out / 'previous-10'}, {newest}"
    assert named in mistake(train.main, f"--out_dir={out}", "--init_from=resume")
    assert (out / "config.json").exists()  # which is not taken for one of Hugging Face's
    assert named in mistake(sample.main, f"--init_from={out}")
