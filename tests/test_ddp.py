"""pytest tests/test_ddp.py - several processes are one run (gloo, two CPU cores)"""

import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import equal, finished, script
from test_resume import logged, same_run, state
from torch.nn.parallel import DistributedDataParallel

from model import GPT, GPTConfig
from train import main


def torchrun(processes, *command, extra=("--standalone",)):
    """The command line that runs a script in this many processes."""
    return ("-m", "torch.distributed.run", *extra, f"--nproc_per_node={processes}", *command)


def losses(out_dir):
    return [m["loss"] for m in logged(out_dir) if "loss" in m]


def evaluations(out_dir):
    return [m["val_loss"] for m in logged(out_dir) if "val_loss" in m]


@pytest.mark.parametrize("processes, steps", [(2, 100), (4, 20)])
def test_several_processes_have_the_loss_curve_of_one(tiny, tmp_path, processes, steps):
    settings = {"max_iters": steps, "eval_interval": 10, "dropout": 0,
                "gradient_accumulation_steps": 4}
    one, two = tmp_path / "one", tmp_path / "two"
    main(tiny(out_dir=one, **settings))
    code, printed = finished(*torchrun(processes, "train.py", *tiny(out_dir=two, **settings)))
    assert code == 0, printed
    assert f"{processes} x cpu, 1 threads" in printed
    assert printed.count(f"step {steps}/{steps} | loss") == 1  # one of them speaks
    np.testing.assert_allclose(losses(one), losses(two), rtol=0, atol=1e-4)
    np.testing.assert_allclose(evaluations(one), evaluations(two), rtol=0, atol=1e-4)
    assert len(losses(two)) == steps


def test_a_run_goes_on_with_another_number_of_processes(tiny, tmp_path):
    settings = {"dropout": 0, "lr_decay_iters": 40, "eval_interval": 20}
    one, moved = tmp_path / "one", tmp_path / "moved"
    main(tiny(out_dir=one, max_iters=40, **settings))
    main(tiny(out_dir=moved, max_iters=20, **settings))
    resume = f"--out_dir={moved}", "--init_from=resume", "--max_iters=40"
    code, printed = finished(*torchrun(2, "train.py", *resume))
    assert code == 0 and "going on from step 20" in printed, printed
    np.testing.assert_allclose(losses(one), losses(moved), rtol=0, atol=1e-4)


SHAPE = GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16, bias=True)


def batch_gradients(rank, world, file, accumulation):
    """Gradients in float64 of 8 windows, shared out over `world` processes as train.py does."""
    if world > 1:
        dist.init_process_group("gloo", f"file://{file}.store", rank=rank, world_size=world)
    torch.manual_seed(0)
    raw_model = GPT(SHAPE).double()
    model = DistributedDataParallel(raw_model) if world > 1 else raw_model
    windows = torch.randint(50, (8, 17), generator=torch.Generator().manual_seed(1))
    micro_batches = windows.chunk(accumulation * world)
    for micro in range(accumulation):
        if world > 1:
            model.require_backward_grad_sync = micro == accumulation - 1
        mine = micro_batches[micro * world + rank]
        (model(mine[:, :-1], mine[:, 1:])[1] / accumulation).backward()
    if rank == 0:
        torch.save([p.grad for p in raw_model.parameters()], file)
    if world > 1:
        dist.barrier()
        # DDP must not be the last to hold the group: it would wait for its threads with the GIL,
        # and they may be waiting for the GIL to drop what they have done
        del model
        dist.destroy_process_group()


@pytest.mark.parametrize("world, accumulation", [(1, 4), (2, 1), (2, 2), (2, 4)])
def test_gradients_do_not_depend_on_how_a_step_is_shared_out(tmp_path, world, accumulation):
    batch_gradients(0, 1, tmp_path / "whole", 1)
    shared = tmp_path / "shared"
    if world == 1:
        batch_gradients(0, 1, shared, accumulation)
    else:
        torch.multiprocessing.spawn(batch_gradients, (world, shared, accumulation), nprocs=world)
    for a, b in zip(torch.load(tmp_path / "whole"), torch.load(shared), strict=True):
        assert a.dtype == torch.float64
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_an_accumulation_that_does_not_divide_is_told(tiny):
    code, printed = finished(*torchrun(2, "train.py", *tiny(gradient_accumulation_steps=3)))
    assert code != 0 and "shared out over 2 processes, so it must be a multiple of 2" in printed


@pytest.mark.parametrize("number", [
    signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.faults)])
def test_a_signal_to_torchrun_saves_at_one_step(tiny, tmp_path, number):
    settings = {"max_iters": 120, "eval_interval": 110, "dropout": 0.2}
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = torchrun(2, "train.py", *tiny(out_dir=stopped, **settings))
    run = script(*command, start_new_session=True)
    while "step  30/120 | loss" not in run.stdout.readline():
        assert run.poll() is None
    if number == signal.SIGINT:
        os.killpg(run.pid, number)  # a Ctrl-C in a terminal reaches all processes of the job
    else:
        run.send_signal(number)
    printed, _ = run.communicate(timeout=60)
    step = state(stopped)["iter_num"]
    assert 30 <= step < 110 and f"stopped by a signal, step {step} is saved" in printed, printed
    assert "ChildFailedError" not in printed  # each process of ours exits with 0
    for out, start in ((stopped, "resume"), (whole, "scratch")):
        command = tiny(out_dir=out, init_from=start, **settings)
        code, printed = finished(*torchrun(2, "train.py", *command))
        assert code == 0, printed
    assert same_run(whole, stopped)


def test_nan_on_one_rank_is_skipped_by_all(tiny, tmp_path):
    faulty = torchrun(2, "tests/faulty_train.py", "nan", "6", *tiny(max_iters=9, eval_interval=20))
    code, printed = finished(*faulty)
    assert code == 0 and printed.count("not finite: skipped") == 3, printed
    after = state(tmp_path / "out")
    code, printed = finished(*torchrun(2, "train.py", *tiny(max_iters=6, lr_decay_iters=9,
                                                            eval_interval=20)))
    assert code == 0 and equal(after["model"], state(tmp_path / "out")["model"]), printed
    assert equal(after["optimizer"][0]["state"], state(tmp_path / "out")["optimizer"][0]["state"])


def test_a_rank_that_dies_takes_the_job_down_with_its_error(tiny):
    started = time.monotonic()
    run = script(*torchrun(2, "tests/faulty_train.py", "die", "5", *tiny(max_iters=10**6)))
    printed, _ = run.communicate(timeout=90)
    assert run.returncode != 0 and "rank 1 met with an accident" in printed
    assert time.monotonic() - started < 60


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_of_the_process_group_outlives_the_run(tiny):
    """One that does can abort the process while it exits, after all is done and saved."""
    code, printed = finished(*torchrun(2, "tests/faulty_train.py", "none", "0", *tiny()))
    left = re.findall("threads left: (.*)", printed)
    assert code == 0 and len(left) == 2 and "gloo" not in printed, printed


@pytest.fixture
def fresh_store(monkeypatch):
    """As docs/distributed.md says: without it torch 2.13 hands restarted processes the addresses of
    the dead ones."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")


def test_torchrun_restarts_from_the_last_checkpoint(tiny, tmp_path, fresh_store):
    settings = {"max_iters": 24, "eval_interval": 4, "init_from": "auto", "dropout": 0.2}
    whole, restarted = tmp_path / "whole", tmp_path / "restarted"
    code, printed = finished(*torchrun(2, "train.py", *tiny(out_dir=whole, **settings)))
    assert code == 0, printed
    code, printed = finished(*torchrun(2, "tests/faulty_train.py", "die", "14",
                                       *tiny(out_dir=restarted, **settings),
                                       extra=("--standalone", "--max-restarts=1")))
    assert code == 0 and "going on from step 12" in printed, printed
    assert same_run(whole, restarted)


@pytest.mark.parametrize("accident, step, sign", [
    ("machine", 14, "going on from step 12;"),
    # what torchrun leaves behind goes on until a new one has joined; then all save and stop
    pytest.param("agent", 8, "stopped by a signal", marks=pytest.mark.faults),
    # the other process waits for this one until its torchrun loses patience, after 30 seconds
    pytest.param("silence", 14, "going on from step 12;", marks=pytest.mark.faults),
])
def test_two_machines_are_one_run_and_one_can_be_killed_and_started_again(
        tiny, tmp_path, fresh_store, accident, step, sign):
    """Two torchruns that meet at localhost; the one that does not host the rendezvous is killed."""
    settings = {"max_iters": 24, "eval_interval": 4, "init_from": "auto", "dropout": 0.2}
    whole, restarted = tmp_path / "whole", tmp_path / "restarted"
    code, printed = finished(*torchrun(2, "train.py", *tiny(out_dir=whole, **settings)))
    assert code == 0, printed
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def node(*command, host=0):
        """The torchrun of one machine. A machine is taken for lost after 5 seconds, not 15."""
        extra = ("--nnodes=2", "--max-restarts=1", "--rdzv-backend=c10d", "--local-addr=localhost",
                 f"--rdzv-endpoint=localhost:{port}",
                 f"--rdzv-conf=is_host={host},keep_alive_interval=1,keep_alive_max_attempt=5")
        return script(*torchrun(1, *command, *tiny(out_dir=restarted, **settings), extra=extra),
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
    assert printed.count("2 x cpu, 1 threads") == 2 and printed.count("going on from") == 1, printed
    assert sign in printed and printed.count("done in") == 1, printed
    assert same_run(whole, restarted)
