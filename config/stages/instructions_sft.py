# Instructions, stage 1: upper, reverse or double a word. Then chat with the model:
#   python stages/sft.py config/stages/instructions_sft.py
#   python sample.py --out_dir=out-instructions --interactive=True --temperature=0

init_from = "out-quickstart"
out_dir = "out-instructions"
task = "instructions"

max_new_tokens = 20
max_iters = 800
learning_rate = 2e-3
warmup_iters = 5
eval_interval = 200
log_interval = 50
