"""The transformer learns four pictures by heart; checkpointing changes no gradient."""

from __future__ import annotations

import torch
from dit_peers import TINY, make_inputs, tiny_model

from huaben.diffusion.dit import HunyuanDiT


def test_toy_training_learns_four_latents():
    """v-prediction of four fixed latents, told apart by their text."""
    torch.manual_seed(0)
    model = HunyuanDiT(TINY.replace(learn_sigma=False)).train()
    betas = torch.linspace(0.00085**0.5, 0.018**0.5, 1000, dtype=torch.float64).square()
    abar = torch.cumprod(1 - betas, dim=0).float()
    pictures = torch.randn(4, 4, 8, 8)
    clip, t5 = torch.randn(4, 8, 32), torch.randn(4, 12, 16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(250):
        which, t = torch.randint(4, (16,)), torch.randint(1000, (16,))
        noise, alpha, sigma = torch.randn(16, 4, 8, 8), abar[t].sqrt(), (1 - abar[t]).sqrt()
        alpha, sigma = alpha[:, None, None, None], sigma[:, None, None, None]
        noisy, target = alpha * pictures[which] + sigma * noise, alpha * noise - sigma * pictures[which]
        mask = torch.ones(16, 8), torch.ones(16, 12)
        predicted = model(noisy, t, clip[which], mask[0], t5[which], mask[1])
        loss = torch.nn.functional.mse_loss(predicted, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    first, last = sum(losses[:20]) / 20, sum(losses[-20:]) / 20
    assert losses[0] > 0.8  # a new model predicts zero
    assert first > 0.8
    assert last < 0.2, f"mean loss {first:.2f} -> {last:.2f}"


def test_gradient_checkpointing_changes_no_gradient():
    model = tiny_model().train()
    inputs = make_inputs(TINY)
    context, positions = torch.randn(2, 3, 32), torch.rand(2, 3, 2)
    grads = []
    for enabled in (False, True):
        model.gradient_checkpointing(enabled)
        model.zero_grad()
        model(**inputs, context=context, context_positions=positions).square().mean().backward()
        assert all(weight.grad is not None for weight in model.parameters())
        grads.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grads[1][name], grad, rtol=0, atol=1e-6)


def test_gradient_checkpointing_recomputes_blocks():
    model = tiny_model().train()
    inputs, runs = make_inputs(TINY), []
    model.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    model.gradient_checkpointing()
    model(**inputs).sum().backward()
    assert len(runs) == 2
    with torch.no_grad():
        model(**inputs)
    assert len(runs) == 3


def test_gradients_reach_context_and_offset():
    model = tiny_model().train()
    context, offset = torch.randn(2, 3, 32, requires_grad=True), torch.zeros(2, 16, 32, requires_grad=True)
    positions = torch.rand(2, 3, 2) * 32
    out = model(**make_inputs(TINY), context=context, context_positions=positions, token_offset=offset)
    out.square().mean().backward()
    assert float(context.grad.abs().min()) > 0
    assert float(offset.grad.abs().max()) > 0
