# The twin of train_shakespeare_char.py by the modern recipe (docs/modern.md). The two differ in the
# recipe and its learning rates, and in nothing else.

out_dir = "out-shakespeare-char-modern"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2

max_iters = 5000

recipe = "modern"
learning_rate = 8e-3  # of the LM head (AdamW)
embedding_lr = 0.04
muon_lr = 0.02  # of the matrices in the blocks
beta2 = 0.95

eval_interval = 250
log_interval = 10
