# The run whose loss tools/scaling.py predicts from smaller runs (docs/scaling.md): 3,500 steps on
# Shakespeare's plays, 0.6 epochs, about 11 minutes on one CPU core.
#   python tools/scaling.py plan config/scaling.py

out_dir = "out-scaling-target"
dataset = "plays_char"

n_layer = 4
n_head = 10
n_embd = 160
block_size = 64

gradient_accumulation_steps = 1
batch_size = 12
max_iters = 3500

recipe = "modern"
softcap = 0.0  # in a model of this size, it costs time and does not lower the loss
# A guess. The tool multiplies the three by a factor that follows from the width and from max_iters
learning_rate = 4e-3  # peak learning rate of the LM head (AdamW)
embedding_lr = 0.01  # peak learning rate of the token embedding (AdamW)
muon_lr = 0.005  # peak learning rate of the matrices in the blocks (Muon)
beta1 = 0.8
beta2 = 0.95

eval_iters = 66  # 50,688 tokens of validation text, the same for every run
log_interval = 50
