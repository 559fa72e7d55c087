"""Muon: orthogonal updates for hidden matrices, exactly AdamW for the rest, the same bits after a restart."""

import pytest
import torch
from torch import nn

from huaben.muon import MATCHED_RMS, Muon, hidden_matrices, orthogonalised
from huaben.training import FitConfig, make_optimizer, parameter_groups


@pytest.mark.parametrize("shape", [(64, 64), (96, 64), (64, 200)])
def test_orthogonalised_has_singular_values_near_one_and_the_same_directions(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    result = orthogonalised(matrix)
    values = torch.linalg.svdvals(result)
    assert values.quantile(0.05) > 0.5 and values.max() < 1.3  # a nearly singular direction grows only so far
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    assert nn.functional.cosine_similarity(result.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_other_parameters_get_exactly_adamw():
    torch.manual_seed(0)
    a = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))
    b = nn.Sequential(nn.Linear(8, 16), nn.LayerNorm(16))
    b.load_state_dict(a.state_dict())
    config = FitConfig(learning_rate=0.01, weight_decay=0.1)
    device = torch.device("cpu")
    ours = make_optimizer(a, parameter_groups(a, 0.1), config.replace(optimizer="muon"), device)
    adamw = make_optimizer(b, parameter_groups(b, 0.1), config, device)
    assert isinstance(ours, Muon) and not any(group["muon"] for group in ours.param_groups)
    x, y = torch.randn(4, 8), torch.randn(4, 16)
    for _ in range(5):
        for model, optimizer in ((a, ours), (b, adamw)):
            optimizer.zero_grad()
            (model(x) - y).square().sum().backward()
            optimizer.step()
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-6)


def test_hidden_matrices_are_large_linear_weights_only():
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 8), nn.Embedding(100, 128), nn.LayerNorm(128))
    assert hidden_matrices(model) == {id(model[0].weight)}


def test_update_has_adams_size_and_lowers_the_loss():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 64))
    config = FitConfig(learning_rate=0.01, optimizer="muon", weight_decay=0.0)
    optimizer = make_optimizer(model, parameter_groups(model, 0.0), config, torch.device("cpu"))
    x, y = torch.randn(128, 64), torch.randn(128, 64)
    losses = []
    for _ in range(60):
        before = model[0].weight.detach().clone()
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    moved = (model[0].weight - before).square().mean().sqrt() / 0.01
    assert 0.5 * MATCHED_RMS < moved < 1.5 * MATCHED_RMS
    assert losses[-1] < 0.5 * losses[0]
