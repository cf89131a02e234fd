"""pytest tests/test_devices.py - devices that this machine lacks, played by others"""

import copy

import pytest
import torch
from helpers import GPT2_TINY, MODELS

from internals import devices
from model import GPT

CUDA = torch.device("cuda", 0)


@pytest.mark.parametrize("name, tflops", [
    ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989),
    ("NVIDIA H20", 148), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10G", 70), ("NVIDIA A10", 125),
    ("NVIDIA L4", 121), ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165.2),
    ("NVIDIA GeForce RTX 5070 Ti", 87.9), ("NVIDIA GeForce RTX 5070", 61.7),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None),
    ("NVIDIA GeForce RTX 4090 D", None), ("Tesla T4", None)])
def test_the_peak_is_that_of_the_card_and_unknown_for_others(monkeypatch, name, tflops):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    expected = None if tflops is None else tflops * 1e12
    assert devices.peak_flops(CUDA, "bfloat16") == expected
    assert devices.peak_flops(CUDA, "float32") is None


class Apple:
    """Apple's GPU, played by the CPU."""

    type = "mps"


@MODELS
@pytest.mark.parametrize("wrong", [None, "lm_head", "transformer.h.1.attn.c_attn"])
def test_a_gpu_that_computes_wrong_results_is_not_used(monkeypatch, capsys, config, wrong):
    """The model is new, as at the start of a run: zero_init must not hide an error."""
    model = GPT(config)
    apple = Apple()
    correct = devices.loss_and_gradient

    def on_apple(model, device):
        if device is apple and wrong:
            model = copy.deepcopy(model)
            model.get_submodule(wrong).register_forward_hook(lambda module, args, y: 1.5 * y)
        return correct(model, torch.device("cpu"))

    monkeypatch.setattr(devices, "loss_and_gradient", on_apple)
    device = devices.trusted(apple, model)
    assert (device is apple) == (wrong is None)
    assert ("training on the CPU" in capsys.readouterr().err) == (wrong is not None)
    assert all(p.grad is None for p in model.parameters())


def test_a_model_that_has_diverged_says_nothing_about_a_gpu(monkeypatch):
    model = GPT(GPT2_TINY)
    model.transformer.wte.weight.data.fill_(torch.nan)
    correct = devices.loss_and_gradient
    monkeypatch.setattr(devices, "loss_and_gradient",
                        lambda model, device: correct(model, torch.device("cpu")))
    apple = Apple()
    assert devices.trusted(apple, model) is apple
