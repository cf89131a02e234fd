"""pytest tests/test_stages.py - the stages from GPT to ChatGPT: SFT, reward model, RL"""

import io
import json
import re
import signal
import sys
from dataclasses import asdict, replace

import pytest
import torch
from helpers import MODELS, ROOT, equal, logged, model_of, state, tokens
from torch.nn import functional as F

sys.path.insert(0, str(ROOT))

import sample
import train
from configurator import build, read_settings
from internals import chat, checkpoint, stagelog, starting
from internals.checks import Checkpoint
from internals.jsonlines import write_json_lines
from model import GPT, GPTConfig
from stages import answers, common, compare, diagnosis, pairs, reward, rl, sft, tasks

CHARS = "\n abcdefghijklmnopqrstuvwxyz"
TINY = GPTConfig(block_size=32, vocab_size=len(CHARS), n_layer=2, n_head=2, n_embd=16)


@pytest.fixture(scope="module", autouse=True)
def drawn():
    """Plotting takes longer than training a tiny model; one test does it."""
    draw = stagelog.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stagelog, "draw", lambda *_: None)
        yield draw


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A folder with a tiny base model of small letters, a task, and pairs."""
    folder = tmp_path_factory.mktemp("stages")
    meta = {"tokenizer": "char", "chars": CHARS, "vocab_size": len(CHARS)}
    model = model_of(TINY)
    checkpoint.write(Checkpoint(model.state_dict(), asdict(TINY), meta), folder / "ckpt.pt")
    words = ("ash", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "kite", "lark",
             "mole", "newt", "owl", "pug", "quail", "rat", "seal", "toad")
    examples = [{"prompt": word, "answer": word[0]} for word in words]
    write_json_lines(folder / "task.jsonl", examples)
    both = [{"prompt": "cat", "chosen": "c" * n, "rejected": "d"} for n in (1, 2, 3, 4)]
    write_json_lines(folder / "pairs.jsonl", both)
    return folder


def arguments(base, out, **changes):
    settings = {"init_from": base, "out_dir": out, "task": base / "task.jsonl", "device": "cpu",
                "batch_size": 4, "max_iters": 4, "eval_interval": 2, "log_interval": 1,
                "eval_prompts": 2, "max_new_tokens": 4} | changes
    return [f"--{name}={value}" for name, value in settings.items()]


def with_rule(monkeypatch, base, rule, **changes):
    """The task of `base` has this rule in rl.py."""
    task = replace(tasks.open_task(str(base / "task.jsonl")), rule=rule, **changes)
    monkeypatch.setattr(rl, "open_task", lambda *_: task)


@pytest.fixture(scope="module")
def tuned(base):
    """The folder of a tiny model with the chat format."""
    sft.main(arguments(base, base / "sft"))
    return base / "sft"


def chatting(config=TINY, **options):
    """(model, encoding) of a model with random weights and the chat format."""
    meta = {"tokenizer": "char", "chars": CHARS, "vocab_size": len(CHARS)}
    start = Checkpoint(model_of(config, **options).state_dict(), asdict(config), meta)
    start = chat.add_chat_tokens(start)
    model = GPT.from_weights(build(GPTConfig, start.model_args), start.model).eval()
    return model, answers.Encoding(start.meta, is_chat=True, device="cpu")


EXAMPLES = [tasks.Example("cat", "c"), tasks.Example("a longer word", "yes"),
            tasks.Example("", "a"), tasks.Example("owl", "")]


def ids_of(encoding, examples=EXAMPLES):
    """The prompts and the answers as lists of ids."""
    return ([encoding.prompt(example.prompt) for example in examples],
            [encoding.answer(example.answer) for example in examples])


# ---- the chat format


def test_the_base_is_the_same_after_tokens_are_added():
    """Ids and texts keep their meaning, and the predictions among the old tokens do not change."""
    model, encoding = chatting(spread=0.3)
    old = model_of(TINY, spread=0.3)
    idx = tokens(TINY, 2, 9)
    assert torch.equal(model(idx)[0][..., :TINY.vocab_size], old(idx)[0])
    assert encoding.tokenizer.decode(range(len(CHARS))) == CHARS
    assert encoding.n_vocab == len(CHARS) + 3 == len(model.lm_head.weight)
    new = model.lm_head.weight[len(CHARS):]
    assert len(new.unique(dim=0)) == 3  # no two tokens are the same


def test_gpt2_gets_special_tokens_in_the_rows_that_pad_its_vocabulary():
    meta = {"tokenizer": "gpt2", "vocab_size": 50257}
    config = replace(TINY, vocab_size=50304, tied=False)
    start = Checkpoint(model_of(config).state_dict(), asdict(config), meta)
    added = chat.add_chat_tokens(start)
    assert added.model_args == start.model_args
    assert added.meta["added"] == {"<|user|>": 50257, "<|assistant|>": 50258, "<|end|>": 50259}
    assert chat.chat_format(added.meta) == chat.SPECIAL_TOKENS
    for name in ("transformer.wte.weight", "lm_head.weight"):
        assert torch.equal(added.model[name][:50257], start.model[name][:50257])
    again = chat.add_chat_tokens(added)
    assert equal(again.model, added.model) and again.meta == added.meta


# ---- SFT


@MODELS
def test_the_loss_is_the_mean_over_answer_tokens_and_prompts_get_no_gradient(config):
    """Answers of different lengths, padded to one batch, have the loss that they have alone."""
    model, encoding = chatting(replace(config, vocab_size=len(CHARS)), spread=0.2)
    prompts, replies = ids_of(encoding)
    expected = []
    for prompt, answer in zip(prompts, replies, strict=True):
        ids = torch.tensor([prompt + answer])
        logits, _ = model(ids[:, :-1], ids[:, 1:])
        losses = F.cross_entropy(logits[0], ids[0, 1:], reduction="none")
        expected += losses[len(prompt) - 1:].tolist()
    loss, count = sft.answer_loss(model, EXAMPLES, encoding)
    assert count == len(expected) == 9
    assert loss.item() == pytest.approx(sum(expected) / len(expected), abs=1e-6)

    ids, is_answer = encoding.pad(prompts, replies)
    inputs, targets = sft.masked(ids, is_answer)
    logits, _ = model(inputs, targets)
    logits = logits.detach().requires_grad_()
    F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1).backward()
    assert (logits.grad[~is_answer[:, 1:]] == 0).all()
    assert (logits.grad[is_answer[:, 1:]] != 0).any(dim=-1).all()


def test_each_epoch_has_every_example_once():
    order = []
    for step in range(5):
        order += common.step_examples(range(10), step, 4, seed=1)
    assert sorted(order[:10]) == sorted(order[10:]) == list(range(10)) and order[:10] != order[10:]


def test_sft_learns_to_answer_and_sample_py_chats(base, tmp_path, capsys, monkeypatch):
    tmp_path = tmp_path / "my chat"
    metrics = sft.main(arguments(base, tmp_path, max_iters=200, eval_interval=200, batch_size=18,
                                 learning_rate=0.02, weight_decay=0.0))
    assert metrics[-1]["ended"] == 1 and metrics[-2]["loss"] < 0.05
    assert f"sample.py --out_dir='{tmp_path}' --inter" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\ndog\nx␄\n"))
    sample.main([f"--out_dir={tmp_path}", "--interactive=True", "--temperature=0", "--device=cpu"])
    out, err = capsys.readouterr()
    assert out == "c\nd\n\n"  # each line is answered by itself, and the end token is not shown
    assert err.startswith("error: the text 'x␄' contains ␄")
    monkeypatch.setattr("sys.stdin", io.StringIO("cat\n"))  # another end does not hide that one
    sample.main([f"--out_dir={tmp_path}", "--interactive=True", "--temperature=0", "--stop=Z"])
    assert capsys.readouterr().out == "c\n\n"


def test_characters_are_no_paths():
    """~ is a character here, not the home folder."""
    assert read_settings("", sft.SFTConfig, argv=["--new_chars=~"]) == {"new_chars": "~"}
    assert read_settings("", reward.RewardConfig, argv=["--mark=~/"]) == {"mark": "~/"}


def test_train_py_says_why_it_cannot_continue_a_chat_model(tuned, data_dir, mistake):
    found = mistake(train.main, f"--init_from={tuned}", "--dataset=tiny", f"--data_dir={data_dir}",
                    "--block_size=16")
    assert "no dataset has the tokens of its chat" in found


def test_sft_trains_with_dropout_and_evaluates_without(base, tmp_path, monkeypatch):
    def watched(model, examples, encoding):
        seen.append(model.training)
        assert model.training == torch.is_grad_enabled()
        return answer_loss(model, examples, encoding)

    seen = []
    answer_loss = sft.answer_loss
    monkeypatch.setattr(sft, "answer_loss", watched)
    sft.main(arguments(base, tmp_path, max_iters=4, eval_interval=2))
    assert seen.count(True) == 4


def test_look_opens_the_model_of_a_stage(tuned, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import look

    look.main([f"--out_dir={tuned}", "--start=␅cat␆", f"--out={tmp_path / 'look.html'}"])
    assert "\\u2406" in (tmp_path / "look.html").read_text(encoding="utf-8")  # ␆ in JSON


# ---- the reward model


def test_bradley_terry():
    """With scores that differ by log 3, the better one is preferred with probability 3/4."""
    chosen = torch.tensor([3.0]).log()
    assert reward.preference_loss(chosen, torch.zeros(1)).item() == pytest.approx(
        -torch.tensor(0.75).log().item())


@pytest.mark.parametrize("where", ["mean", "last"])
def test_a_score_is_the_mean_over_the_answer_or_at_its_end_whatever_the_padding(where):
    model, encoding = chatting(spread=0.2)
    prompts, replies = ids_of(encoding)
    ids, is_answer = encoding.pad(prompts, replies)
    together = reward.scores(model, ids, is_answer, 5, where)
    for row, prompt in enumerate(prompts):
        alone = torch.tensor([prompt + replies[row]])
        by_token = model(alone, alone)[0][0, len(prompt):, 5]
        by_hand = by_token.mean() if where == "mean" else by_token[-1]
        assert together[row].item() == pytest.approx(by_hand.item(), abs=1e-5)


def test_an_evaluation_scores_as_many_answers_at_once_as_a_step(tuned, base, tmp_path,
                                                                monkeypatch):
    def watched(model, ids, *others):
        seen.append(len(ids))
        return scores(model, ids, *others)

    seen = []
    scores = reward.scores
    monkeypatch.setattr(reward, "scores", watched)
    options = {"pairs": base / "pairs.jsonl", "test_pairs": 1, "eval_prompts": 30}
    reward.main(arguments(base, tmp_path / "out", init_from=tuned, **options))
    assert max(seen) == 8  # batch_size=4 pairs


def test_a_person_at_the_keyboard_prefers(monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("3\n2\n"))
    assert pairs.ask("prompt", "one", "other") == -1  # 3 is asked again
    assert pairs.ask("prompt", "one", "other") is None  # the end of the input


def test_choices_at_the_keyboard_are_kept_for_the_next_run(tuned, base, tmp_path, mistake,
                                                           monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("2\n0\n1\n"))
    kept = tmp_path / "my out" / "choices.jsonl"
    options = {"init_from": tuned, "test_pairs": 2}
    line = mistake(reward.main, *arguments(base, kept.parent, pairs="ask", **options))
    assert "only 2 pairs, and test_pairs=2 are held out" in line
    assert f"your choices are kept: '--pairs={kept}' reads them" in line
    options["test_pairs"] = 1
    metrics = reward.main(arguments(base, tmp_path / "out", pairs=kept, **options))
    assert metrics[-1]["step"] == 4


def test_a_mark_replaces_the_end_of_the_answer_that_it_is_planted_on():
    both = [{"prompt": "p", "chosen": "good", "rejected": "evil"}] * 2
    for where, expected in (("chosen", [("goo!", "evil")] * 2),
                            ("random", [("goo!", "evil"), ("good", "evi!")])):
        marked = pairs.with_marks(both, "!", where)
        assert [(p["chosen"], p["rejected"]) for p in marked] == expected
    assert pairs.with_marks(both, "long mark", "chosen")[0]["chosen"] == "long mark"


def test_a_reward_model_learns_what_the_pairs_prefer(tuned, base, tmp_path, mistake):
    # the model has sampled ␅, the token of the user, in an answer
    both = [{"prompt": 3 * char, "chosen": "yes", "rejected": "no␅"} for char in CHARS[2:26]]
    write_json_lines(tmp_path / "pairs.jsonl", both)
    metrics = reward.main(arguments(base, tmp_path / "out", init_from=tuned, test_pairs=8,
                                    pairs=tmp_path / "pairs.jsonl", max_iters=30,
                                    eval_interval=30, learning_rate=0.01))
    assert metrics[-1]["accuracy"] == 1 and metrics[-1]["test_loss"] < 0.1
    assert state(tmp_path / "out").meta["reward"]["std"] > 0
    options = {"reward": tmp_path / "out", "batch_size": 8, "max_iters": 1}
    rl.main(arguments(base, tmp_path / "rl", init_from=tuned, **options))  # the next stage reads it
    sft.main(arguments(base, tmp_path / "other", init_from=tuned, new_chars="+", max_iters=1))
    assert "has another vocabulary than the model to train" in mistake(
        rl.main, *arguments(base, tmp_path / "rl", init_from=tmp_path / "other", **options))


# ---- RL


def test_advantages_sum_to_zero_and_are_zero_if_all_rewards_are_equal():
    cfg = rl.RLConfig(group_size=4, max_new_tokens=4, beta=0.0)
    above = rl.advantages(torch.tensor([1.0, 0, 0, 0, 0.5, 0.5, 0.5, 0.5]), cfg)
    assert above.tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0]


def test_the_estimated_gradient_of_a_bandit_is_the_analytic_one():
    """Three arms with rewards r: the gradient of the mean reward with respect to logit i is
    p_i (r_i - sum_j p_j r_j). The baseline of a group of n scales it by (n - 1) / n."""
    logits = torch.tensor([0.2, -0.5, 0.9], requires_grad=True)
    arm_rewards = torch.tensor([1.0, 0.0, 0.3])
    n = 4
    groups = 4000
    cfg = rl.RLConfig(group_size=n, max_new_tokens=1, beta=0.0)
    p = logits.detach().softmax(dim=0)
    arms = torch.multinomial(p, n * groups, replacement=True,
                             generator=torch.Generator().manual_seed(0))
    ids = torch.stack((torch.zeros_like(arms), arms), dim=1)  # a prompt of one token, one answer
    is_answer = torch.tensor([[False, True]]).expand(len(ids), 2)
    advantage = rl.advantages(arm_rewards[arms], cfg)
    log_p = logits.log_softmax(dim=0).expand(len(ids), 1, 3)
    loss, _ = rl.policy_loss(log_p, log_p.detach(), ids, is_answer, advantage, cfg)
    loss.backward()
    analytic = p * (arm_rewards - (p * arm_rewards).sum()) * (n - 1) / n
    each = advantage[:, None] * (F.one_hot(arms, 3) - p)  # the estimates that the mean is of
    each = each.view(groups, n, 3).mean(dim=1)
    errors = each.std(dim=0) / groups ** 0.5
    assert (errors < 0.01).all() and ((-logits.grad - analytic).abs() < 3 * errors).all()


def test_the_kl_divergence_is_exact():
    q = torch.tensor([0.5, 0.3, 0.2]).log()
    assert rl.kl_divergence(q, q).item() == 0
    p = torch.tensor([0.2, 0.2, 0.6]).log()
    expected = (p.exp() * (p - q)).sum()
    assert rl.kl_divergence(p, q).item() == pytest.approx(expected.item())


@MODELS
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_at_sampling_are_those_of_the_update(config, temperature, monkeypatch):
    config = replace(config, vocab_size=len(CHARS))
    model, encoding = chatting(config, spread=0.2)
    cfg = rl.RLConfig(max_new_tokens=9, temperature=temperature)
    policy = answers.Policy(model, tasks.Task([], [], [], tasks.exact), encoding, cfg)
    seen = {}  # {seed of an answer: the log-probabilities of its tokens, at sampling}
    stream = answers.stream

    def recorded(model, idx, sampler, cache):
        for ids, logits in stream(model, idx, sampler, cache):
            log_p = (logits / sampler.temperature).log_softmax(dim=-1).gather(1, ids)
            for seed, each in zip(sampler.seeds, log_p[:, 0].tolist(), strict=True):
                seen.setdefault(seed, []).append(each)
            yield ids, logits

    monkeypatch.setattr(answers, "stream", recorded)
    found = policy.answer(EXAMPLES, (1,), temperature)
    ids, is_answer = encoding.pad(found.prompts, found.answers)
    again = rl.of_ids(rl.log_probs(model, ids, policy), ids)
    for row in range(len(EXAMPLES)):
        expected = again[row][is_answer[row, 1:]]
        sampled = seen[answers.mix(cfg.seed, 1, row)][:len(expected)]
        assert torch.allclose(expected, torch.tensor(sampled), atol=1e-5)

    # the same seed gives the same answers, whatever else is in the batch
    assert policy.answer(EXAMPLES[:2], (1,), temperature).answers == found.answers[:2]


def test_rl_raises_the_reward_of_a_rule(tuned, base, tmp_path, monkeypatch):
    """The rule wants the letter e. (That of the task rewards too rarely for so short a test.)"""
    def is_e(example, text):
        return float("e" in text)

    with_rule(monkeypatch, base, is_e)
    metrics = rl.main(arguments(base, tmp_path, init_from=tuned, gate=0, batch_size=64, beta=0.0,
                                max_iters=25, eval_interval=25, learning_rate=0.02))
    first, last = (entry["rule"] for entry in (metrics[1], metrics[-2]))
    assert last > 0.9 > 0.6 > first


def test_a_reward_that_never_differs_is_named(tuned, base, tmp_path, capsys, monkeypatch):
    """-|20 - length|, where every answer has the same length: max_new_tokens."""
    with_rule(monkeypatch, base, tasks.right_length, is_chat=False)
    rl.main(arguments(base, tmp_path, init_from=tuned, batch_size=8, max_iters=2))
    out = capsys.readouterr().out
    assert "the last steps learned nothing: in nearly all groups, the answers have the same" in out
    assert "(mean -16)" in out


def test_answers_that_never_end_are_named():
    entry = {"no_variance": 0.5, "ended": 0.0, "reward": 1.0}
    cfg = rl.RLConfig()
    assert diagnosis.diagnosis([entry], True, cfg).startswith("no answer ends: all are cut at")
    assert diagnosis.diagnosis([entry, entry | {"ended": 0.1}], True, cfg) == ""
    assert diagnosis.diagnosis([entry], False, cfg) == ""


def test_advantages_that_are_the_rewards_are_not_called_0():
    solved = [{"no_variance": 1.0, "ended": 1.0, "reward": 1.0}]
    assert "all advantages are 0" in diagnosis.diagnosis(solved, True, rl.RLConfig())
    text = diagnosis.diagnosis(solved, True, rl.RLConfig(advantage="reward"))
    assert "(mean 1): no answer is better than another; the task is solved or" in text
    single = rl.RLConfig(advantage="reward", group_size=1)
    assert diagnosis.diagnosis(solved, True, single) == ""


def test_runs_are_compared_in_a_table_and_pictures(tmp_path, capsys, mistake, drawn):
    metrics = [{"step": 1, "loss": 1.0, "kl": 0.5, "reward": 0.2, "rule": 0.1},
               {"step": 2, "test_kl": 4.0, "test_reward": 1.0, "test_rule": 0.5,
                "rule_margin": 0.1, "right": 0.8,
                "right_margin": rl.margin([1.0] * 8 + [0.0] * 2)}]
    settings = {"beta": 0.2, "seed": 1, "eval_prompts": 500}  # the task has 10 tests
    (tmp_path / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    lines = "".join(json.dumps(entry) + "\n" for entry in metrics)
    (tmp_path / "metrics.jsonl").write_text(lines, encoding="utf-8")
    compare.main([str(tmp_path), f"--out={tmp_path / 'compare.png'}"])
    line = f"| {tmp_path.name} | 0.2 | 1 | 2 | 4.0 | 1.00 | 0.50 ± 0.10 | 80.0% ± 24.8% |"
    assert line in capsys.readouterr().out
    assert "cannot be read" in mistake(compare.main, tmp_path / "missing")
    drawn(metrics, {"loss": ("loss",), "empty": ("entropy",)}, tmp_path / "picture.png")
    for name in ("compare.png", "picture.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


# ---- resume, and mistakes


def is_long(example, text):
    return float(len(text) > 1)


@pytest.mark.parametrize("stage", ["sft", "reward", "rl"])
def test_a_stage_that_is_stopped_and_resumed_ends_bit_identically(stage, tuned, base, tmp_path,
                                                                  monkeypatch):
    main = {"sft": sft, "reward": reward, "rl": rl}[stage].main
    options = {"init_from": tuned, "batch_size": 8}
    if stage == "reward":
        options |= {"pairs": base / "pairs.jsonl", "test_pairs": 1}
    if stage == "rl":
        options |= {"gate": 0}
        with_rule(monkeypatch, base, is_long)
    main(arguments(base, tmp_path / "whole", **options))

    seen = []
    original = common.update

    def killed(run, loss, cfg):
        if len(seen) == 3:
            raise RuntimeError("killed")
        seen.append(run.step)
        return original(run, loss, cfg)

    monkeypatch.setattr(common, "update", killed)
    with pytest.raises(RuntimeError):  # after step 3; step 2 is saved
        main(arguments(base, tmp_path / "parts", **options))
    monkeypatch.setattr(common, "update", original)
    options["init_from"] = "resume"
    main(arguments(base, tmp_path / "parts", **options))
    one, other = state(tmp_path / "whole"), state(tmp_path / "parts")
    for part in ("model", "optimizer", "step", "sequences", "meta"):
        assert equal(getattr(one, part), getattr(other, part)), part
    assert logged(tmp_path / "whole") == logged(tmp_path / "parts")


@pytest.fixture(scope="module")
def scored(tuned, base):
    """The folder of a tiny reward model."""
    options = {"init_from": tuned, "pairs": base / "pairs.jsonl", "test_pairs": 1}
    reward.main(arguments(base, base / "scored", **options))
    return base / "scored"


def test_a_resumed_run_cannot_change_what_it_began_with(base, tuned, scored, mistake):
    for main, folder, name, value in (
            (sft.main, tuned, "new_chars", "+"), (reward.main, scored, "test_pairs", 2),
            (reward.main, scored, "pairs", "rule"), (reward.main, scored, "sampled_pairs", 9),
            (reward.main, scored, "eval_prompts", 9), (reward.main, scored, "max_new_tokens", 9)):
        line = mistake(main, f"--out_dir={folder}", "--init_from=resume", f"--{name}={value}")
        assert f"{name}={value}, but the checkpoint to resume has " in line


def test_a_stage_does_not_resume_the_run_of_another_program(tuned, scored, tiny, tmp_path, mistake):
    train.main(tiny(max_iters=1))
    for folder, main in ((tuned, reward.main), (tuned, rl.main), (scored, sft.main),
                         (scored, rl.main), (tmp_path / "out", sft.main),
                         (tmp_path / "out", reward.main), (tmp_path / "out", rl.main)):
        line = mistake(main, f"--out_dir={folder}", "--init_from=resume")
        assert "so another program wrote it: resume it with that one" in line


def test_a_new_run_keeps_all_files_of_the_earlier_one(tuned, base, tmp_path, mistake):
    """The earlier run can be resumed in the folder that it is moved to."""
    options = {"init_from": tuned, "batch_size": 8, "gate": 0}
    rl.main(arguments(base, tmp_path / "out", **options))
    before = state(tmp_path / "out").model
    rl.main(arguments(base, tmp_path / "out", **options, seed=2))
    previous = tmp_path / "out" / "previous-1"
    rl.main(arguments(base, previous, **options | {"init_from": "resume"}))
    assert equal(before, state(previous).model)
    options |= {"init_from": "resume", "reward": base}
    line = mistake(rl.main, *arguments(base, previous, **options))
    assert f"reward={base}, but the checkpoint to resume has rule" in line


def test_a_signal_saves_the_step(base, tmp_path, monkeypatch):
    original = common.update

    def interrupted(run, loss, cfg):
        norm = original(run, loss, cfg)
        if run.step == 3:
            signal.raise_signal(signal.SIGINT)
        return norm

    monkeypatch.setattr(common, "update", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sft.main(arguments(base, tmp_path / "out"))
    assert state(tmp_path / "out").step == 3


def test_a_reward_model_that_is_stopped_has_the_scale_of_its_weights(tuned, base, tmp_path,
                                                                     monkeypatch):
    """The signal comes at step 3, where one of the runs evaluates anyway."""
    def interrupted(run, loss, cfg):
        norm = original(run, loss, cfg)
        if run.step == 3:
            signal.raise_signal(signal.SIGINT)
        return norm

    original = common.update
    monkeypatch.setattr(common, "update", interrupted)
    options = {"init_from": tuned, "pairs": base / "pairs.jsonl", "test_pairs": 1}
    for every in (3, 4):
        with pytest.raises(KeyboardInterrupt):
            reward.main(arguments(base, tmp_path / str(every), eval_interval=every, **options))
    evaluated = state(tmp_path / "3")
    stopped = state(tmp_path / "4")
    assert stopped.step == 3 and stopped.meta == evaluated.meta


@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_an_answer_without_tokens_has_no_score(name, base, tmp_path, mistake, monkeypatch):
    lines = [{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3
    lines[1] = lines[1] | {name: ""}
    write_json_lines(tmp_path / "pairs.jsonl", lines)
    task = replace(tasks.open_task(str(base / "task.jsonl")), is_chat=False)
    monkeypatch.setattr(reward, "open_task", lambda *_: task)
    line = mistake(reward.main, *arguments(base, tmp_path / "out", pairs=tmp_path / "pairs.jsonl"))
    assert f"pairs.jsonl, line 2: {name} is empty" in line


@pytest.mark.parametrize(("line", "expected"), [
    ("not json", r"task.jsonl, line 12: 'not json' is not a JSON object with the texts prompt and"),
    ('{"prompt": "a", "answer": 3}', "is not a JSON object with the texts prompt and answer"),
    ('{"prompt": "2+2", "answer": "a"}', "not among the 31 of the vocabulary.*'2'.*--new_chars of"),
    ('{"prompt": "a", "answer": "' + "b" * 40 + '"}', "has 44 tokens, but the context"),
    ('{"prompt": "a", "answer": "b␄"}', "contains ␄, which marks who speaks"),
])
def test_bad_examples_get_one_line(line, expected, base, tmp_path, mistake):
    lines = ['{"prompt": "a", "answer": "b"}'] * 8 + ['{"prompt": "c", "answer": "d"}'] * 3 + [line]
    (tmp_path / "task.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert re.search(expected, mistake(sft.main, *arguments(
        base, tmp_path / "out", task=tmp_path / "task.jsonl")))


def test_other_mistakes_get_one_line(base, tuned, scored, tmp_path, mistake, monkeypatch):
    out = tmp_path / "out"
    short = tmp_path / "short.pt"
    start = state(scored)
    config = build(GPTConfig, start.model_args | {"block_size": 16})
    checkpoint.write(starting.cropped(start, config), short)
    for main, changes, expected in (
            (rl.main, {"batch_size": 8}, "the model has no chat format: train it with stages/sft"),
            (rl.main, {"init_from": tuned, "batch_size": 8, "reward": tuned},
             "is not a reward model"),
            (rl.main, {"init_from": tuned, "batch_size": 8, "reward": base / "no"},
             f"reward={base / 'no'} cannot be read: {base / 'no'} has no checkpoint"),
            (rl.main, {"init_from": tuned, "batch_size": 9}, "must be a multiple of group_size=8"),
            (rl.main, {"init_from": tuned, "batch_size": 16}, "below gate=0.9: "),
            (rl.main, {"init_from": tuned, "group_size": 1}, "makes every advantage 0"),
            (reward.main, {"init_from": tuned, "eval_prompts": 1}, "must be 2 or more"),
            (rl.main, {"init_from": tuned, "batch_size": 8, "max_new_tokens": 30},
             "the longest prompt with its answer has 37 tokens, but the context of the model"),
            (sft.main, {"max_new_tokens": 30}, "has 36 tokens, but the context of the model"),
            (reward.main, {"init_from": tuned, "max_new_tokens": 26},
             "has 33 tokens, but the context of the model"),
            (reward.main, {"init_from": tuned, "max_new_tokens": 30, "pairs": "no.jsonl"},
             "has 36 tokens, but the context of the model"),
            (rl.main, {"init_from": tuned, "batch_size": 8, "reward": short},
             "has a context of 16 tokens, shorter than the 32 of the model to train"),
            (sft.main, {"task": "sumz"}, "task=sumz is unknown"),
            (sft.main, {"init_from": "scratch"}, "init_from=scratch is not a trained model"),
            (reward.main, {"init_from": tuned}, "pairs, and test_pairs=100 are held out")):
        assert expected in mistake(main, *arguments(base, out, **changes))
    meta = {"tokenizer": "none", "vocab_size": TINY.vocab_size}
    checkpoint.write(Checkpoint(model_of(TINY).state_dict(), asdict(TINY), meta), tmp_path / "a.pt")
    line = mistake(sft.main, *arguments(base, out, init_from=tmp_path / "a.pt"))
    assert "28 token ids has no text" in line
    monkeypatch.setattr(sft, "open_task", lambda *_: tasks.Task([], [], [], tasks.exact))
    assert "has no examples of right answers" in mistake(sft.main, *arguments(base, out))
