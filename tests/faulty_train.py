"""train.py with an accident on one of its processes, for tests/test_ddp.py:

    torchrun ... tests/faulty_train.py ACCIDENT STEP --setting=value ...

ACCIDENT: nan (the loss of rank 1 in step STEP and the two after it), die (rank 1 raises in step
STEP, in the first life of the job only). In step STEP the torchrun above this process is killed,
and the process is too (machine), continues slowly (agent), or only keeps its connections (silence).
Without an accident (none) each process prints how often gradients were reduced, and the threads
that are left at the end.
"""

import math
import os
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import train
from internals.errors import one_line_errors
from internals.parallel import World
from model import GPT

accident, step, *argv = sys.argv[1:]
now, reductions = -1, 0
seed_step, forward, wrap = train.seed_step, GPT.forward, World.wrap


def watched_seed_step(seed, t, rank):
    global now
    now = t
    first_life = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    if accident == "die" and t == int(step) and rank == 1 and first_life:
        raise RuntimeError("rank 1 met with an accident")
    if accident in ("machine", "agent", "silence") and t == int(step):
        os.kill(os.getppid(), signal.SIGKILL)
    if t >= int(step):
        if accident == "machine":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep({"agent": 2, "silence": 90}.get(accident, 0))
    seed_step(seed, t, rank)


def poisoned_forward(self, idx, targets=None):
    logits, loss = forward(self, idx, targets)
    poison = accident == "nan" and 0 <= now - int(step) < 3 and os.environ["RANK"] == "1"
    return logits, loss * math.nan if poison and self.training else loss


def counted_wrap(self, model):
    def hook(group, bucket):
        global reductions
        reductions += 1
        return allreduce_hook(group, bucket)

    model = wrap(self, model)
    if accident == "none":
        model.register_comm_hook(None, hook)
    return model


train.seed_step, GPT.forward, World.wrap = watched_seed_step, poisoned_forward, counted_wrap
with one_line_errors():
    train.main(argv)
if accident == "none":
    time.sleep(0.5)  # those that have ended are listed for a moment longer
    tasks = Path("/proc/self/task").iterdir()
    threads = " ".join((task / "comm").read_text().strip() for task in tasks)
    print(f"reductions: {reductions}\nthreads left: {threads}\n", end="", flush=True)
