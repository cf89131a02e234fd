# The run whose loss tools/scaling.py predicts from smaller runs (docs/scaling.md): 5,200 steps on
# Shakespeare's plays, 0.6 epochs, a few minutes on one CPU core.
#   python tools/scaling.py plan config/scaling.py

out_dir = "out-scaling-target"
dataset = "plays_char"

n_layer = 3
n_head = 5
n_embd = 80
block_size = 64

gradient_accumulation_steps = 1
batch_size = 8
max_iters = 5200

recipe = "modern"
softcap = 0.0  # in a model of this size, it costs time and does not lower the loss
# A guess. The tool multiplies the three by a factor that follows from the width and from max_iters
learning_rate = 4e-3  # peak learning rate of the LM head (AdamW)
embedding_lr = 0.01  # peak learning rate of the token embedding (AdamW)
muon_lr = 0.005  # peak learning rate of the matrices in the blocks (Muon)
beta1 = 0.8
beta2 = 0.95

eval_iters = 100  # 51,200 tokens of validation text, the same for every run
log_interval = 50
