# Same as train_gpt2.py, but with the modern recipe (docs/modern.md). The two files differ only in
# the recipe and in settings of the optimizer and the learning-rate schedule.
# On one machine with 8 GPUs, after `pip install datasets && python prepare.py openwebtext`:
#   torchrun --standalone --nproc_per_node=8 train.py config/train_gpt2_modern.py
# With fewer GPUs, the run takes longer, and the tokens per step stay the same.

out_dir = "out-gpt2-modern"
dataset = "openwebtext"

# 16 sequences x 1024 tokens x 32 micro-batches = 524,288 tokens per step, as in GPT-3 (Small)
batch_size = 16
block_size = 1024
gradient_accumulation_steps = 32

n_layer = 12
n_head = 12
n_embd = 768

# as in train_gpt2.py. Far fewer steps are enough for the loss of OpenAI's GPT-2 (124M):
# modded-nanogpt, with a similar recipe, reaches it after about 5,000
max_iters = 600000

recipe = "modern"
cooldown = 0.4  # the learning rates fall to zero over the last 40% of the steps
learning_rate = 2e-3  # peak learning rate of the LM head (AdamW)
embedding_lr = 0.02  # peak learning rate of the token embedding (AdamW)
muon_lr = 0.02  # peak learning rate of the matrices in the blocks (Muon)

eval_interval = 1000
eval_iters = 200
log_interval = 10
