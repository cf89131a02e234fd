"""AdamW and Muon with one interface: param_groups, step, state_dict, load_state_dict."""

import torch

from internals import graphs
from internals.errors import UserError


class Optimizers:
    """One or two optimizers as one: AdamW, and then Muon if it is used.

    param_groups: the groups of both. Each group has a "scale": its learning rate divided by
    TrainConfig.learning_rate.
    """

    def __init__(self, optimizers):
        self.optimizers = optimizers
        self.param_groups = [group for each in optimizers for group in each.param_groups]
        device = self.param_groups[0]["params"][0].device  # other groups can be empty
        if graphs.can_record(device):
            # a CUDA graph would keep the number that it was recorded with, but it reads a tensor
            for group in self.param_groups:
                group["lr"] = torch.full((), group["lr"], device=device)

    def set_learning_rate(self, lr):
        """Set the learning rate of each group to `lr` times its scale."""
        for group in self.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr * group["scale"])
            else:
                group["lr"] = lr * group["scale"]

    def step(self, skip, scaler=None):
        """One update. skip: a bool tensor () on the device of the parameters; if it is true, the
        parameters and the state are not changed at all.

        scaler: the GradScaler that has divided the gradients by its factor. After an overflow it
        halves the factor, and after many updates without one it doubles it. We do not call
        scaler.step: with Muon it would wait for the GPU, and it would not skip an update because
        of a NaN in the loss alone.
        """
        for optimizer in self.optimizers:
            # fused AdamW, and our Muon, read this attribute on the device: 1 means to skip. It is
            # made for GradScaler
            optimizer.found_inf = skip.float()
            optimizer.step()
        if scaler is not None:
            scaler.update()  # it knows of overflows from scaler.unscale_

    def state_dict(self):
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        for state in states:
            for group in state["param_groups"]:
                group["lr"] = float(group["lr"])
        return states

    def load_state_dict(self, states):
        """Load the moments. Learning rates and weight decay are not loaded: the current settings
        apply. Raises UserError if they are not the moments of these optimizers."""
        parameters = [p for group in self.param_groups for p in group["params"]]
        for p in parameters:
            p.grad = torch.zeros_like(p)
        # The optimizers make their moments in the first step. So we take one that is skipped, to
        # see which layout the stored moments must have
        self.step(skip=torch.ones((), device=parameters[0].device))
        for p in parameters:
            p.grad = None
        try:
            for optimizer, stored in zip(self.optimizers, states, strict=True):
                new = optimizer.state_dict()
                # before the first step there are no moments
                if stored["state"] and layout(stored["state"]) != layout(new["state"]):
                    raise ValueError("the moments differ")
                optimizer.load_state_dict(new | {"state": stored["state"]})
        except (AttributeError, RuntimeError, LookupError, TypeError, ValueError):
            kinds = " and ".join(type(optimizer).__name__ for optimizer in self.optimizers)
            raise UserError(
                f"the checkpoint cannot be resumed: its optimizer is not {kinds} as this version "
                "has it, or has other parameters; to start a new run from its weights, set "
                "--init_from= to its folder") from None
        # load_state_dict has replaced the groups
        self.param_groups = [group for each in self.optimizers for group in each.param_groups]


def layout(state):
    """{(index of the parameter, name): (shape, strides)} of the moments in a state dict."""
    found = {}
    for index, moments in state.items():
        for name, moment in moments.items():
            found[index, name] = (moment.shape, moment.stride())
    return found


def make_optimizer(model, cfg, dtype):
    """The Optimizers for the settings.

    model: a GPT. cfg: a TrainConfig. dtype: the name of the dtype of the run. Muon's matrix
    products use it if it is bfloat16, and float32 otherwise.
    Matrices and embeddings decay. Biases and norm scales do not: they are few and only shift or
    scale activations, so decay would distort the activations without regularizing the model.
    """
    named = dict(model.named_parameters())
    muon = {name: p for name, p in named.items()
            if cfg.optimizer == "muon" and ".h." in name and p.dim() == 2}
    embedding = named["transformer.wte.weight"]
    rest = [p for name, p in named.items() if name not in muon and p is not embedding]
    embedding_lr = cfg.learning_rate if cfg.embedding_lr is None else cfg.embedding_lr
    # this order must not change, because checkpoints store the states by position
    groups = [
        {"params": [embedding], "weight_decay": cfg.weight_decay,
         "scale": embedding_lr / cfg.learning_rate},
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": cfg.weight_decay,
         "scale": 1.0},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0, "scale": 1.0},
    ]
    betas = (cfg.beta1, cfg.beta2)
    # fused: one kernel updates all parameters of a group. capturable: allows CUDA graphs
    optimizers = [torch.optim.AdamW(groups, cfg.learning_rate, betas, fused=True,
                                    capturable=embedding.is_cuda)]
    if muon:
        product_dtype = torch.bfloat16 if dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(muon, cfg.muon_lr, cfg.momentum, cfg.weight_decay, product_dtype))
        for group in optimizers[1].param_groups:
            group["scale"] = cfg.muon_lr / cfg.learning_rate
    return Optimizers(optimizers)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates of matrices (Jordan et al. 2024,
    kellerjordan.github.io/posts/muon). All directions of a matrix are learned at the same speed,
    whether their gradients are large or small.

    torch.optim.Muon updates one matrix at a time, treats q, k and v as one matrix, and cannot skip
    an update with non-finite gradients. We process all matrices of one shape as a batch, which is
    faster (docs/benchmarks.md).
    """

    def __init__(self, named, lr, momentum, weight_decay, dtype):
        """named: {name: (out, in) matrix}. dtype: of the matrix products in `orthogonal`."""
        groups = {}
        for name, p in named.items():
            rows, columns = p.shape
            parts = 1
            if name.endswith("c_attn.weight") and rows == 3 * columns:
                parts = 3  # q, k and v, if they have equal shapes (exercise 10 changes that)
            groups.setdefault((tuple(p.shape), parts), []).append(p)
        super().__init__([{"params": params, "parts": parts}
                          for (_, parts), params in groups.items()],
                         {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype
        self.found_inf = torch.zeros((), device=self.param_groups[0]["params"][0].device)

    @torch.no_grad()
    def step(self):
        apply = 1 - self.found_inf  # 0: skip this update
        for group in self.param_groups:
            params = group["params"]
            mu = group["momentum"]
            lr = group["lr"] * apply
            grads = torch.stack([p.grad for p in params])  # (n, out, in)
            grads = grads.where(apply > 0, 0.0)  # 0 * NaN would be NaN
            state = self.state[params[0]]
            if "momentum" not in state:
                state["momentum"] = torch.zeros_like(grads)
            momentum = state["momentum"]
            momentum.lerp_(grads, (1 - mu) * apply)
            update = grads.lerp(momentum, mu)  # Nesterov momentum
            rows, cols = params[0].shape
            rows //= group["parts"]
            update = orthogonal(update.view(-1, rows, cols), self.dtype)
            # The entries of an orthogonal matrix are about 1 / sqrt(the larger of rows and cols).
            # With this factor, they are about 1 / sqrt(cols) for tall matrices, too
            update *= max(1, rows / cols) ** 0.5
            for p, change in zip(params, update.view_as(grads), strict=True):
                p.mul_(1 - lr * group["weight_decay"]).sub_(change * lr)


def orthogonal(matrices, dtype):
    """Replace each matrix U S V^T of (n, a, b) by approximately U V^T, its nearest orthogonal
    matrix. Five Newton-Schulz steps with Jordan's coefficients move the singular values to between
    about 0.7 and 1.2. (Those below about 0.15% of the norm of the matrix remain smaller.) dtype:
    of the matrix products.

    A step is x <- 3.4445 x - 4.7750 (x x^T) x + 2.0315 (x x^T)^2 x. It leaves the directions of x,
    and changes each singular value s to 3.4445 s - 4.7750 s^3 + 2.0315 s^5."""
    x = matrices.to(dtype)
    tall = x.shape[1] > x.shape[2]
    if tall:  # x x^T is smaller for a wide matrix
        x = x.mT
    # no singular value is larger than the norm: now all are at most 1, or the steps would diverge
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT  # baddbmm(a, b, c, beta, alpha) is beta a + alpha b c
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    if tall:
        x = x.mT
    return x.to(matrices.dtype)
