"""The networks' optimizer: Muon for the matrices inside the blocks, AdamW for everything else.

Jordan et al.: "Muon: an optimizer for hidden layers in neural networks", 2024; steps as long as AdamW's, so that one
learning rate serves both: Liu et al.: "Muon is scalable for LLM training", 2025.
"""
from collections.abc import Iterator

import torch

from audiocodec.training.generator import Generator

_DECAY = 0.01
_NEWTON_SCHULZ_STEPS = 4     # one fewer than usual: on a CPU they take a third of an update's time


class Optimizer:
    """Steps those parameters of a generator that require gradients; the state of both optimizers in one."""

    def __init__(self, generator: Generator):
        matrices = {p for stack in (generator.encoder.network, generator.decoder.network) for block in stack.blocks
                    for p in (block.expand.weight, block.project.weight)}
        learning = [p for p in generator.parameters() if p.requires_grad]
        others = [p for p in learning if p not in matrices]
        self._both = (
            torch.optim.Muon([p for p in learning if p in matrices], weight_decay=_DECAY, momentum=0.9,
                             ns_steps=_NEWTON_SCHULZ_STEPS, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, betas=(0.8, 0.99), weight_decay=_DECAY, fused=True))

    @property
    def param_groups(self) -> Iterator[dict]:
        return (group for optimizer in self._both for group in optimizer.param_groups)

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self._both:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        for optimizer in self._both:
            optimizer.step()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self._both]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self._both, states):
            optimizer.load_state_dict(state)
