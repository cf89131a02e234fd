# Train from scratch on Tiny Shakespeare with GPT-2's BPE. The text has only 300,000 tokens, few for
# a vocabulary of 50,257, so the model is small and soon overfits. best.pt has the lowest validation
# loss, from before the overfitting.

out_dir = "out-shakespeare"
dataset = "shakespeare"

gradient_accumulation_steps = 1
batch_size = 8
block_size = 128

n_layer = 4
n_head = 4
n_embd = 128
dropout = 0.2

learning_rate = 1e-3
max_iters = 1000
beta2 = 0.99

eval_interval = 100
eval_iters = 20
log_interval = 10
