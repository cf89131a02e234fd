# Sums of two numbers of three digits, about a minute on one CPU core. How many of the 100,000 sums
# that it never saw are exact, all digits of them:
#   python train.py config/train_addition.py && python tools/add.py --out_dir=out-addition

out_dir = "out-addition"
dataset = "addition"

# A window is one line, 012+345=7530: so a column of the sum is always at the same position. With
# windows that begin anywhere in a line this model learns next to nothing in the same time.
align = block_size = 13  # of two digits, after `python prepare.py addition --digits=2`: 10

n_layer = 2
n_head = 4
n_embd = 64

gradient_accumulation_steps = 1
batch_size = 128

learning_rate = 4e-3
min_lr = 0.0
max_iters = 3000
warmup_iters = 100
beta2 = 0.99  # a longer average, because a step has few tokens

eval_interval = 500
eval_iters = 20
log_interval = 100
sample_tokens = 0  # after its own line a model of one line has nothing to say
