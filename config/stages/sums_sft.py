# Sums, stage 1: a model of the plays learns to add two-digit numbers, from 1,000 examples.
#   python stages/sft.py config/stages/sums_sft.py

init_from = "out-quickstart"
out_dir = "out-sums-sft"
task = "sums"

new_chars = "0123456789+"  # the plays have no +, and only some of the digits
max_new_tokens = 10

max_iters = 500
learning_rate = 2e-3
warmup_iters = 5
eval_interval = 100
log_interval = 50
