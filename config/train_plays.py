# A small GPT by GPT-2's recipe on the characters of all of Shakespeare's plays: two minutes on
# two CPU cores. The plain relative of quickstart.py, and the base in docs/finetune.md.

out_dir = "out-plays"
dataset = "plays_char"

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64

gradient_accumulation_steps = 1
batch_size = 16

learning_rate = 4e-3  # a small model takes, and needs, large steps
min_lr = 0.0
max_iters = 2400
warmup_iters = 100
beta2 = 0.99  # a longer memory, for a step has few tokens

eval_interval = 300
eval_iters = 50
log_interval = 20
