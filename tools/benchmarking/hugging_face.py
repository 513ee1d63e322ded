"""Hugging Face's ViViT in PyTorch as a contender: eager or compiled, SDPA, with or without autocast to bfloat16."""

import gc
import importlib.util
import time
from typing import Any

from benchmarking import reference
from benchmarking.workload import Workload

NEEDED = ('torch', 'transformers')
# Fields that its model has, at these values; it has one model, with a cls token.
FIXED = {
    'attention': 'spatio_temporal',
    'classifier': 'token',
    'embedding': 'tubelet',
    'position_embedding': 'learned',
    'activation': 'gelu_tanh',
    'final_norm': True,
    'representation_size': 0,
    'dropout_rate': 0.0,
    'attention_dropout_rate': 0.0,
    'drop_path_rate': 0.0,
}


def missing() -> list[str]:
    """Returns the packages that it needs and that are not there."""
    return [name for name in NEEDED if importlib.util.find_spec(name) is None]


def check(workload: Workload) -> None:
    """Raises a ValueError where it cannot compute what is asked for."""
    model = workload.make_model()
    others = [
        f'{name}={getattr(model, name)!r}' for name, value in FIXED.items() if getattr(model, name) != value
    ]
    if workload.clip[1] != workload.clip[2]:
        others.append(f'a crop of {workload.clip[1]}x{workload.clip[2]}')
    if others:
        raise ValueError(f"Hugging Face's ViViT has no {', no '.join(others)}: leave it out of --contenders")


class TorchContender:
    """Hugging Face's model with momentum SGD, its gradient's norm clipped.

    Args:
        workload: What is computed.
        compiled: Whether by `torch.compile`.
        bfloat16: Whether under autocast to bfloat16.
    """

    def __init__(self, workload: Workload, *, compiled: bool, bfloat16: bool):
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        torch.set_float32_matmul_precision('high')  # on GPUs as jax does it; no change on CPUs
        check(workload)
        self.workload, self.compiled, self.bfloat16 = workload, compiled, bfloat16
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')

    def compile(self, *, runs: bool, forward: bool) -> dict[str, Any]:
        """Makes the model and runs each step twice, in the first of which it is compiled.

        Args:
            runs: Makes no difference here.
            forward: Whether also the step forward.

        Returns:
            Seconds that the first training step took longer than the second.
        """
        import torch

        torch.manual_seed(0)
        self.model = self._model().to(self.device)
        self.optimiser = torch.optim.SGD(
            self.model.parameters(), lr=reference.LEARNING_RATE, momentum=reference.MOMENTUM
        )
        video, labels = self.workload.clips()
        self.video = torch.from_numpy(video).permute(0, 1, 4, 2, 3).contiguous().to(self.device)
        self.labels = torch.from_numpy(labels).long().to(self.device)
        self.run = torch.compile(self.model) if self.compiled else self.model
        result: dict[str, Any] = {'compile_seconds': _first_longer(self.train)}
        if forward:
            result['forward_compile_seconds'] = _first_longer(self.forward)
        return result | {'parameters': sum(p.numel() for p in self.model.parameters()), 'planned': None}

    def start(self) -> None:
        """Does nothing: the model is there."""

    def train(self) -> None:
        """Takes a training step and waits for it."""
        import torch

        self.optimiser.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(self._logits().float(), self.labels).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), reference.MAX_NORM)
        self.optimiser.step()
        self._wait()

    def forward(self) -> None:
        """Classifies the batch and waits for it. Nothing is dropped out, so that there is no mode to switch."""
        import torch

        with torch.inference_mode():
            self._logits()
        self._wait()

    def predicted_bytes(self) -> None:
        """Returns nothing: PyTorch plans no memory ahead."""

    def live_bytes(self) -> int:
        """Returns what parameters, momentum and the batch take, in bytes, once gradients are let go."""
        self.optimiser.zero_grad(set_to_none=True)
        gc.collect()
        parameters = sum(p.numel() * p.element_size() for p in self.model.parameters())
        batch = sum(t.numel() * t.element_size() for t in (self.video, self.labels))
        return 2 * parameters + batch

    def device_peak(self) -> int | None:
        """Returns the most memory that the device has had in use, in bytes; None on CPUs."""
        import torch

        return torch.cuda.max_memory_allocated() if self.device.type == 'cuda' else None

    def _logits(self) -> Any:
        import torch

        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            return self.run(pixel_values=self.video).logits

    def _wait(self) -> None:
        import torch

        if self.device.type == 'cuda':
            torch.cuda.synchronize()

    def _model(self) -> Any:
        from transformers import VivitConfig, VivitForVideoClassification

        model, (frames, size, _, channels) = self.workload.make_model(), self.workload.clip
        settings: dict[str, Any] = {
            'image_size': size,
            'num_frames': frames,
            'num_channels': channels,
            'tubelet_size': list(model.tubelet),
            'hidden_size': model.width,
            'num_hidden_layers': model.num_layers,
            'num_attention_heads': model.num_heads,
            'intermediate_size': model.mlp_dim,
            'hidden_act': 'gelu_fast',
            'layer_norm_eps': model.norm_epsilon,
            'hidden_dropout_prob': 0.0,
            'attention_probs_dropout_prob': 0.0,
            'qkv_bias': True,
            'num_labels': model.num_classes,
            'attn_implementation': 'sdpa',
        }
        return VivitForVideoClassification(VivitConfig(**settings)).train()


def _first_longer(step: Any) -> float:
    seconds = []
    for _ in range(2):
        began = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - began)
    return max(0.0, seconds[0] - seconds[1])
