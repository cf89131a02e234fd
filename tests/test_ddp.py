"""pytest tests/test_ddp.py - several processes are one run (gloo, two CPU cores)"""

import gc
import os
import re
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import (
    TINY_RUN,
    equal,
    finished,
    logged,
    losses,
    ranks,
    same_run,
    script,
    state,
    torchrun,
    wait_for,
)

from internals import parallel
from internals.errors import UserError
from internals.parallel import World
from train import main


def evaluations(metrics):
    return [m["val_loss"] for m in metrics if "val_loss" in m]


def close(a, b):
    """Whether two runs logged the same losses to 1e-4, in the same steps."""
    a, b = logged(a), logged(b)
    np.testing.assert_allclose(losses(a), losses(b), rtol=0, atol=1e-4)
    np.testing.assert_allclose(evaluations(a), evaluations(b), rtol=0, atol=1e-4)
    return True


@pytest.mark.parametrize("processes, steps", [
    (2, 20), pytest.param(4, 20, marks=pytest.mark.faults)])
def test_several_processes_have_the_loss_curve_of_one(tiny, tmp_path, processes, steps):
    """They reduce gradients once per step. No thread of the process group outlives the run: one
    that does can abort the process while it exits, after all is done and saved."""
    settings = {"max_iters": steps, "eval_interval": 10, "dropout": 0,
                "gradient_accumulation_steps": 8}
    one, two = tmp_path / "one", tmp_path / "two"
    main(tiny(out_dir=one, **settings))
    code, printed = ranks(processes, "tests/faulty_train.py", "none", "0",
                          *tiny(out_dir=two, **settings))
    assert code == 0, printed
    assert f"{processes} x cpu, 1 threads" in printed
    assert printed.count(f"step {steps}/{steps} | loss") == 1  # one of them prints
    assert close(one, two) and len(losses(logged(two))) == steps
    assert re.findall("reductions: (.*)", printed) == [str(steps)] * processes
    if Path("/proc/self/task").is_dir():
        left = re.findall("threads left: (.*)", printed)
        assert len(left) == processes and "gloo" not in "".join(left), printed


def test_a_run_continues_with_another_number_of_processes(tiny, tmp_path):
    """Also with another batch size: the next sequence is the one that follows."""
    settings = {"dropout": 0, "lr_decay_iters": 40, "eval_interval": 20}
    one, moved = tmp_path / "one", tmp_path / "moved"
    main(tiny(out_dir=one, max_iters=20, **settings))
    shutil.copytree(one, moved)
    change = ["--init_from=resume", "--max_iters=40", "--batch_size=3",
              "--gradient_accumulation_steps=4"]
    main([f"--out_dir={one}", *change])
    code, printed = ranks(2, "train.py", f"--out_dir={moved}", *change)
    assert code == 0 and "resuming from step 20" in printed, printed
    assert state(one).sequences == state(moved).sequences == 20 * 8 + 20 * 12
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
        def all_reduce(mine, op=dist.ReduceOp.SUM):
            combine = {"SUM": torch.add, "MAX": torch.maximum, "MIN": torch.minimum}
            mine.copy_(combine[op.name](mine, tensor))

        monkeypatch.setattr(dist, "all_reduce", all_reduce)
        made = World("cpu")
        made.size, made.is_distributed = 2, True
        return made

    return world


def test_sums_means_and_signals_are_those_of_all_processes(two):
    assert two(torch.tensor(3.0)).sum(torch.tensor(1.0)) == 4
    assert two(torch.tensor(3.0)).mean(torch.tensor(1.0)) == 2
    for theirs in (False, True):
        for mine in (False, True):
            assert two(torch.tensor(float(theirs))).any(mine) == (mine or theirs)


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


@pytest.mark.parametrize("is_master", [True, False])
def test_the_master_goes_first(two, monkeypatch, is_master):
    events, world = [], two(None)
    world.is_master = is_master
    monkeypatch.setattr(dist, "barrier", lambda: events.append("barrier"))
    with world.master_first():
        events.append("body")
    assert events == (["body", "barrier"] if is_master else ["barrier", "body"])


PROCESS = {"RANK": "13", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "node0",
           "MASTER_PORT": "29500"}


@pytest.fixture
def environment(monkeypatch):
    """A function: set environment variables. The process group is replaced."""
    monkeypatch.setattr(dist, "init_process_group", lambda backend: None)
    return lambda variables: [monkeypatch.setenv(*item) for item in variables.items()]


@pytest.mark.parametrize("variables, name, device", [
    ({}, "auto", "auto"), ({}, "cuda:1", "cuda:1"), (PROCESS, "cuda", "cuda:1"),
    (PROCESS, "auto", "cuda:1"), (PROCESS, "cuda:0", "cuda:0"),
    ({"WORLD_SIZE": "4", "LOCAL_RANK": "1"}, "auto", "auto")])  # exported by a script for Slurm
def test_each_process_of_a_machine_has_its_own_gpu(environment, monkeypatch, variables, name,
                                                   device):
    environment(variables)
    asked = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(parallel, "find_device",
                        lambda name: asked.append(name) or torch.device("cpu"))
    world = World(name)
    assert asked == [device]
    assert (world.rank, world.size) == ((13, 16) if variables == PROCESS else (0, 1))
    assert world.is_master == (world.rank == 0)


@pytest.mark.parametrize("change, message", [
    ({"RANK": "-1"}, "but RANK='-1' is not a number"),
    ({"WORLD_SIZE": ""}, "but WORLD_SIZE='' is not a number"),
    ({"MASTER_ADDR": ""}, "but MASTER_ADDR is not"),
    ({"WORLD_SIZE": "13"}, "RANK=13 must be below WORLD_SIZE=13"),
])
def test_half_of_the_variables_of_torchrun_is_refused(environment, mistake, tiny, change, message):
    environment(PROCESS | change)
    line = mistake(main, *tiny())
    assert message in line and "start the run with torchrun, or unset RANK" in line


def test_a_backend_that_cannot_be_used_is_refused(environment, mistake, tiny, monkeypatch):
    assert "backend must be auto|nccl|gloo, not 'mpi'" in mistake(main, *tiny(backend="mpi"))
    main(tiny(backend="nccl", max_iters=0))  # nanoGPT's config files say so; one process needs none
    environment(PROCESS)
    assert "backend=nccl is for GPUs" in mistake(main, *tiny(backend="nccl"))

    def fail(backend):
        raise dist.DistNetworkError("the port is in use")

    monkeypatch.setattr(dist, "init_process_group", fail)
    assert "cannot be connected with backend=gloo (the port is in use)" in mistake(main, *tiny())


@pytest.mark.parametrize("device, backend, used", [
    ("cpu", "auto", "gloo"), ("cuda", "gloo", "gloo"), ("cuda", "auto", "cpu:gloo,cuda:nccl")])
def test_the_backend_follows_the_device(monkeypatch, device, backend, used):
    asked = []
    monkeypatch.setattr(dist, "init_process_group", asked.append)
    parallel.connect(backend, torch.device(device))
    assert asked == [used]


# ---- accidents


@pytest.mark.parametrize("number", [
    signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_signal_to_torchrun_saves_at_one_step(tiny, tmp_path, number):
    settings = {"max_iters": 120, "eval_interval": 110, "dropout": 0.2}
    stopped = tmp_path / "stopped"
    command = torchrun(2, "train.py", *tiny(out_dir=stopped, **settings))
    own_session = {"start_new_session": True} if number == signal.SIGINT else {}
    run = script(*command, **own_session)
    wait_for(run, "step  30/120 | loss")
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # a Ctrl-C in a terminal reaches all processes of the job
    else:
        run.send_signal(number)
    printed, _ = run.communicate(timeout=60)
    step = state(stopped).step
    assert 30 <= step < 110 and f"stopped by a signal; step {step} is saved" in printed, printed
    assert "ChildFailedError" not in printed  # each process of ours exits with 0
    assert logged(stopped)[-1]["step"] == step  # no process went further


def test_nan_on_one_rank_is_skipped_by_all(tiny, tmp_path):
    """best.pt is the state before the three bad steps, ckpt.pt the one after them."""
    code, printed = ranks(2, "tests/faulty_train.py", "nan", "6",
                          *tiny(max_iters=9, eval_interval=6))
    assert code == 0 and printed.count("not finite: skipped") == 3, printed
    before, after = state(tmp_path / "out", "best.pt"), state(tmp_path / "out")
    assert before.step == 6 and after.step == 9 and equal(before.model, after.model)
    assert equal(before.optimizer[0]["state"], after.optimizer[0]["state"])


RESTARTS = {"max_iters": 24, "eval_interval": 4, "init_from": "auto", "dropout": 0.2}


@pytest.fixture(scope="module")
def whole(data_dir, tmp_path_factory):
    """An undisturbed run of two processes with the settings RESTARTS."""
    folder = tmp_path_factory.mktemp("whole")
    settings = TINY_RUN | RESTARTS | {"data_dir": data_dir, "out_dir": folder}
    command = [f"--{name}={value}" for name, value in settings.items()]
    code, printed = ranks(2, "train.py", *command)
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


@pytest.mark.parametrize("accident, step, sign", [
    pytest.param("machine", 14, "resuming from step 12;", marks=pytest.mark.faults),
    # what torchrun leaves behind continues until a new one has joined; then all save and stop
    pytest.param("agent", 8, "stopped by a signal", marks=pytest.mark.faults),
    # the other process waits for this one until its torchrun loses patience, after 30 seconds
    pytest.param("silence", 14, "resuming from step 12;", marks=pytest.mark.faults),
])
def test_two_machines_are_one_run_and_one_can_be_killed_and_started_again(
        whole, tiny, tmp_path, fresh_store, accident, step, sign):
    """Two torchruns that meet at localhost; the one that does not host the rendezvous is killed."""
    restarted = tmp_path / "restarted"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def node(*command, host=0):
        """The torchrun of one machine. A machine is taken for lost after 5 seconds, not 15."""
        extra = ("--nnodes=2", "--max-restarts=1", "--rdzv-backend=c10d", "--local-addr=localhost",
                 f"--rdzv-endpoint=localhost:{port}",
                 f"--rdzv-conf=is_host={host},keep_alive_interval=1,keep_alive_max_attempt=5")
        return script(*torchrun(1, *command, *tiny(out_dir=restarted, **RESTARTS), extra=extra),
                      stdout=file)

    with open(tmp_path / "printed", "w") as file:
        nodes = [node("train.py", host=1), node("tests/faulty_train.py", accident, step)]
        codes = []
        try:
            codes.append(nodes[1].wait(60))
            nodes[1] = node("train.py")
            codes += [process.wait(90) for process in nodes]
        except subprocess.TimeoutExpired:
            codes.append("still running")
        finally:
            for process in nodes:
                process.terminate()  # torchrun ends its own, within 30 seconds
            for process in nodes:
                try:
                    process.wait(40)
                except subprocess.TimeoutExpired:
                    process.kill()
        printed = (tmp_path / "printed").read_text(encoding="utf-8")
    assert codes == [-signal.SIGKILL, 0, 0], printed
    assert printed.count("2 x cpu, 1 threads") == 2 and printed.count("resuming from") == 1, printed
    assert sign in printed and printed.count("done in") == 1, printed
    assert same_run(whole, restarted)


def test_no_ddp_model_is_left_when_the_processes_disconnect(tiny, monkeypatch):
    """Destroyed later, it could wait for a process that has ended."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "localhost",
                        "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    destroy, left = torch.distributed.destroy_process_group, []

    def disconnect():
        left.append([each for each in gc.get_objects()
                     if type(each) is torch.nn.parallel.DistributedDataParallel])
        destroy()

    monkeypatch.setattr(torch.distributed, "destroy_process_group", disconnect)
    main(tiny())
    assert left == [[]]
