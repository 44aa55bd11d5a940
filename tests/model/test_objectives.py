"""The rivals of Table 6 as configurations of `FerPllForPreTraining`, against transformers' own models."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from transformers import ViTConfig, ViTForMaskedImageModeling, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from fer_pll import FerPllConfig, FerPllForPreTraining
from fer_pll.model.hog import hog_targets
from fer_pll.model.modeling_fer_pll import patchify_pixels

SIZES = {  # of ViT's configuration and of ours
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
}
DECODER = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 24,
}
MASKFEAT = {"mask_style": "token", "mask_shape": "blocks", "hog_gradient": "sobel", "hog_cell_size": 4}
SIMMIM = {"mask_style": "token", "mask_unit_size": 16, "pretraining_target": "pixels", "pretraining_loss": "l1"}
PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def randomize(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model.eval()


def renamed(weights: dict, names: dict[str, str]) -> dict:
    result = {}
    for name, tensor in weights.items():
        new_name = name
        for theirs, ours in names.items():
            new_name = new_name.replace(theirs, ours)
        result[new_name] = tensor
    return result


@pytest.mark.parametrize("normalized", [True, False])
def test_mae_is_transformers_vit_mae(normalized):
    """Loss, predictions and gradients with the same weights and the same noise."""
    config = ViTMAEConfig(**SIZES, **DECODER, layer_norm_eps=1e-6, mask_ratio=0.75, norm_pix_loss=normalized)
    theirs = randomize(ViTMAEForPreTraining(config))
    target = "normalized_pixels" if normalized else "pixels"
    ours = FerPllForPreTraining(FerPllConfig(**SIZES, **DECODER, mask_ratio=0.75, pretraining_target=target)).eval()
    names = {
        "vit.": "fer_pll.",
        "decoder.decoder_embed": "decoder.embed",
        "decoder.decoder_pos_embed": "decoder.position_embeddings",
        "decoder.decoder_layers": "decoder.layers",
        "decoder.decoder_norm": "decoder.layernorm",
        "decoder.decoder_pred": "decoder.head",
    }
    ours.load_state_dict(renamed(theirs.state_dict(), names))
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(1))
    expected, actual = theirs(PIXELS, noise=noise), ours(PIXELS, noise=noise)
    torch.testing.assert_close(actual.loss, expected.loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)
    expected.loss.backward(), actual.loss.backward()
    gradients = renamed(dict(theirs.named_parameters()), names)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_simmim_is_transformers_masked_image_modeling():
    """transformers predicts with a 1 x 1 convolution and a pixel shuffle, whose rows hold channels first."""
    theirs = randomize(ViTForMaskedImageModeling(ViTConfig(**SIZES, layer_norm_eps=1e-6, encoder_stride=8)))
    config = FerPllConfig(**SIZES, **SIMMIM, mask_ratio=0.5, position_embedding_type="learned")
    ours = FerPllForPreTraining(config).eval()
    weights = renamed(theirs.state_dict(), {"vit.": "fer_pll."})
    weight, bias = weights.pop("decoder.0.weight"), weights.pop("decoder.0.bias")
    weights["head.weight"] = weight[:, :, 0, 0].unflatten(0, (3, 8, 8)).permute(1, 2, 0, 3).flatten(0, 2)
    weights["head.bias"] = bias.unflatten(0, (3, 8, 8)).permute(1, 2, 0).flatten()
    ours.load_state_dict(weights)
    noise = torch.rand(3, 4, generator=torch.Generator().manual_seed(1))
    actual = ours(PIXELS, noise=noise)
    assert actual.mask.sum(dim=1).tolist() == [8, 8, 8]  # two of the four squares of 2 x 2 patches
    expected = theirs(PIXELS, bool_masked_pos=actual.mask.bool())
    torch.testing.assert_close(actual.logits, patchify_pixels(expected.reconstruction, 8), atol=1e-5, rtol=0)
    assert actual.loss.item() == pytest.approx(expected.loss.item(), abs=1e-5)
    assert torch.equal(ours(PIXELS, bool_masked_pos=actual.mask).logits, actual.logits)  # a mask can be given as well


@torch.no_grad()
def test_maskfeat_encodes_like_a_vit_with_mask_tokens():
    theirs = randomize(ViTModel(ViTConfig(**SIZES, layer_norm_eps=1e-6), add_pooling_layer=False, use_mask_token=True))
    config = FerPllConfig(**SIZES, **MASKFEAT, position_embedding_type="learned")
    ours = FerPllForPreTraining(config).eval()
    ours.fer_pll.load_state_dict(theirs.state_dict())
    torch.manual_seed(0)
    actual = ours(PIXELS)
    assert 0 < actual.mask.sum(dim=1).max() <= 6  # of 16 patches, drawn as blocks
    states = theirs(PIXELS, bool_masked_pos=actual.mask.bool()).last_hidden_state
    torch.testing.assert_close(actual.logits, ours.head(states[:, 1:]), atol=1e-5, rtol=0)
    targets = ours.targets(PIXELS)
    assert actual.loss.item() == pytest.approx(
        (actual.logits - targets)[actual.mask.bool()].square().mean().item(), abs=1e-6
    )


def maskfeat_hog(channel: np.ndarray, cell: int, orientations: int) -> np.ndarray:
    """MaskFeat's histograms of one 8-bit channel (H, W), pixel by pixel: (rows, cols, orientations)."""
    height, width = channel.shape
    padded = np.pad(channel.astype(float), 1, mode="reflect")
    cells = np.zeros((height // cell, width // cell, orientations))
    for row in range(height):
        for col in range(width):
            (a, b, c), (d, _, e), (f, g, h) = padded[row : row + 3, col : col + 3]
            g_col, g_row = a + 2 * d + f - c - 2 * e - h, a + 2 * b + c - f - 2 * g - h
            angle = math.atan2(g_col, g_row) / math.pi * orientations
            cells[row // cell, col // cell, math.floor(angle) % orientations] += math.hypot(g_col, g_row)
    return cells / np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)


@pytest.mark.parametrize(("cell", "orientations"), [(8, 9), (4, 6)])
def test_sobel_hog_is_that_of_maskfeat(cell, orientations):
    # Odd steps and noise: no direction on the edge of two bins, where rounding decides.
    pixels = torch.randint(0, 256, (2, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    actual = hog_targets(pixels, cell, orientations, gradient="sobel")
    for image in range(2):
        for channel in range(3):
            expected = maskfeat_hog(pixels[image, channel].numpy(), cell, orientations)
            near = np.abs(actual[image, channel].numpy() - expected).max(axis=-1) < 1e-5
            assert near.mean() > 0.97  # the few cells with an exact 0 or 90 degrees gradient may differ by a bin


def test_sobel_hog_of_one_color_is_zero():
    assert torch.equal(hog_targets(torch.full((1, 1, 16, 16), 7), gradient="sobel"), torch.zeros(1, 1, 2, 2, 9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask_shape": "blocks"}, "needs mask_style='token'"),
        ({"mask_unit_size": 16}, "needs mask_style='token'"),
        ({"mask_style": "token", "mask_unit_size": 12}, "multiple of patch_size"),
        ({"mask_style": "token", "mask_unit_size": 32}, "at least one visible and one hidden square"),
    ],
)
def test_options_that_do_not_go_together_are_refused(changes, message):
    with pytest.raises(Exception, match=message):
        FerPllConfig(**SIZES, **{"hog_cell_size": 4, **changes})


@pytest.mark.parametrize("changes", [MASKFEAT, SIMMIM, {"pretraining_target": "normalized_pixels"}])
def test_every_objective_is_learned(changes):
    torch.manual_seed(0)
    model = FerPllForPreTraining(FerPllConfig(**SIZES, **DECODER, **changes)).train()
    smooth = nn.functional.interpolate(torch.randn(4, 3, 4, 4), size=32, mode="bicubic")
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        optimizer.zero_grad()
        loss = model(smooth).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-10:]) < 0.75 * losses[0]
