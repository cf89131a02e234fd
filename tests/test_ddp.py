"""pytest tests/test_ddp.py - several processes are one run (gloo, two CPU cores)"""

import gc
import re
import shutil
import signal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import (
    TINY_RUN,
    command_line,
    equal,
    finished,
    free_port,
    logged,
    losses,
    ranks,
    same_run,
    script,
    state,
    torchrun,
    wait_for,
)

import train
from internals import parallel
from internals.errors import UserError
from internals.parallel import World
from internals.signals import Stopped
from train import main


def evaluations(metrics):
    return [m["val_loss"] for m in metrics if "val_loss" in m]


def close(a, b):
    """Whether two runs logged the same losses to 1e-4, in the same steps."""
    a = logged(a)
    b = logged(b)
    np.testing.assert_allclose(losses(a), losses(b), rtol=0, atol=1e-4)
    np.testing.assert_allclose(evaluations(a), evaluations(b), rtol=0, atol=1e-4)
    return True


@pytest.mark.parametrize("processes", [2, pytest.param(4, marks=pytest.mark.faults)])
def test_several_processes_have_the_loss_curve_of_one(tiny, tmp_path, processes):
    """They reduce gradients once per step. No thread of the process group outlives the run: one
    that does can abort the process while it exits, after all is done and saved."""
    settings = {"max_iters": 16, "eval_interval": 8, "dropout": 0, "gradient_accumulation_steps": 8}
    one = tmp_path / "one"
    two = tmp_path / "two"
    main(tiny(out_dir=one, **settings))
    code, printed = ranks(processes, "tests/faulty_train.py", "none", "0",
                          *tiny(out_dir=two, **settings))
    assert code == 0, printed
    assert f"{processes} x cpu, 1 threads" in printed
    assert printed.count("step 16/16 | loss") == 1  # one of them prints
    assert close(one, two) and len(losses(logged(two))) == 16
    assert re.findall("reductions: (.*)", printed) == ["16"] * processes
    if Path("/proc/self/task").is_dir():
        left = re.findall("threads left: (.*)", printed)
        assert len(left) == processes and "gloo" not in "".join(left), printed


def test_a_run_continues_with_another_number_of_processes(tiny, tmp_path):
    """Also with another batch size: the next sequence is the one that follows."""
    settings = {"dropout": 0, "lr_decay_iters": 24, "eval_interval": 12}
    one = tmp_path / "one"
    moved = tmp_path / "moved"
    main(tiny(out_dir=one, max_iters=12, **settings))
    shutil.copytree(one, moved)
    change = ["--init_from=resume", "--max_iters=24", "--batch_size=3",
              "--gradient_accumulation_steps=4"]
    main([f"--out_dir={one}", *change])
    code, printed = ranks(2, "train.py", f"--out_dir={moved}", *change)
    assert code == 0 and "resuming from step 12" in printed, printed
    assert state(one).sequences == state(moved).sequences == 12 * 8 + 12 * 12
    assert close(one, moved)


def test_an_accumulation_that_does_not_divide_is_refused():
    world = World("cpu")
    world.size = 3
    assert world.per_process(6, "gradient_accumulation_steps") == 2
    with pytest.raises(UserError, match="gradient_accumulation_steps=4 is divided among 3 proc"):
        world.per_process(4, "gradient_accumulation_steps")


# ---- World by itself: the process group is replaced, so these take no time


@pytest.fixture
def two(monkeypatch):
    """A function: the World of one of two processes; `tensor` is what the other one reduces."""
    def world(tensor):
        def all_reduce(mine, op):
            assert op is dist.ReduceOp.MAX
            mine.copy_(torch.maximum(mine, tensor))

        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        made = World("cpu")
        made.size = 2
        made.is_distributed = True
        return made

    return world


def test_a_signal_to_one_process_is_one_to_all(two):
    assert two(torch.tensor(1.0)).any(False) is True
    assert two(torch.tensor(0.0)).any(True) is True
    assert two(torch.tensor(0.0)).any(False) is False


def test_processes_that_found_different_checkpoints_end_the_run(two):
    two(torch.tensor([5, -5])).must_agree(5, "different")
    for step in (4, 6):
        with pytest.raises(UserError, match="different"):
            two(torch.tensor([5, -5])).must_agree(step, "different")


def test_a_run_asks_whether_the_processes_found_the_same_checkpoint(tiny, monkeypatch, mistake):
    """This process finds none and begins at step 0, the other one resumes at step 8."""
    def other_found(world, step, message):
        if step != 8:
            raise UserError(message)

    monkeypatch.setattr(World, "must_agree", other_found)
    assert "the processes found different checkpoints" in mistake(main, *tiny(max_iters=2))


PROCESS = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "node0",
           "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """A function: set environment variables. The process group is replaced."""
    def set_all(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    return set_all


@pytest.mark.parametrize("variables, name, device, rank", [
    (PROCESS, "auto", "cuda:1", 13), (PROCESS, "cuda:0", "cuda:0", 13),
    ({"WORLD_SIZE": "4", "LOCAL_RANK": "1"}, "auto", "auto", 0)])  # exported by a Slurm script
def test_each_process_of_a_machine_has_its_own_gpu(environment, monkeypatch, variables, name,
                                                   device, rank):
    environment(variables)
    find_device = mock.Mock(return_value=torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parallel, "find_device", find_device)
    world = World(name)
    find_device.assert_called_once_with(device)
    assert world.rank == rank and world.is_master == (rank == 0)
    assert world.size == (16 if rank else 1)


@pytest.mark.parametrize("change, message", [
    ({"RANK": "-1"}, "but RANK='-1' is not a number"),
    ({"MASTER_ADDR": ""}, "but MASTER_ADDR is not"),
    ({"WORLD_SIZE": "13"}, "RANK=13 must be below WORLD_SIZE=13"),
])
def test_half_of_the_variables_of_torchrun_is_refused(environment, mistake, tiny, change, message):
    environment(PROCESS | change)
    line = mistake(main, *tiny())
    assert message in line and "start the run with torchrun, or unset RANK" in line


def test_a_backend_that_cannot_be_used_is_refused(environment, mistake, tiny, monkeypatch):
    main(tiny(backend="nccl", max_iters=0))  # nanoGPT's config files say so; one process needs none
    environment(PROCESS)
    assert "backend=nccl is for GPUs" in mistake(main, *tiny(backend="nccl"))
    in_use = mock.Mock(side_effect=dist.DistNetworkError("the port is in use"))
    monkeypatch.setattr(dist, "init_process_group", in_use)
    assert "cannot be connected with backend=gloo (the port is in use)" in mistake(main, *tiny())


# ---- accidents


def test_a_signal_to_torchrun_saves_at_one_step(tiny, tmp_path):
    settings = {"max_iters": 120, "eval_interval": 110, "dropout": 0.2}
    run = script(*torchrun(2, "train.py", *tiny(**settings)))
    wait_for(run, "step  30/120 | loss")
    run.send_signal(signal.SIGTERM)
    printed, _ = run.communicate()
    step = state(tmp_path / "out").step
    assert 30 <= step < 110 and f"stopped by a signal; step {step} is saved" in printed, printed
    assert "ChildFailedError" not in printed  # each process of ours exits with 0
    assert logged(tmp_path / "out")[-1]["step"] == step  # no process went further


def test_nan_on_one_rank_is_skipped_by_all(tiny, tmp_path):
    """best.pt is the state before the three bad steps, ckpt.pt the one after them."""
    code, printed = ranks(2, "tests/faulty_train.py", "nan", "6",
                          *tiny(max_iters=9, eval_interval=6))
    assert code == 0 and printed.count("not finite: skipped") == 3, printed
    before = state(tmp_path / "out", "best.pt")
    after = state(tmp_path / "out")
    assert before.step == 6 and after.step == 9 and equal(before.model, after.model)
    assert equal(before.optimizer[0]["state"], after.optimizer[0]["state"])


RESTARTS = {"max_iters": 24, "eval_interval": 4, "init_from": "auto", "dropout": 0.2}


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """An undisturbed run of two processes with the settings RESTARTS."""
    folder = tmp_path_factory.mktemp("whole")
    settings = TINY_RUN | RESTARTS | {"data_dir": data_dir, "out_dir": folder}
    code, printed = ranks(2, "train.py", *command_line(settings))
    assert code == 0, printed
    return folder


@pytest.fixture
def fresh_store(monkeypatch):
    """As docs/distributed.md says: without it torch 2.13 hands restarted processes the addresses of
    the dead ones."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")


@pytest.mark.faults
def test_torchrun_restarts_from_the_last_checkpoint(whole, tiny, tmp_path, fresh_store):
    restarted = tmp_path / "restarted"
    code, printed = finished(*torchrun(2, "tests/faulty_train.py", "die", "14",
                                       *tiny(out_dir=restarted, **RESTARTS),
                                       extra=("--standalone", "--max-restarts=1")))
    assert code == 0 and "resuming from step 12" in printed, printed
    assert "rank 1 met with an accident" in printed
    assert same_run(whole, restarted)


@pytest.mark.faults
@pytest.mark.parametrize("accident, step, sign", [
    ("machine", 14, "resuming from step 12;"),
    # what torchrun leaves behind continues until a new one has joined; then all save and stop
    ("agent", 8, "stopped by a signal"),
    # the other process waits for this one until its torchrun loses patience, after 30 seconds
    ("silence", 14, "resuming from step 12;"),
])
def test_two_machines_are_one_run_and_one_can_be_killed_and_started_again(
        whole, tiny, tmp_path, fresh_store, accident, step, sign):
    """Two torchruns that meet at localhost; the one that does not host the rendezvous is killed."""
    restarted = tmp_path / "restarted"
    port = free_port()

    def node(*command, host=0):
        """The torchrun of one machine. A machine is taken for lost after 5 seconds, not 15."""
        extra = ("--nnodes=2", "--max-restarts=1", "--rdzv-backend=c10d", "--local-addr=localhost",
                 f"--rdzv-endpoint=localhost:{port}",
                 f"--rdzv-conf=is_host={host},keep_alive_interval=1,keep_alive_max_attempt=5")
        return script(*torchrun(1, *command, *tiny(out_dir=restarted, **RESTARTS), extra=extra),
                      stdout=file)

    with open(tmp_path / "printed", "w") as file:
        nodes = [node("train.py", host=1), node("tests/faulty_train.py", accident, step)]
        try:
            codes = [nodes[1].wait(60)]
            nodes[1] = node("train.py")
            codes += [process.wait(90) for process in nodes]
        finally:
            for process in nodes:
                process.terminate()  # torchrun ends its own, within 30 seconds
    printed = (tmp_path / "printed").read_text(encoding="utf-8")
    assert codes == [-signal.SIGKILL, 0, 0], printed
    assert printed.count("2 x cpu, 1 threads") == 2 and printed.count("resuming from") == 1, printed
    assert sign in printed and printed.count("done in") == 1, printed
    assert same_run(whole, restarted)


def test_no_ddp_model_is_left_when_the_processes_disconnect(tiny, monkeypatch):
    """Destroyed later, it could wait for a process that has ended. The traceback of a run that a
    signal stops must not keep it either."""
    def evaluate_and_stop(*arguments):
        *_, signals = arguments
        signals.received = signal.SIGTERM
        evaluate(*arguments)

    def disconnect():
        left.extend(each for each in gc.get_objects()
                    if type(each) is torch.nn.parallel.DistributedDataParallel)
        called.append(True)
        destroy()

    left = []
    called = []
    evaluate = train.evaluate_and_save
    destroy = dist.destroy_process_group
    monkeypatch.setattr(train, "evaluate_and_save", evaluate_and_stop)
    monkeypatch.setattr(dist, "destroy_process_group", disconnect)
    process = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    for name, value in (process | {"MASTER_PORT": str(free_port())}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Stopped):
        main(tiny(max_iters=2))
    assert called and not left
