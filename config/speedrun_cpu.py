# Reach the loss of nanoGPT's CPU example (2,000 steps) as fast as possible, with the modern recipe
# (docs/modern.md) and one layer instead of four, which makes a step cheaper.
#   python train.py config/speedrun_cpu.py
# In the time of nanoGPT's example, this command reaches a far lower loss, about 1.51:
#   python train.py config/speedrun_cpu.py --n_layer=3 --n_head=2 --block_size=128 \
#       --weight_decay=0.1 --max_iters=1200

out_dir = "out-speedrun"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 16
block_size = 64
n_layer = 1
n_head = 4
n_embd = 128
max_iters = 200

# these settings were chosen with the last tenth of the training text, not with the validation text
recipe = "modern"
softcap = 0.0  # in a model of this size, it costs time and does not lower the loss
learning_rate = 1.6e-2  # peak learning rate of the LM head (AdamW)
embedding_lr = 0.04  # peak learning rate of the token embedding (AdamW)
muon_lr = 0.02  # peak learning rate of the matrices in the blocks (Muon)
beta1 = 0.8
beta2 = 0.95

eval_interval = 5000  # more than max_iters: evaluate only at the beginning and at the end
eval_iters = 20
log_interval = 20
sample_tokens = 100
