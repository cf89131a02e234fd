# A low loss on Tiny Shakespeare's characters on two CPU cores: about 1.42 over the entire
# validation split. nanoGPT's README reports 1.47 after three minutes on an A100. The run takes four
# to five times as long as nanoGPT's CPU example on the same machine, five to nine minutes
# (docs/benchmarks.md). The cores should have bfloat16 instructions (avx512_bf16).
#   python train.py config/shakespeare_char_cpu.py

out_dir = "out-shakespeare-char-cpu"
dataset = "shakespeare_char"

gradient_accumulation_steps = 1
batch_size = 8
block_size = 256
n_layer = 4
n_head = 3
n_embd = 192
max_iters = 2500

# these settings were chosen with the last tenth of the training text, not with the validation text
recipe = "modern"
softcap = 0.0  # in a model of this size, it costs time and does not lower the loss
# in five epochs, the model would memorize the text; here, dropout works less well than weight decay
weight_decay = 0.1
learning_rate = 1.6e-2  # peak learning rate of the LM head (AdamW)
embedding_lr = 0.04  # peak learning rate of the token embedding (AdamW)
muon_lr = 0.02  # peak learning rate of the matrices in the blocks (Muon)
beta1 = 0.8
beta2 = 0.95

eval_interval = 500
eval_iters = 20
log_interval = 20
