# Sums, stage 3: reinforcement learning with a rule that checks the result.
#   python stages/rl.py config/stages/sums_rl.py
# The control, SFT on the model's own right answers with the same number of samples:
#   python stages/rl.py config/stages/sums_rl.py --advantage=reward --out_dir=out-sums-own

init_from = "out-sums-sft"
out_dir = "out-sums-rl"
task = "sums"
reward = "rule"

max_new_tokens = 10
batch_size = 256
group_size = 8
beta = 0.1  # undoes what the noise of the gradient does to the model (docs/stages.md)
max_iters = 400
learning_rate = 4e-4
eval_interval = 100
log_interval = 10
