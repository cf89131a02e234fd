# Measure the loss of OpenAI's gpt2-large (774M parameters) on OpenWebText. This needs
# `pip install huggingface_hub datasets` and `python prepare.py openwebtext`. It writes no files.

init_from = "gpt2-large"
dataset = "openwebtext"
eval_only = True
eval_iters = 500  # batches per split
batch_size = 8
