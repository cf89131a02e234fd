# Learn the addition of two 3-digit numbers, in about a minute on one CPU core. tools/add.py then
# measures how many of the 100,000 held-out sums the model computes exactly:
#   python train.py config/train_addition.py && python tools/add.py --out_dir=out-addition

out_dir = "out-addition"
dataset = "addition"

# Each sequence is one line, 012+345=7530, so each digit always has the same position. With
# sequences that start anywhere in a line, the model learns almost nothing in this number of steps.
align = block_size = 13  # 10 for 2-digit numbers (`python prepare.py addition --digits=2`)

n_layer = 2
n_head = 4
n_embd = 64

gradient_accumulation_steps = 1
batch_size = 128

learning_rate = 4e-3
min_lr = 0.0
max_iters = 3000
warmup_iters = 100
beta2 = 0.99  # average over more steps, because a step has few tokens

eval_interval = 500
eval_iters = 20
log_interval = 100
sample_tokens = 0  # no samples: the model can only complete single lines
