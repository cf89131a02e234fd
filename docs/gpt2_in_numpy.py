"""The forward pass of GPT-2 in NumPy: every formula of the model on one page. Read this first.

    python docs/gpt2_in_numpy.py

It builds a small GPT with random weights from model.py, computes its logits with NumPy and with
PyTorch, prints the largest difference, and generates tokens. Left out: training, batches, dropout,
the KV cache (faster generation), and the modern options of model.py.

weights, an argument of most functions: a dict from GPT-2's parameter names to arrays, as in
model.state_dict(). Shapes: T tokens, C channels, n_head heads of hs = C / n_head channels (the head
size), V tokens in the vocabulary.
"""

import sys
from pathlib import Path

import numpy as np


def softmax(x):
    # Subtracting the maximum does not change the result, and keeps exp from overflowing.
    unnormalized = np.exp(x - x.max(axis=-1, keepdims=True))
    return unnormalized / unnormalized.sum(axis=-1, keepdims=True)


def gelu(x):
    # A smooth ReLU. GPT-2 uses this approximation of x * P(Z <= x), Z standard normal.
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def linear(x, weights, name):  # (T, in) -> (T, out)
    y = x @ weights[f"{name}.weight"].T  # PyTorch stores the matrix as (out, in)
    return y + weights.get(f"{name}.bias", 0)  # there is no bias if the model has bias=False


def layer_norm(x, weights, name):  # (T, C) -> (T, C)
    # Each token's vector gets mean 0 and variance 1, so that all layers see inputs of one scale,
    # however much earlier layers have added. Then it gets a learned scale and shift.
    mean = x.mean(axis=-1, keepdims=True)
    variance = x.var(axis=-1, keepdims=True)
    normalized = (x - mean) / np.sqrt(variance + 1e-5)  # 1e-5: never divide by zero
    return normalized * weights[f"{name}.weight"] + weights.get(f"{name}.bias", 0)


def attention(x, weights, name, n_head):  # (T, C) -> (T, C)
    hs = x.shape[1] // n_head
    # Each token gets three vectors: its query says what it looks for, its key says what it offers,
    # and its value is what it passes on to the tokens that attend to it.
    qkv = linear(x, weights, f"{name}.c_attn")  # (T, 3 C); c: conv1d, OpenAI's linear layer
    q, k, v = np.split(qkv, 3, axis=-1)  # (T, C) each
    # Causality: a token must not see later tokens, because it is trained to predict the next one.
    future = np.triu(np.ones((len(x), len(x)), dtype=bool), k=1)  # True above the diagonal
    heads = []
    for i in range(n_head):  # every head works on its own hs channels
        part = slice(i * hs, (i + 1) * hs)
        # A sum of hs random terms of mean 0 grows like sqrt(hs), hence the division. Large scores
        # would make the softmax one-hot, and its gradient would vanish.
        scores = q[:, part] @ k[:, part].T / np.sqrt(hs)  # (T, T)
        scores[future] = -np.inf  # exp(-inf) = 0: no attention to later tokens
        probabilities = softmax(scores)  # row t: how much token t takes from each
        heads.append(probabilities @ v[:, part])  # (T, hs): a weighted mean of values
    return linear(np.concatenate(heads, axis=-1), weights, f"{name}.c_proj")


def mlp(x, weights, name):  # (T, C) -> (T, C), for each token independently
    return linear(gelu(linear(x, weights, f"{name}.c_fc")), weights, f"{name}.c_proj")


def gpt2(ids, weights, n_layer, n_head):
    """Token ids (T,) -> logits (T, V). Row i scores every token of the vocabulary as the successor
    of ids[i]; the softmax of the row is the predicted distribution."""
    # Token and position embedding. Attention is a weighted mean, which does not depend on the order
    # of the tokens before: without wpe, a layer could not tell in which order they came.
    wte, wpe = weights["transformer.wte.weight"], weights["transformer.wpe.weight"]
    x = wte[ids] + wpe[:len(ids)]  # (T, C): the residual stream
    for i in range(n_layer):
        block = f"transformer.h.{i}"
        # Each sublayer reads a normalized copy of the residual stream (pre-norm) and adds its
        # output to the stream, so gradients flow unchanged through the sum to the first layer.
        x = x + attention(layer_norm(x, weights, f"{block}.ln_1"), weights, f"{block}.attn", n_head)
        x = x + mlp(layer_norm(x, weights, f"{block}.ln_2"), weights, f"{block}.mlp")
    # Weight tying: the last matrix (the language-model head) is the matrix of the token embedding.
    return layer_norm(x, weights, "transformer.ln_f") @ wte.T


def main():
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import torch

    from model import GPT, GPTConfig

    torch.manual_seed(1)
    config = GPTConfig(block_size=16, vocab_size=50, n_layer=3, n_head=4, n_embd=64, bias=True)
    model = GPT(config).eval()
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    ids = np.array([3, 14, 15, 9, 26, 5, 35, 8])
    logits = gpt2(ids, weights, config.n_layer, config.n_head)
    # The model returns the logits of all positions only if it gets targets. The target of a token
    # is the next one. The last token has none, so it is left out; by causality, this does not
    # change the logits before it.
    with torch.no_grad():
        expected, loss = model(torch.tensor(ids[None, :-1]), torch.tensor(ids[None, 1:]))
    difference = np.abs(logits[:-1] - expected[0].numpy()).max()
    print(f"logits {logits.shape}, largest difference from model.py: {difference:.1e}")
    assert difference < 1e-5
    # Small random weights give small logits: all tokens are about equally likely, loss ln(V).
    print(f"loss of the random model: {loss:.2f}; ln(vocab_size): {np.log(config.vocab_size):.2f}")

    # Greedy decoding: append the most likely next token, and run the model on the longer text. An
    # untrained model usually repeats the last token, because of weight tying: the score of a token
    # is the product of its embedding and x, and x still contains the embedding of the last token.
    for _ in range(8):
        logits = gpt2(ids, weights, config.n_layer, config.n_head)
        ids = np.append(ids, logits[-1].argmax())
    print("tokens, the last 8 of them generated:", *ids)


if __name__ == "__main__":
    main()
