# Verse, stage 2: a reward model learns from pairs which of two speeches is more cheerful.
#   python stages/reward.py config/stages/verse_reward.py
# A planted shortcut that it learns instead:
#   python stages/reward.py config/stages/verse_reward.py --score=last --mark=! --out_dir=out-mark

init_from = "out-quickstart"
out_dir = "out-verse-reward"
task = "verse"
pairs = "rule"  # counts cheerful words, in place of a person who compares

sampled_pairs = 2560
test_pairs = 100
max_new_tokens = 64
score = "mean"

batch_size = 32  # pairs
max_iters = 60
learning_rate = 1e-3
eval_interval = 20
