# The loss of OpenAI's gpt2-xl (1558M parameters) on OpenWebText. It needs
# `pip install huggingface_hub datasets` and `python prepare.py openwebtext`. Nothing is written.

init_from = "gpt2-xl"
dataset = "openwebtext"
eval_only = True
eval_iters = 500  # of batch_size windows, of each split
batch_size = 8
