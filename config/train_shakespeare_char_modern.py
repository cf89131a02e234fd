# Same as train_shakespeare_char.py, but with the modern recipe (docs/modern.md). The two files
# differ only in the recipe and in settings of the optimizer and the learning-rate schedule.

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
learning_rate = 8e-3  # peak learning rate of the LM head (AdamW)
embedding_lr = 0.04  # peak learning rate of the token embedding (AdamW)
muon_lr = 0.02  # peak learning rate of the matrices in the blocks (Muon)
beta2 = 0.95

eval_interval = 250
log_interval = 10
