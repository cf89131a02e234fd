# The twin of train_gpt2.py by the modern recipe (docs/modern.md). It differs in the last lines, in
# rates and schedule, and in nothing else.
# On one machine with 8 GPUs, after `pip install datasets && python prepare.py openwebtext`:
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2_modern.py
# With fewer GPUs the same run only takes longer: the tokens of a step stay as they are.

out_dir = "out-gpt2-modern"
dataset = "openwebtext"
wandb_project = "owt"
wandb_run_name = "gpt2-124M-modern"

# 16 windows x 1024 tokens x 32 micro-batches = 524,288 tokens a step: the 0.5M of GPT-3 (Small)
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 32

n_layer = 12
n_head = 12
n_embd = 768

max_iters = 600000  # as its twin; modded-nanogpt is at GPT-2 (124M)'s loss after some 5,000
cooldown = 0.4  # the last part of them, in which the rates fall to zero
warmup_iters = 0  # with zero-init and Muon there is nothing to warm up
min_lr = 0.0

optimizer = "muon"
muon_lr = 0.02  # of the matrices in the blocks
learning_rate = 2e-3  # of the head: AdamW
embedding_lr = 0.02
weight_decay = 0.0

pos = "rope"
norm = "rmsnorm"
act = "relu2"
qk_norm = True
zero_init = True
tied = False
softcap = 15.0

eval_interval = 1000
eval_iters = 200
log_interval = 10
