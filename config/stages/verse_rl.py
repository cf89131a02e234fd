# Verse, stage 3: reinforcement learning against the reward model. With beta = 0, the policy finds
# what the reward model likes and the rule does not.
#   python stages/rl.py config/stages/verse_rl.py
#   python stages/rl.py config/stages/verse_rl.py --beta=0 --out_dir=out-verse-rl-0

init_from = "out-quickstart"
out_dir = "out-verse-rl"
task = "verse"
reward = "out-verse-reward"

max_new_tokens = 64
batch_size = 128
group_size = 8
beta = 0.2
max_iters = 30
learning_rate = 1e-3
eval_interval = 10
log_interval = 1
