# GPT-2's weights fine-tuned on Tiny Shakespeare, in its own BPE. "gpt2" has 124M parameters, and
# gpt2-medium, gpt2-large and gpt2-xl, the one nanoGPT takes here, write better where memory allows:
#   python train.py config/finetune_shakespeare.py --init_from=gpt2-xl
# A folder in Hugging Face's layout, or one of a run, does too: --init_from=FOLDER.

out_dir = "out-shakespeare"
dataset = "shakespeare"

init_from = "gpt2"
always_save_checkpoint = False  # the files are large: write at an evaluation only the best

# 1 window x 32 micro-batches x 1024 tokens = 32,768 tokens a step; the text has about 300,000, so
# that an epoch is some 9 steps
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5  # a twentieth of GPT-2's in config/train_gpt2.py: what it knows shall stay
decay_lr = False

eval_interval = 5
eval_iters = 40
