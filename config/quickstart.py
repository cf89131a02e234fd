# A first run: train on the characters of all of Shakespeare's plays with the modern recipe
# (docs/modern.md). It takes one to two minutes on two CPU cores. On a CUDA GPU, the model has 10.7M
# parameters instead of 0.6M, twice the context, and dropout.

import os

import torch

out_dir = "out-quickstart"
dataset = "plays_char"

n_layer = 3
n_head = 4
n_embd = 128
block_size = 128

# under torchrun, the processes share the sequences of a step
_processes = int(os.environ["WORLD_SIZE"]) if os.environ.get("RANK") else 1
gradient_accumulation_steps = _processes
batch_size = 16 // _processes
max_iters = 900

recipe = "modern"
softcap = 0.0  # in a model of this size, it costs time and does not lower the loss
learning_rate = 1.6e-2  # peak learning rate of the LM head (AdamW)
embedding_lr = 0.04  # peak learning rate of the token embedding (AdamW)
muon_lr = 0.02  # peak learning rate of the matrices in the blocks (Muon)
beta1 = 0.8
beta2 = 0.95

eval_interval = 150
eval_iters = 50
log_interval = 10
snapshots = True  # python tools/look.py --out_dir=out-quickstart shows how the model learned

if torch.cuda.is_available():
    n_layer, n_head, n_embd, block_size = 6, 6, 384, 256
    batch_size, dropout, learning_rate = 64 // _processes, 0.1, 8e-3
