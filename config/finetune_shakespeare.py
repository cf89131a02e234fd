# Fine-tune GPT-2 on Tiny Shakespeare, with GPT-2's BPE. This needs `pip install huggingface_hub`.
# "gpt2" has 124M parameters. If memory allows, use gpt2-medium, gpt2-large or gpt2-xl (nanoGPT's
# choice), which write better text:
#   python train.py config/finetune_shakespeare.py --init_from=gpt2-xl
# --init_from=FOLDER uses the weights in a folder in Hugging Face's format, or those of a run.

out_dir = "out-shakespeare"
dataset = "shakespeare"

init_from = "gpt2"
always_save_checkpoint = False  # the files are large: save only if the validation loss improves

# 1 sequence x 32 micro-batches x 1024 tokens = 32,768 tokens per step. The text has about 300,000
# tokens, so an epoch has about 9 steps.
batch_size = 1
gradient_accumulation_steps = 32
max_iters = 20

learning_rate = 3e-5  # 5% of that in train_gpt2.py: higher rates lose what GPT-2 has learned
decay_lr = False

eval_interval = 5
eval_iters = 40
