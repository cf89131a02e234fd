"""AdamW and Muon behind one interface: param_groups, step, state_dict, load_state_dict."""

import torch


class Optimizers:
    """AdamW, and behind it Muon if there is one, as one optimizer.

    param_groups: the groups of both. Each has a "scale": its learning rate as a multiple of
    TrainConfig.learning_rate.
    """

    def __init__(self, optimizers):
        self.optimizers = optimizers
        self.param_groups = [group for each in optimizers for group in each.param_groups]

    def step(self, skip):
        """One update. skip: a bool tensor () on the device of the parameters; if it is true, the
        parameters and the state stay as they are, to the last bit."""
        for optimizer in self.optimizers:
            # AdamW (fused) and Muon read found_inf on the device: the CPU need not wait for it
            optimizer.found_inf = skip.float()
            optimizer.step()

    def state_dict(self):
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states):
        """The moments come from `states`; learning rates and weight decay stay as they are set."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict(state | {"param_groups": groups})
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]


def make_optimizer(model, cfg, dtype):
    """The optimizer that the settings name.

    model: a GPT. cfg: a TrainConfig. dtype: "bfloat16" or another name, of Muon's products.
    Matrices and embeddings decay. Biases and norm scales do not: they are few and only shift or
    scale activations, so decay would distort the activations without regularizing the model.
    """
    named = dict(model.named_parameters())
    muon = {name: p for name, p in named.items()
            if cfg.optimizer == "muon" and ".h." in name and p.dim() == 2}
    embedding = named["transformer.wte.weight"]
    rest = [p for name, p in named.items() if name not in muon and p is not embedding]
    embedding_lr = cfg.learning_rate if cfg.embedding_lr is None else cfg.embedding_lr
    # the token embedding is always the first group: checkpoints hold the states in this order
    groups = [
        {"params": [embedding], "weight_decay": cfg.weight_decay,
         "scale": embedding_lr / cfg.learning_rate},
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": cfg.weight_decay,
         "scale": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "scale": 1.0},
    ]
    betas = (cfg.beta1, cfg.beta2)
    # fused: one kernel updates all parameters of a group
    optimizers = [torch.optim.AdamW(groups, cfg.learning_rate, betas, fused=True)]
    if muon:
        products = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(muon, cfg.muon_lr, cfg.momentum, cfg.weight_decay, products))
        for group in optimizers[1].param_groups:
            group["scale"] = cfg.muon_lr / cfg.learning_rate
    return Optimizers(optimizers)


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is orthogonalized: all directions are learned at the
    same speed, whether their gradient is large or small (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon).

    torch.optim.Muon updates one matrix at a time, takes q, k and v as one matrix, and cannot skip a
    step that is not finite. Here all matrices of one shape are one batch, which is faster
    (docs/benchmarks.md).
    """

    def __init__(self, named, lr, momentum, weight_decay, dtype):
        """named: {name: (out, in) matrix}. dtype: of the products that orthogonalize."""
        groups = {}
        for name, p in named.items():
            parts = 3 if name.endswith("c_attn.weight") else 1  # c_attn holds q, k and v
            groups.setdefault((tuple(p.shape), parts), []).append(p)
        super().__init__([{"params": params, "parts": parts}
                          for (_, parts), params in groups.items()],
                         {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.found_inf = torch.zeros((), device=self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self):
        go = 1 - self.found_inf  # at 0 everything stays as it is
        for group in self.param_groups:
            params, mu, lr = group["params"], group["momentum"], group["lr"] * go
            grads = torch.stack([p.grad for p in params])  # (n, out, in)
            grads = grads.where(go > 0, 0.0)  # 0 x NaN would be NaN
            momentum = self.state[params[0]].setdefault("momentum", torch.zeros_like(grads))
            momentum.lerp_(grads, (1 - mu) * go)
            update = grads.lerp(momentum, mu)  # Nesterov momentum
            rows, cols = params[0].shape
            rows //= group["parts"]
            update = orthogonal(update.view(-1, rows, cols), self.dtype)
            update *= max(1, rows / cols) ** 0.5  # so that tall matrices change as fast as square
            for p, change in zip(params, update.view_as(grads), strict=True):
                p.mul_(1 - lr * group["weight_decay"]).sub_(change * lr)


def orthogonal(matrices, dtype):
    """(n, a, b), each matrix U S V^T, to about U V^T: five Newton-Schulz steps with Jordan's
    coefficients bring all singular values between about 0.7 and 1.2. Products are in `dtype`."""
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    if tall:
        x = x.mT
    return x.to(matrices.dtype)
