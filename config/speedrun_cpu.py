# To the loss that nanoGPT's CPU command reaches in 2,000 steps, in about a ninth of its time: the
# modern recipe (docs/modern.md), and two layers, so that there is time for more steps.
#   python train.py config/speedrun_cpu.py
# In that command's whole time, a far lower loss:
#   python train.py config/speedrun_cpu.py --n_layer=3 --block_size=128 --max_iters=900

out_dir = "out-speedrun"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 16
block_size = 64
n_layer = 2
n_head = 4
n_embd = 128
max_iters = 220

# chosen on the last tenth of the training text, not on the validation text
recipe = "modern"
softcap = 0.0  # at this size it only costs time
learning_rate = 1.6e-2  # of the LM head (AdamW)
embedding_lr = 0.04
muon_lr = 0.02  # of the matrices in the blocks
beta1 = 0.8
beta2 = 0.95

eval_interval = 1000  # at the beginning and at the end
eval_iters = 20
log_interval = 20
sample_tokens = 100
