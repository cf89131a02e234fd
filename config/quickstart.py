# The first run: the characters of all of Shakespeare's plays, two minutes on two CPU cores. Where
# there is a CUDA GPU, the model has 10.7M parameters instead of 0.8M, and four times the context.

import os

import torch

out_dir = "out-quickstart"
dataset = "plays_char"
wandb_project = "quickstart"
wandb_run_name = "plays"

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64

_processes = int(os.environ.get("WORLD_SIZE", 1))  # under torchrun they share the 16 windows
gradient_accumulation_steps = _processes
batch_size = 16 // _processes

learning_rate = 4e-3  # a small model takes, and needs, large steps
min_lr = 0.0
max_iters = 2400
warmup_iters = 100
beta2 = 0.99  # a longer memory, for a step has few tokens

eval_interval = 300
eval_iters = 50
log_interval = 20

if torch.cuda.is_available():
    n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
    batch_size, dropout, learning_rate = 64 // _processes, 0.1, 1e-3
