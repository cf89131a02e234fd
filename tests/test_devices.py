"""pytest tests/test_devices.py - devices that this machine lacks, played by others"""

from types import SimpleNamespace

import pytest
import torch
from helpers import MODELS, model_of

from internals import devices

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


@MODELS
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_a_gpu_that_computes_wrong_gradients_is_not_used(monkeypatch, capsys, config, error):
    """Apple's GPU is played by the CPU, with an error in one gradient."""
    model = model_of(config, spread=0.1)
    apple = SimpleNamespace(type="mps")
    correct = devices.loss_and_gradient

    def on_apple(model, device):
        result = correct(model, torch.device("cpu"))
        if device is apple:
            result[3] *= 1 + error
        return result

    monkeypatch.setattr(devices, "loss_and_gradient", on_apple)
    device = devices.trusted(apple, model)
    assert (device is apple) == (error == 0)
    assert ("training on the CPU" in capsys.readouterr().err) == (error > 0)
    assert all(p.grad is None for p in model.parameters())
