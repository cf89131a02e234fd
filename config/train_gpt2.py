# Train GPT-2 (124M) from scratch on OpenWebText. nanoGPT reports a loss of about 2.85 for this run.
# On one machine with 8 GPUs, after `pip install datasets && python prepare.py openwebtext`:
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2.py
# With fewer GPUs, the run takes longer, and the tokens per step stay the same.

out_dir = "out-gpt2"
dataset = "openwebtext"

# 16 sequences x 1024 tokens x 32 micro-batches = 524,288 tokens per step, as in GPT-3 (Small)
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 32

n_layer = 12
n_head = 12
n_embd = 768

# 600,000 steps are 315B tokens; learning rate and decay as in GPT-3 (Small), Brown et al. 2020
max_iters = 600000
warmup_iters = 2000
learning_rate = 6e-4
min_lr = 6e-5
weight_decay = 0.1

eval_interval = 1000
eval_iters = 200
log_interval = 10
