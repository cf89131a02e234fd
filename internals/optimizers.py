"""AdamW and Muon."""

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose matrices are made orthogonal: every direction is learnt at the same speed, be
    its gradient large or small (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    torch.optim.Muon takes matrix by matrix, q, k and v as one of them, and cannot leave out a step
    that is not finite. Here those of one shape are a batch, which is faster (docs/benchmarks.md).
    """

    def __init__(self, params, lr, momentum, weight_decay, dtype):
        """params: (out, in) matrices. dtype: of the products that make them orthogonal."""
        shapes = {}
        for p in params:
            shapes.setdefault(tuple(p.shape), []).append(p)
        super().__init__([{"params": some} for some in shapes.values()],
                         {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.found_inf = torch.zeros((), device=self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self):
        go = 1 - self.found_inf  # 0: all stays as it is, to the last bit
        for group in self.param_groups:
            params, mu, lr = group["params"], group["momentum"], group["lr"] * go
            grads = torch.stack([p.grad for p in params])  # (n, out, in)
            grads = grads.where(go > 0, 0.0)  # not even 0 x NaN may be added
            momentum = self.state[params[0]].setdefault("momentum", torch.zeros_like(grads))
            momentum.lerp_(grads, (1 - mu) * go)
            update = grads.lerp(momentum, mu)  # Nesterov's
            rows, cols = params[0].shape
            if rows == 3 * cols:
                update = update.view(-1, cols, cols)  # c_attn: q, k and v
                rows = cols
            update = orthogonal(update, self.dtype) * max(1, rows / cols) ** 0.5
            for p, change in zip(params, update.view_as(grads), strict=True):
                p.mul_(1 - lr * group["weight_decay"]).sub_(change * lr)


def orthogonal(matrices, dtype):
    """(n, a, b), each matrix U S V^T made U V^T, nearly: five steps of Newton and Schulz with
    Jordan's coefficients bring the singular values between about 0.7 and 1.2."""
    x = matrices.to(dtype)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return (x.mT if tall else x).to(matrices.dtype)


def make_optimizers(model, cfg, dtype):
    """AdamW, in which matrices and embeddings decay, and biases and gains do not (GPT-2, GPT-3);
    behind it Muon for the matrices in the blocks, if cfg says so. Each group of parameters has a
    "scale": its rate as a multiple of learning_rate."""
    named = dict(model.named_parameters())
    muon = {name: p for name, p in named.items()
            if cfg.optimizer == "muon" and ".h." in name and p.dim() == 2}
    rest = [p for name, p in named.items() if name not in muon]
    decay, rate = cfg.weight_decay, cfg.learning_rate
    groups = [{"params": [p for p in rest if p.dim() >= 2], "weight_decay": decay, "scale": 1.0},
              {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "scale": 1.0}]
    if cfg.embedding_lr is not None:
        # wte first, as without a rate of its own: a checkpoint has the states in this order
        groups.insert(0, {"params": [groups[0]["params"].pop(0)], "weight_decay": decay,
                          "scale": cfg.embedding_lr / rate})
    # fused: one kernel for all parameters
    optimizers = [torch.optim.AdamW(groups, rate, (cfg.beta1, cfg.beta2), fused=True)]
    if muon:
        products = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(muon.values(), cfg.muon_lr, cfg.momentum, decay, products))
        for group in optimizers[1].param_groups:
            group["scale"] = cfg.muon_lr / rate
    return optimizers
