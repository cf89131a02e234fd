# Train a GPT with 10.7M parameters on the characters of Tiny Shakespeare, in minutes on a GPU. A
# smaller model takes about a minute on a CPU:
#   python train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 \
#       --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 \
#       --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0

out_dir = "out-shakespeare-char"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 64
block_size = 256

n_layer = 6
n_head = 6
n_embd = 384
dropout = 0.2
act = "gelu"  # the exact GELU, as in nanoGPT; on a CPU it is also faster

learning_rate = 1e-3
min_lr = 1e-4
max_iters = 5000
warmup_iters = 100
beta2 = 0.99  # average over more steps, because a step has few tokens

eval_interval = 250
log_interval = 10
