# The twin of train_shakespeare_char.py by the modern recipe (docs/modern.md). It differs in the
# recipe's lines, in rates and schedule, and in nothing else.

out_dir = "out-shakespeare-char-modern"
dataset = "shakespeare_char"
wandb_project = "shakespeare-char"
wandb_run_name = "mini-gpt-modern"

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

max_iters = 5000
cooldown = 0.7  # the last part of the steps, in which the rates fall to zero
warmup_iters = 0  # with zero-init and Muon there is nothing to warm up
min_lr = 0.0

optimizer = "muon"
muon_lr = 0.02  # of the matrices in the blocks
learning_rate = 8e-3  # of the head: AdamW
embedding_lr = 0.04
beta2 = 0.95
weight_decay = 0.0

pos = "rope"
norm = "rmsnorm"
act = "relu2"
qk_norm = True
zero_init = True
tied = False
softcap = 15.0

eval_interval = 250
log_interval = 10
