"""ArmoRM (arXiv 2406.12845): a reward as a weighted sum of 19 objectives, with weights that depend on the request.

The release (RLHFlow/ArmoRM-Llama3-8B-v0.1) brings its class as Python code in the model's folder. That code is never
run: a folder of weights must not be able to run code on the machine that reads it. As a plain sequence classifier it
would load, too, but with a random head. So the class is written anew here, from the paper and the released class, with
the released names of tensors and of config.json's keys; transformers' own Llama does the rest.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, LlamaPreTrainedModel

ARCHITECTURE = "LlamaForRewardModelWithGating"
"""What the release's config.json calls its class."""


class Gating(nn.Module):
    """Weights of the objectives (B, O) from what was understood of the request (B, D): an MLP, then a softmax."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        width, hidden = getattr(config, "gating_hidden_dim", 1024), getattr(config, "gating_n_hidden", 3)
        sizes = [config.hidden_size, *[width] * hidden, objectives(config)]
        self.temperature = float(getattr(config, "gating_temperature", 10))
        self.logit_scale = nn.Parameter(torch.ones(1))
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, understood: Tensor) -> Tensor:
        """(B, D) -> (B, O)."""
        for layer in list(self.layers)[:-1]:
            understood = layer(understood).relu()
        logits: Tensor = self.layers[-1](understood)
        return (logits / self.temperature).softmax(dim=1) * self.logit_scale


class ArmoRM(LlamaPreTrainedModel):  # type: ignore[misc]
    """Reward of each row: sum over objectives o of gate_o(request) (W^T r(answer))_o.

    r is linear in the state of the last token, the gate reads the state of the token that ends the request, and W
    (`reward_transform_matrix`) takes out of each objective what it owes to length.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        count = objectives(config)
        self.model = LlamaModel(config)
        self.regression_layer = nn.Linear(config.hidden_size, count, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(count), requires_grad=False)
        self.gating = Gating(config)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, gate_at: Tensor) -> Tensor:
        """Right-padded ids and mask (B, P), and where each row's request ends (B,) -> rewards (B,)."""
        states = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        rows = torch.arange(len(states), device=states.device)
        rewards = self.regression_layer(states[rows, attention_mask.sum(1) - 1]) @ self.reward_transform_matrix
        score: Tensor = (self.gating(states[rows, gate_at]) * rewards).sum(dim=1)
        return score


def objectives(config: Any) -> int:
    """How many objectives the rewards are made of."""
    return int(getattr(config, "num_objectives", 19))
