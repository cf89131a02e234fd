# Train a small GPT with GPT-2's recipe on the characters of all of Shakespeare's plays, in about
# two minutes on two CPU cores. docs/finetune.md uses these settings. quickstart.py is the modern
# version.

out_dir = "out-plays"
dataset = "plays_char"

n_layer = 4
n_head = 4
n_embd = 128
block_size = 64

gradient_accumulation_steps = 1
batch_size = 16

learning_rate = 4e-3  # small models train best with high learning rates
min_lr = 0.0
max_iters = 2400
warmup_iters = 100
beta2 = 0.99  # average over more steps, because a step has few tokens

eval_interval = 300
eval_iters = 50
log_interval = 20
