# The twin of train_gpt2.py by the modern recipe (docs/modern.md). The two differ in the recipe and
# its learning rates, and in nothing else.
# On one machine with 8 GPUs, after `pip install datasets && python prepare.py openwebtext`:
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2_modern.py
# With fewer GPUs the same run only takes longer: the tokens per step stay the same.

out_dir = "out-gpt2-modern"
dataset = "openwebtext"

# 16 sequences x 1024 tokens x 32 micro-batches = 524,288 tokens per step, as for GPT-3 (Small)
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 32

n_layer = 12
n_head = 12
n_embd = 768

max_iters = 600000  # as its twin; modded-nanogpt is at GPT-2 (124M)'s loss after some 5,000

recipe = "modern"
cooldown = 0.4  # the last part of the steps, in which the learning rates fall to zero
learning_rate = 2e-3  # of the LM head (AdamW)
embedding_lr = 0.02
muon_lr = 0.02  # of the matrices in the blocks

eval_interval = 1000
eval_iters = 200
log_interval = 10
