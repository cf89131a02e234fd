"""The gradients of a tiny model, computed as train.py does; for tests/test_ddp.py:

    ranks(2, "tests/ddp_gradients.py", FOLDER)

Rank 0 writes FOLDER/1.pt, 2.pt, 4.pt: the gradients with 1, 2 and 4 micro-batches per process.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from model import GPT, GPTConfig

SHAPE = GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_head=2, n_embd=16, bias=True)


def new_model():
    torch.manual_seed(0)
    return GPT(SHAPE).double()


def gradients(model, raw_model, world, rank, accumulation):
    """Gradients in float64 of 8 sequences, divided among `world` processes as train.py does."""
    raw_model.zero_grad()
    sequences = torch.randint(50, (8, 17), generator=torch.Generator().manual_seed(1))
    micro_batches = sequences.chunk(accumulation * world)
    for micro in range(accumulation):
        model.require_backward_grad_sync = micro == accumulation - 1
        mine = micro_batches[micro * world + rank]
        (model(mine[:, :-1], mine[:, 1:])[1] / accumulation).backward()
    return [p.grad.clone() for p in raw_model.parameters()]


def main(folder):
    dist.init_process_group("gloo")
    raw_model = new_model()
    model = DistributedDataParallel(raw_model)
    for accumulation in (1, 2, 4):
        grads = gradients(model, raw_model, dist.get_world_size(), dist.get_rank(), accumulation)
        if dist.get_rank() == 0:
            torch.save(grads, Path(folder, f"{accumulation}.pt"))
    dist.barrier()
    # DDP must not be the last to hold the group: it would wait for its threads with the GIL,
    # and they may be waiting for the GIL to drop what they have done
    del model
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
