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
beta = 0.0  # the rule cannot be deceived, so the model may move as far as it pays
max_iters = 150
learning_rate = 2e-4
eval_interval = 50
log_interval = 10
