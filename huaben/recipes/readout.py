"""What a text says, as labels, and a small network that reads it out of text states.

Labels are indices into :data:`huaben.world.vocabulary.KEYS`; one class more stands for "not said". The read-out is
trained beside a text tower and thrown away: to satisfy it, the states must say which attributes belong to which
character.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..world.scene import MAX_CHARACTERS
from ..world.vocabulary import INDEX, KEYS

CHARACTER_ATTRIBUTES = ("species", "colour", "accessory", "expression", "facing", "size", "place")
SCENE_ATTRIBUTES = ("background", "style")
NUM_CLASSES = {name: len(KEYS[name]) + 1 for name in (*CHARACTER_ATTRIBUTES, *SCENE_ATTRIBUTES)}
IGNORED = -100


def labels_of(facts: Mapping[str, str], names: Iterable[str]) -> list[int]:
    """Return one class for each attribute; the last one where it is not said."""
    return [INDEX[name][facts[name]] if name in facts else NUM_CLASSES[name] - 1 for name in names]


def slot_labels(facts: Iterable[Mapping[str, str]]) -> NDArray[np.int16]:
    """Return (4, 7): classes of the characters in the order they are mentioned.

    A slot without a character has "not said" for its species, and nothing else is asked of it.
    """
    labels = np.full((MAX_CHARACTERS, len(CHARACTER_ATTRIBUTES)), IGNORED, np.int16)
    labels[:, 0] = NUM_CLASSES["species"] - 1
    for slot, said in enumerate(facts):
        labels[slot] = labels_of(said, CHARACTER_ATTRIBUTES)
    return labels


def attribute_losses(logits: Tensor, labels: Tensor, names: tuple[str, ...]) -> Tensor:
    """Return the cross-entropy of each attribute (A,), each a mean over the labels that are not ignored.

    Args:
        logits: (..., sum of the attributes' classes).
        labels: int64 (..., A).
        names: the A attributes.
    """
    parts = logits.float().split([NUM_CLASSES[name] for name in names], dim=-1)
    losses = []
    for part, label in zip(parts, labels.unbind(-1), strict=True):
        total = F.cross_entropy(part.flatten(0, -2), label.flatten(), ignore_index=IGNORED, reduction="sum")
        losses.append(total / (label != IGNORED).sum().clamp(min=1))
    return torch.stack(losses)


def predicted(logits: Tensor, names: tuple[str, ...]) -> Tensor:
    """Return the most likely class of each attribute, int64 (..., A)."""
    return torch.stack([part.argmax(-1) for part in logits.split([NUM_CLASSES[name] for name in names], dim=-1)], -1)


class SlotReadout(nn.Module):
    """One query a mentioned character and one for the scene, attending once over the states.

    Slot k reads the k-th mentioned character, so that its tokens must know whose they are.
    """

    def __init__(self, hidden_size: int, num_heads: int = 4) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.randn(MAX_CHARACTERS + 1, hidden_size) * hidden_size**-0.5)
        self.key_value = nn.Linear(hidden_size, 2 * hidden_size)
        self.mix = nn.Sequential(
            nn.LayerNorm(hidden_size), nn.Linear(hidden_size, 2 * hidden_size), nn.GELU(),
            nn.Linear(2 * hidden_size, hidden_size),
        )  # fmt: skip
        self.character = nn.Linear(hidden_size, sum(NUM_CLASSES[name] for name in CHARACTER_ATTRIBUTES))
        self.scene = nn.Linear(hidden_size, sum(NUM_CLASSES[name] for name in SCENE_ATTRIBUTES))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the slots (B, 4, ...) and of the scene (B, ...)."""
        k, v = self.key_value(states).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, H, L, d)
        q = self.queries.unflatten(-1, (self.num_heads, -1)).transpose(0, 1)  # (H, 5, d)
        scores = (q @ k.mT).float().masked_fill(~mask[:, None, None, :], torch.finfo(torch.float32).min)
        read = (scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)  # (B, 5, D)
        read = read + self.mix(read)
        return self.character(read[:, :-1]), self.scene(read[:, -1])

    def losses(self, states: Tensor, mask: Tensor, slots: Tensor, scene: Tensor) -> dict[str, Tensor]:
        """Return the mean cross-entropy over the attributes of ``slots`` (B, 4, 7) and of ``scene`` (B, 2)."""
        slot_logits, scene_logits = self(states, mask)
        return {
            "slots": attribute_losses(slot_logits, slots, CHARACTER_ATTRIBUTES).mean(),
            "scene": attribute_losses(scene_logits, scene, SCENE_ATTRIBUTES).mean(),
        }
