"""The camera head: names and sizes of the public weights, values against PyTorch's own attention, poses and intrinsics."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from scenemill.trainers.nvpanoptix3d.aggregator import Aggregator
from scenemill.trainers.nvpanoptix3d.blocks import checkpoint_blocks
from scenemill.trainers.nvpanoptix3d.camera import CameraHead, pose_encoding, pose_intrinsics


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def shaken(head: CameraHead, seed: int = 3) -> CameraHead:
    """The head with weights that matter everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in head.named_parameters():
            scale = 0.5 if parameter.ndim < 2 or "token" in name else parameter.shape[1] ** -0.5
            offset = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator) + offset)
    return head


def tokens_of(*shape: int, seed: int = 5) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_defaults_have_the_names_and_sizes_of_the_public_weights() -> None:
    expected: dict[str, tuple[int, ...]] = {
        "empty_pose_tokens": (1, 1, 9),
        "embed_pose.weight": (2048, 9),
        "poseLN_modulation.1.weight": (6144, 2048),
        "poseLN_modulation.1.bias": (6144,),
        "pose_branch.fc1.weight": (1024, 2048),
        "pose_branch.fc1.bias": (1024,),
        "pose_branch.fc2.weight": (9, 1024),
        "pose_branch.fc2.bias": (9,),
    }
    vectors = ["token_norm.weight", "token_norm.bias", "trunk_norm.weight", "trunk_norm.bias", "embed_pose.bias"]
    for i in range(4):
        vectors += [f"trunk.{i}.{name}" for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")]
        vectors += [f"trunk.{i}.{name}" for name in ("ls1.gamma", "ls2.gamma", "attn.proj.bias", "mlp.fc2.bias")]
        expected |= {
            f"trunk.{i}.attn.qkv.weight": (6144, 2048),
            f"trunk.{i}.attn.qkv.bias": (6144,),
            f"trunk.{i}.attn.proj.weight": (2048, 2048),
            f"trunk.{i}.mlp.fc1.weight": (8192, 2048),
            f"trunk.{i}.mlp.fc1.bias": (8192,),
            f"trunk.{i}.mlp.fc2.weight": (2048, 8192),
        }
    expected |= dict.fromkeys(vectors, (2048,))
    with torch.device("meta"):
        head = CameraHead()
    shapes = {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()}
    assert shapes == expected
    assert len(shapes) == 69
    assert sum(parameter.numel() for parameter in head.parameters()) == 216_174_610


def block(x: Tensor, weights: dict[str, Tensor], name: str, heads: int) -> Tensor:
    """A pre-norm block around PyTorch's own attention, (B, S, width) float64."""
    width = x.shape[-1]
    attention = nn.MultiheadAttention(width, heads, batch_first=True, dtype=torch.float64)
    attention.load_state_dict(
        {
            "in_proj_weight": weights[f"{name}.attn.qkv.weight"],
            "in_proj_bias": weights[f"{name}.attn.qkv.bias"],
            "out_proj.weight": weights[f"{name}.attn.proj.weight"],
            "out_proj.bias": weights[f"{name}.attn.proj.bias"],
        }
    )
    seen = normed(x, weights, f"{name}.norm1")
    x = x + weights[f"{name}.ls1.gamma"] * attention(seen, seen, seen)[0]
    return x + weights[f"{name}.ls2.gamma"] * mlp(normed(x, weights, f"{name}.norm2"), weights, f"{name}.mlp")


def normed(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return functional.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-5)


def mlp(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    hidden = x @ weights[f"{name}.fc1.weight"].T + weights[f"{name}.fc1.bias"]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return hidden @ weights[f"{name}.fc2.weight"].T + weights[f"{name}.fc2.bias"]


@torch.no_grad()
def rounds(tokens: Tensor, weights: dict[str, Tensor], heads: int, depth: int) -> list[Tensor]:
    """Poses of the four rounds, written out, in float64."""
    width = tokens.shape[-1]
    camera = normed(tokens[:, :, 0], weights, "token_norm")
    plain = (camera - camera.mean(-1, keepdim=True)) / (camera.var(-1, keepdim=True, correction=0) + 1e-6).sqrt()
    total = torch.zeros(*camera.shape[:2], 9, dtype=torch.float64)
    poses = []
    for number in range(4):
        given = weights["empty_pose_tokens"].expand_as(total) if number == 0 else total
        embedded = given @ weights["embed_pose.weight"].T + weights["embed_pose.bias"]
        embedded = embedded / (1 + torch.exp(-embedded))
        modulation = embedded @ weights["poseLN_modulation.1.weight"].T + weights["poseLN_modulation.1.bias"]
        shift, scale, gate = modulation[..., :width], modulation[..., width : 2 * width], modulation[..., 2 * width :]
        x = gate * (plain * (1 + scale) + shift) + camera
        for i in range(depth):
            x = block(x, weights, f"trunk.{i}", heads)
        total = total + mlp(normed(x, weights, "trunk_norm"), weights, "pose_branch")
        pose = total.clone()
        pose[..., 7:] = pose[..., 7:].clamp(min=0)
        poses.append(pose)
    return poses


@pytest.mark.parametrize(("batch", "frames"), [(3, 1), (2, 4)])
def test_poses_equal_the_rounds_written_out(batch: int, frames: int) -> None:
    head = shaken(CameraHead(24, 3, 2))
    tokens = tokens_of(batch, frames, 7, 24)
    weights = {name: value.double() for name, value in head.state_dict().items()}
    poses = head(tokens)
    expected = rounds(tokens.double(), weights, 3, 2)
    assert len(poses) == 4 and poses[-1].shape == (batch, frames, 9)
    for pose, other in zip(poses, expected, strict=True):
        torch.testing.assert_close(pose.double(), other, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(poses[0], poses[-1], atol=0.1)


def test_only_the_first_token_of_a_frame_counts() -> None:
    head = shaken(CameraHead(16, 2, 1))
    tokens = tokens_of(1, 2, 5, 16)
    other = torch.cat([tokens[:, :, :1], tokens_of(1, 2, 4, 16, seed=9)], dim=2)
    assert torch.equal(head(tokens)[-1], head(other)[-1])


def test_a_pose_has_no_negative_field_of_view() -> None:
    raw = torch.tensor([-1.0, -2, -3, -4, -5, -6, -7, -8, 9])
    assert pose_encoding(raw).tolist() == [-1, -2, -3, -4, -5, -6, -7, 0, 9]


def test_intrinsics_come_from_the_two_fields_of_view() -> None:
    pose = torch.zeros(2, 1, 9)
    pose[..., 7], pose[..., 8] = torch.tensor([[1.0], [0.5]]), torch.tensor([[1.2], [2.0]])
    intrinsics = pose_intrinsics(pose, (240, 320))
    assert intrinsics.shape == (2, 1, 3, 3) and intrinsics.dtype == torch.float32
    expected = [[160 / math.tan(0.6), 0, 160], [0, 120 / math.tan(0.5), 120], [0, 0, 1]]
    torch.testing.assert_close(intrinsics[0, 0], torch.tensor(expected))
    assert float(intrinsics[1, 0, 1, 1]) == pytest.approx(120 / math.tan(0.25), rel=1e-6)


def test_intrinsics_of_a_known_camera_return() -> None:
    focal_y, focal_x, height, width = 277.1, 290.3, 240, 320
    pose = torch.tensor([0.0, 0, 0, 0, 0, 0, 1, 2 * math.atan(height / 2 / focal_y), 2 * math.atan(width / 2 / focal_x)])
    intrinsics = pose_intrinsics(pose, (height, width))
    assert intrinsics[[0, 1], [0, 1]].tolist() == pytest.approx([focal_x, focal_y], rel=1e-5)


def test_each_round_learns_from_its_own_pose() -> None:
    head = shaken(CameraHead(16, 2, 1))
    tokens = tokens_of(2, 2, 3, 16).requires_grad_()
    poses = head(tokens)
    poses[-1][..., :7].sum().backward(retain_graph=True)
    assert head.empty_pose_tokens.grad is None and tokens.grad is not None and bool(tokens.grad.any())
    torch.autograd.backward(torch.stack(poses)[..., :7].square().sum())
    assert all(parameter.grad is not None and bool(parameter.grad.any()) for parameter in head.parameters())


def test_checkpointed_blocks_give_the_same_gradients() -> None:
    head = shaken(CameraHead(16, 2, 2))
    tokens = tokens_of(2, 2, 3, 16)
    found = []
    for checkpoint in (False, True):
        checkpoint_blocks(head, checkpoint)
        head.zero_grad()
        torch.autograd.backward(torch.stack(head(tokens))[..., :7].square().sum())
        found.append({name: parameter.grad for name, parameter in head.named_parameters()})
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])  # type: ignore[arg-type]


def test_bfloat16_stays_close() -> None:
    head = shaken(CameraHead(64, 4, 2))
    tokens = tokens_of(2, 2, 3, 64)
    with torch.no_grad():
        exact = head(tokens)[-1]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = head(tokens)[-1]
    assert float((mixed - exact).abs().mean() / exact.abs().mean()) < 0.05


def test_the_whole_forward_is_one_graph() -> None:
    head = shaken(CameraHead(16, 2, 1))
    tokens = tokens_of(1, 2, 3, 16)
    torch.testing.assert_close(torch.compile(head, backend="eager", fullgraph=True)(tokens)[-1], head(tokens)[-1])


def test_the_tiny_configuration_runs() -> None:
    aggregator, head = Aggregator(64, 4, 4, 2, 4, 16), CameraHead(128, 4, 1)
    with torch.no_grad():
        pose = head(aggregator(tokens_of(2, 1, 3, 84, 112), taps=[3])[-1])[-1]
    assert pose.shape == (2, 1, 9) and bool(pose.isfinite().all())
    assert pose_intrinsics(pose + 1, (84, 112)).shape == (2, 1, 3, 3)
