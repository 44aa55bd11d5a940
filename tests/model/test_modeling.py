import logging
import math

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.feature import hog
from torch import nn
from torch.nn.functional import cross_entropy, layer_norm, multi_head_attention_forward
from transformers import (
    AttentionInterface,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    AutoModelForPreTraining,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
    pipeline,
)
from transformers.initialization import no_init_weights
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae.modeling_vit_mae import ViTMAEEmbeddings
from transformers.utils import logging as transformers_logging

import tiny
from fer_pll import FerPllBackbone, FerPllConfig, FerPllForImageClassification, FerPllForPreTraining, FerPllModel
from fer_pll.model.masking import random_masking
from fer_pll.model.modeling_fer_pll import (
    FerPllAttention,
    drop_path,
    interpolate_positions,
    sincos_positions,
    take_tokens,
)
from fer_pll.model.uniformity import uniformity_loss
from siblings import siblings

SIZES = {  # of ViT's configuration and of ours
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
    "layer_norm_eps": 1e-6,
}
DECODER = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}
NUM_PATCHES, NUM_CLASSES = 16, 5


def tiny_config(**changes) -> FerPllConfig:
    """The tests' configuration in the sizes above, with statistics and names of classes as they are by default."""
    defaults = {"image_std": None, "id2label": None, "label2id": None, "num_labels": NUM_CLASSES}
    return tiny.tiny_config(**SIZES | DECODER | defaults | changes)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random values everywhere, so that nothing equal to zero or one (biases, norms, positions) can hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in model.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model.eval()


def random_input(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


PIXELS = random_input(2, 3, 32, 32)
NOISE = torch.rand(2, NUM_PATCHES, generator=torch.Generator().manual_seed(1))
LABELS = torch.tensor([1, 4])

CLASSIFIERS = {
    "query decoder": {},
    "linear": {"add_query_decoder": False},
    "learned positions": {"position_embedding_type": "learned"},
}
PRETRAININGS = {"visible": {}, "token": {"mask_style": "token"}}
classifiers = pytest.mark.parametrize("changes", CLASSIFIERS.values(), ids=CLASSIFIERS)
pretrainings = pytest.mark.parametrize("changes", PRETRAININGS.values(), ids=PRETRAININGS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


class TestEncoder:
    """Against transformers' own ViTs, with all their weights, positions included, random and copied into ours."""

    def encoders(self, mask_ratio: float) -> tuple[FerPllModel, ViTMAEModel]:
        theirs = randomize(ViTMAEModel(ViTMAEConfig(**SIZES, mask_ratio=mask_ratio)))
        ours = FerPllModel(tiny_config(), add_query_decoder=False).eval()
        ours.load_state_dict(theirs.state_dict())
        return ours, theirs

    @torch.no_grad()
    @pytest.mark.parametrize("size", [(32, 32), (48, 48), (16, 64), (24, 40)])
    def test_equals_vit_mae(self, size):
        ours, theirs = self.encoders(mask_ratio=0.0)
        pixel_values = random_input(2, 3, *size)
        options = {"interpolate_pos_encoding": size != (32, 32), "output_hidden_states": True}
        in_order = torch.arange(size[0] * size[1] // 64).expand(2, -1).float()
        expected = theirs(pixel_values, noise=in_order, **options)
        actual = ours(pixel_values, **options)
        torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
        assert len(actual.hidden_states) == 3
        for one, other in zip(actual.hidden_states, expected.hidden_states, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
        assert actual.mask is None and actual.ids_restore is None and actual.query_states is None

    @torch.no_grad()
    @pytest.mark.parametrize("mask_ratio", [0.4, 0.75])
    def test_equals_vit_mae_under_masking(self, mask_ratio):
        ours, theirs = self.encoders(mask_ratio)
        expected = theirs(PIXELS, noise=NOISE)
        actual = ours(PIXELS, mask_ratio=mask_ratio, noise=NOISE)
        assert actual.last_hidden_state.shape[1] == 1 + int(NUM_PATCHES * (1 - mask_ratio))
        torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
        assert torch.equal(actual.mask, expected.mask) and torch.equal(actual.ids_restore, expected.ids_restore)

    @torch.no_grad()
    def test_mask_tokens_equal_vit(self):
        theirs = randomize(ViTModel(ViTConfig(**SIZES), add_pooling_layer=False, use_mask_token=True))
        ours = FerPllModel(tiny_config(), add_query_decoder=False, use_mask_token=True).eval()
        ours.load_state_dict(theirs.state_dict())
        actual = ours(PIXELS, mask_ratio=0.4, noise=NOISE)
        expected = theirs(PIXELS, bool_masked_pos=actual.mask.bool())
        assert actual.mask.sum() == 2 * 7
        torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_pretraining_predictions_equal_vit_mae(self):
        """4 px patches of 2 px cells and 4 orientations have as many HOG values as MAE predicts pixels: 48."""
        sizes = {**SIZES, "image_size": 16, "patch_size": 4}
        theirs = randomize(
            ViTMAEForPreTraining(ViTMAEConfig(**sizes, **DECODER, decoder_num_hidden_layers=2, mask_ratio=0.4))
        )
        ours = FerPllForPreTraining(FerPllConfig(**sizes, **DECODER, hog_cell_size=2, hog_orientations=4)).eval()
        renamed = {}
        for name, tensor in theirs.state_dict().items():
            ours_name = name
            for old, new in (
                ("vit.", "fer_pll."),
                ("decoder.decoder_embed", "decoder.embed"),
                ("decoder.decoder_pos_embed", "decoder.position_embeddings"),
                ("decoder.decoder_layers", "decoder.layers"),
                ("decoder.decoder_norm", "decoder.layernorm"),
                ("decoder.decoder_pred", "decoder.head"),
            ):
                ours_name = ours_name.replace(old, new)
            renamed[ours_name] = tensor
        ours.load_state_dict(renamed)
        pixel_values = random_input(2, 3, 16, 16)
        expected, actual = theirs(pixel_values, noise=NOISE), ours(pixel_values, noise=NOISE)
        assert actual.logits.shape == (2, NUM_PATCHES, 48)
        torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_eager_equals_sdpa(self):
        model = randomize(FerPllModel(tiny_config()))
        model.set_attn_implementation("sdpa")
        expected = model(PIXELS)
        model.set_attn_implementation("eager")
        actual = model(PIXELS)
        torch.testing.assert_close(actual.last_hidden_state, expected.last_hidden_state, atol=1e-5, rtol=0)
        torch.testing.assert_close(actual.query_states, expected.query_states, atol=1e-5, rtol=0)


def test_initialization_is_that_of_mae():
    """Xavier for projections, that of the patches counted as a linear layer; tokens and the classifier small."""
    model = FerPllForImageClassification(tiny_config(position_embedding_type="learned"))
    weights = dict(model.named_parameters())
    for name, fan in (
        ("fer_pll.embeddings.patch_embeddings.projection.weight", 3 * 8 * 8 + 32),
        ("fer_pll.layers.0.mlp.fc1.weight", 32 + 48),
        ("fer_pll.query_decoder.layers.1.cross_attention.k_proj.weight", 32 + 32),
    ):
        bound = math.sqrt(6 / fan)
        assert 0.98 * bound < weights[name].abs().max() <= bound
    for name in ("classifier.weight", "fer_pll.embeddings.cls_token", "fer_pll.embeddings.position_embeddings"):
        assert weights[name].std().item() == pytest.approx(0.02, rel=0.5)
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "layernorm" in name:
            assert (weight == 1).all(), name


class TestPositions:
    @pytest.mark.parametrize(("grid", "dim"), [(4, 32), (6, 20), (1, 8)])
    def test_sincos(self, grid, dim):
        """MAE's layout: sin and cos of the column, then of the row, with frequencies from 1 down to 1 / 10000."""
        expected = np.zeros((1 + grid * grid, dim))
        quarter = dim // 4
        for row in range(grid):
            for col in range(grid):
                for i in range(quarter):
                    frequency = 1 / 10000 ** (i / quarter)
                    token = expected[1 + row * grid + col]
                    token[i] = math.sin(col * frequency)
                    token[quarter + i] = math.cos(col * frequency)
                    token[2 * quarter + i] = math.sin(row * frequency)
                    token[3 * quarter + i] = math.cos(row * frequency)
        actual = sincos_positions(grid, dim)
        assert actual.dtype == torch.float32
        np.testing.assert_allclose(actual[0].numpy(), expected, atol=1e-6)

    def test_sincos_equals_vit_mae(self):
        theirs = ViTMAEEmbeddings(ViTMAEConfig(**SIZES))
        theirs.initialize_weights()
        ours = FerPllModel(tiny_config()).embeddings
        torch.testing.assert_close(ours.position_embeddings, theirs.position_embeddings, atol=1e-6, rtol=0)

    @pytest.mark.parametrize("kind", ["sincos", "learned"])
    def test_only_learned_ones_are_trained_also_after_loading(self, kind, tmp_path):
        model = FerPllForPreTraining(tiny_config(position_embedding_type=kind))
        model.save_pretrained(tmp_path)
        for one in (model, FerPllForPreTraining.from_pretrained(tmp_path)):
            assert one.fer_pll.embeddings.position_embeddings.requires_grad == (kind == "learned")
            assert not one.decoder.position_embeddings.requires_grad
            assert all(parameter.requires_grad for parameter in one.parameters())
        learned = model.fer_pll.embeddings.position_embeddings
        if kind == "learned":
            assert learned.std().item() == pytest.approx(0.02, rel=0.2)

    def test_positions_of_another_size_are_interpolated(self):
        positions = sincos_positions(4, 32)
        assert interpolate_positions(positions, 4, 4) is positions
        wide = interpolate_positions(positions, 4, 8)
        assert wide.shape == (1, 33, 32)
        assert torch.equal(wide[:, 0], positions[:, 0])
        # Rows are not stretched: the channels that depend on the row only stay as they are.
        rows = wide[0, 1:, 16:].unflatten(0, (4, 8))
        torch.testing.assert_close(rows, positions[0, 1:, 16:].unflatten(0, (4, 4))[:, :1].expand(4, 8, 16))

    @pytest.mark.parametrize("model_class", [FerPllForImageClassification, FerPllForPreTraining])
    def test_fixed_ones_are_there_without_initialization(self, model_class):
        with no_init_weights():
            model = model_class(tiny_config())
        assert torch.equal(model.fer_pll.embeddings.position_embeddings, sincos_positions(4, 32))
        if model_class is FerPllForPreTraining:
            assert torch.equal(model.decoder.position_embeddings, sincos_positions(4, 16))


class TestMasking:
    @pytest.mark.parametrize("num_patches", [9, 16, 36, 196])
    @pytest.mark.parametrize("mask_ratio", [0.1, 0.4, 0.75])
    def test_hides_the_highest_noise(self, num_patches, mask_ratio):
        noise = torch.rand(3, num_patches)
        ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
        num_visible = int(num_patches * (1 - mask_ratio))
        assert ids_keep.shape == (3, num_visible)
        assert torch.equal(mask.sum(dim=1), torch.full((3,), float(num_patches - num_visible)))
        for row in range(3):
            assert noise[row][mask[row] == 0].max() < noise[row][mask[row] == 1].min()
            assert torch.equal(ids_keep[row].sort().values, (mask[row] == 0).nonzero()[:, 0])
        # ids_restore puts visible patches followed by hidden ones back in their places.
        tokens = torch.arange(num_patches).expand(3, -1)
        shuffled = tokens.gather(1, noise.argsort(dim=1))
        assert torch.equal(shuffled.gather(1, ids_restore), tokens)
        assert torch.equal(take_tokens(tokens[..., None], ids_keep)[..., 0], shuffled[:, :num_visible])

    @torch.no_grad()
    @pretrainings
    def test_noise_can_be_injected(self, changes):
        model = FerPllForPreTraining(tiny_config(**changes)).eval()
        first, second = model(PIXELS, noise=NOISE), model(PIXELS, noise=NOISE)
        assert torch.equal(first.mask, second.mask) and torch.equal(first.logits, second.logits)
        assert first.loss == second.loss
        drawn = [model(PIXELS).mask for _ in range(8)]
        assert any(not torch.equal(drawn[0], other) for other in drawn)
        assert any(not torch.equal(mask[0], mask[1]) for mask in drawn)  # every image has its own

    @torch.no_grad()
    @pretrainings
    @pytest.mark.parametrize("kind", [torch.bool, torch.long, torch.float32])
    def test_a_given_mask_is_the_one_that_is_used(self, changes, kind):
        model = randomize(FerPllForPreTraining(tiny_config(**changes)))
        drawn = model(PIXELS, noise=NOISE)
        given = model(PIXELS, bool_masked_pos=drawn.mask.to(kind), noise=1 - NOISE)  # the mask counts, not the noise
        assert torch.equal(given.mask, drawn.mask)
        torch.testing.assert_close(given.logits, drawn.logits, atol=1e-5, rtol=0)
        torch.testing.assert_close(given.loss, drawn.loss, atol=1e-6, rtol=1e-5)
        few = torch.zeros(2, NUM_PATCHES, dtype=kind)
        few[0, 3] = few[1, 12] = 1  # not the configuration's ratio
        assert torch.equal(model(PIXELS, bool_masked_pos=few).mask, few.float())
        assert model(PIXELS, bool_masked_pos=few * 0).loss == 0  # no hidden patch, no error

    @torch.no_grad()
    def test_a_mask_in_the_style_of_dropping_hides_as_many_in_each_image(self):
        model = FerPllForPreTraining(tiny_config()).eval()
        uneven = torch.zeros(2, NUM_PATCHES)
        uneven[0, :3] = uneven[1, :5] = 1
        with pytest.raises(ValueError, match=r"leaves 11 to 13 of 16 patches visible: .*mask_style='visible'"):
            model(PIXELS, bool_masked_pos=uneven)
        with pytest.raises(ValueError, match="leaves 0 to 0 of 16 patches visible"):
            model(PIXELS, bool_masked_pos=torch.ones(2, NUM_PATCHES))
        token = FerPllForPreTraining(tiny_config(mask_style="token")).eval()
        assert torch.equal(token(PIXELS, bool_masked_pos=uneven).mask, uneven)

    @torch.no_grad()
    @pretrainings
    @pytest.mark.parametrize("shape", [(2, 1), (1, NUM_PATCHES), (2, 9), (2, 4, 4)])
    def test_a_mask_of_another_shape(self, changes, shape):
        model = FerPllForPreTraining(tiny_config(**changes)).eval()
        with pytest.raises(ValueError, match=r"`bool_masked_pos` has the shape .*: it needs .*\(2, 16\)"):
            model(PIXELS, bool_masked_pos=torch.zeros(shape))

    @torch.no_grad()
    def test_noise_does_not_place_rectangles(self):
        model = FerPllForPreTraining(tiny_config(mask_style="token", mask_shape="blocks")).eval()
        with pytest.raises(ValueError, match="`noise` cannot place the rectangles of mask_shape='blocks'"):
            model(PIXELS, noise=NOISE)

    @torch.no_grad()
    @pretrainings
    def test_hidden_patches_are_not_seen(self, changes):
        model = randomize(FerPllForPreTraining(tiny_config(**changes)))
        before = model(PIXELS, noise=NOISE)
        hidden = before.mask[0].nonzero()[0].item()
        row, col = 8 * (hidden // 4), 8 * (hidden % 4)
        changed = PIXELS.clone()
        changed[0, :, row : row + 8, col : col + 8] += 1
        torch.testing.assert_close(model(changed, noise=NOISE).logits, before.logits, atol=1e-6, rtol=0)

    @torch.no_grad()
    def test_queries_attend_to_visible_patches_only(self):
        model = randomize(FerPllModel(tiny_config()))
        model.set_attn_implementation("eager")
        masked = model(PIXELS, mask_ratio=0.5, noise=NOISE, output_attentions=True)
        assert masked.cross_attentions[0].shape == (2, 4, NUM_CLASSES, 8)
        other = model(PIXELS, mask_ratio=0.5, noise=1 - NOISE)
        assert not torch.allclose(masked.query_states, other.query_states)
        whole = model(PIXELS, output_attentions=True)
        assert whole.cross_attentions[0].shape == (2, 4, NUM_CLASSES, NUM_PATCHES)


def skimage_targets(images: np.ndarray, patch: int, cell: int, orientations: int) -> np.ndarray:
    """HOG values per patch from (B, C, H, W) 8-bit images: (B, L, cells x cells x orientations x C)."""
    rows = []
    for image in images:
        channels = [
            hog(channel, orientations, (cell, cell), (1, 1), block_norm="L2", feature_vector=False)[:, :, 0, 0]
            for channel in image
        ]
        cells = np.stack(channels, axis=-1)  # (rows, cols, orientations, C)
        n = patch // cell
        rows.append(
            [
                cells[r : r + n, c : c + n].ravel()
                for r in range(0, cells.shape[0], n)
                for c in range(0, cells.shape[1], n)
            ]
        )
    return np.array(rows)


def images_8bit(channels: int, height: int = 32, width: int = 32) -> np.ndarray:
    """Waves with noise, and a flat area whose zero gradients must stay zero."""
    rng = np.random.default_rng(0)
    row, col = np.mgrid[:height, :width]
    waves = [127 + 90 * np.sin(row / rng.uniform(2, 9) + col / rng.uniform(2, 9)) for _ in range(2 * channels)]
    images = (np.stack(waves) + rng.uniform(-20, 20, (2 * channels, height, width))).clip(0, 255)
    images[:, 10:20, 5:25] = 77
    return images.astype(np.uint8).reshape(2, channels, height, width)


def normalize(images: np.ndarray, config: FerPllConfig) -> torch.Tensor:
    mean, std = (np.reshape(value, (-1, 1, 1)) for value in (config.image_mean, config.image_std))
    return torch.from_numpy((images / 255 - mean) / std).float()


STATISTICS = {
    "half": (1, [0.5], [0.5]),
    "grey": (1, [0.53], [0.21]),
    "ImageNet": (3, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
statistics = pytest.mark.parametrize(("channels", "mean", "std"), STATISTICS.values(), ids=STATISTICS)


class TestPreTraining:
    @torch.no_grad()
    @pretrainings
    @statistics
    @pytest.mark.parametrize("size", [(32, 32), (16, 40)])
    def test_loss_is_the_error_of_hidden_patches(self, changes, channels, mean, std, size):
        config = tiny_config(num_channels=channels, image_mean=mean, image_std=std, **changes)
        model = FerPllForPreTraining(config).eval()
        images = images_8bit(channels, *size)
        noise = NOISE[:, : size[0] * size[1] // 64]
        outputs = model(normalize(images, config), noise=noise, interpolate_pos_encoding=size != (32, 32))

        targets = skimage_targets(images, patch=8, cell=4, orientations=9)
        assert targets.shape == outputs.logits.shape == (2, noise.shape[1], config.num_hog_values)
        squares = (outputs.logits.numpy() - targets) ** 2
        expected = squares[outputs.mask.numpy() == 1].mean()
        assert outputs.loss.item() == pytest.approx(expected, abs=1e-6)
        assert abs(expected - squares.mean()) > 1e-5  # or the test would not see the mask

    @statistics
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    def test_8_bit_values_survive_normalization(self, channels, mean, std, dtype):
        config = tiny_config(num_channels=channels, image_mean=mean, image_std=std)
        images = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(16, 16), (1, channels, 16, 16))
        restored = FerPllForPreTraining(config).to_pixels(normalize(images, config).to(dtype))
        assert restored.dtype == torch.float32
        np.testing.assert_array_equal(restored.round().numpy(), images)

    @torch.no_grad()
    def test_a_perfect_prediction_costs_nothing(self):
        config = tiny_config()
        model = FerPllForPreTraining(config).eval()
        pixel_values = normalize(images_8bit(3), config)
        targets = model.targets(pixel_values)
        model.decoder.forward = lambda *args, **kwargs: targets
        assert model(pixel_values).loss == 0

    @pretrainings
    def test_no_query_decoder(self, changes):
        model = FerPllForPreTraining(tiny_config(**changes))
        assert model.config.add_query_decoder and model.fer_pll.query_decoder is None
        assert not any("query" in name for name in model.state_dict())

    def test_each_style_has_its_own_head_and_mask_token(self):
        visible, token = (FerPllForPreTraining(tiny_config(mask_style=style)) for style in ("visible", "token"))
        assert len(visible.decoder.layers) == 2 and visible.fer_pll.embeddings.mask_token is None
        assert not hasattr(token, "decoder")
        assert token.fer_pll.embeddings.mask_token.std().item() == pytest.approx(0.02, rel=0.6)

    def test_training_reduces_the_loss(self):
        torch.manual_seed(0)
        config = tiny_config()
        model = FerPllForPreTraining(config).train()
        pixel_values = normalize(images_8bit(3), config)
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = model(pixel_values, noise=NOISE).loss
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.3 * losses[0]


class TestClassification:
    @torch.no_grad()
    def test_query_decoder_equals_reference(self):
        """Pre-norm blocks written with torch's own multi-head attention."""
        model = randomize(FerPllModel(tiny_config()))
        outputs = model(PIXELS)
        patch_tokens = outputs.last_hidden_state[:, 1:]

        def norm(states, weights):
            return layer_norm(states, (32,), weights.weight, weights.bias, 1e-6)

        def attend(weights, queries, keys):
            projections = (weights.q_proj, weights.k_proj, weights.v_proj)
            queries, keys = queries.transpose(0, 1), keys.transpose(0, 1)
            states, _ = multi_head_attention_forward(
                queries, keys, keys, 32, 4, torch.cat([p.weight for p in projections]),
                torch.cat([p.bias for p in projections]), None, None, False, 0.0, weights.o_proj.weight,
                weights.o_proj.bias,
            )  # fmt: skip
            return states.transpose(0, 1)

        states = model.query_decoder.label_queries.expand(2, -1, -1)
        for layer in model.query_decoder.layers:
            states = states + attend(layer.cross_attention, norm(states, layer.layernorm_before), patch_tokens)
            inner = layer.mlp.fc1(norm(states, layer.layernorm_after))
            states = states + layer.mlp.fc2(nn.functional.gelu(inner))
        expected = norm(states, model.query_decoder.layernorm)
        assert outputs.query_states.shape == (2, NUM_CLASSES, 32)
        torch.testing.assert_close(outputs.query_states, expected, atol=1e-5, rtol=0)

    @torch.no_grad()
    def test_every_attention_is_the_chosen_one_and_runs_all_hooks(self):
        """Queries included, with gradients and without: else offload, adapters and quantization would not act."""
        model = randomize(FerPllForImageClassification(tiny_config()))
        expected, attended, projected = model(PIXELS).logits, [], []

        def attend(module, *args, **kwargs):
            attended.append(module)
            return sdpa_attention_forward(module, *args, **kwargs)

        attentions = [module for module in model.modules() if isinstance(module, FerPllAttention)]
        projections = [getattr(each, f"{name}_proj") for each in attentions for name in "qkvo"]
        for projection in projections:
            projection.register_forward_hook(lambda module, *_: projected.append(module))
        AttentionInterface.register("counted", attend)
        try:
            model.set_attn_implementation("counted")
            for gradients in (False, True):
                attended.clear(), projected.clear()
                with torch.set_grad_enabled(gradients):
                    torch.testing.assert_close(model(PIXELS).logits, expected, atol=1e-5, rtol=0)
                assert attended == attentions and projected == projections
        finally:
            ALL_ATTENTION_FUNCTIONS._global_mapping.pop("counted")

    @torch.no_grad()
    def test_queries_do_not_see_each_other(self):
        model = randomize(FerPllModel(tiny_config()))
        before = model(PIXELS).query_states
        model.query_decoder.label_queries[2] += random_input(32)
        changed = (model(PIXELS).query_states - before).abs().amax(dim=(0, 2)) > 1e-6
        assert changed.tolist() == [k == 2 for k in range(NUM_CLASSES)]

    @torch.no_grad()
    @classifiers
    def test_attention_maps_on_request(self, changes):
        config = tiny_config(**changes)
        model = randomize(FerPllForImageClassification(config))
        model.set_attn_implementation("eager")
        plain = model(PIXELS)
        assert plain.attentions is None and plain.cross_attentions is None and plain.hidden_states is None
        outputs = model(PIXELS, output_attentions=True, output_hidden_states=True)
        assert [a.shape for a in outputs.attentions] == [(2, 4, 17, 17)] * 2
        assert [h.shape for h in outputs.hidden_states] == [(2, 17, 32)] * 3
        expected = [(2, 4, NUM_CLASSES, NUM_PATCHES)] * 2 if config.add_query_decoder else []
        assert [a.shape for a in outputs.cross_attentions or ()] == expected
        for attention in outputs.attentions + (outputs.cross_attentions or ()):
            torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))
        assert torch.equal(outputs.logits, plain.logits)

    @torch.no_grad()
    def test_one_output_row_per_class(self):
        model = randomize(FerPllForImageClassification(tiny_config()))
        outputs = model(PIXELS)
        expected = torch.einsum("bkd,kd->bk", outputs.query_states, model.classifier.weight) + model.classifier.bias
        torch.testing.assert_close(outputs.logits, expected)
        for k in range(NUM_CLASSES):
            for parameter in (model.classifier.weight, model.classifier.bias):
                before = parameter.clone()
                parameter[k] += 1
                changed = (model(PIXELS).logits - outputs.logits).abs().amax(dim=0) > 1e-6
                parameter.copy_(before)
                assert changed.tolist() == [j == k for j in range(NUM_CLASSES)]

    @torch.no_grad()
    def test_without_query_decoder_the_mean_patch_is_classified(self):
        model = randomize(FerPllForImageClassification(tiny_config(add_query_decoder=False)))
        outputs = model(PIXELS)
        patches = model.fer_pll(PIXELS).last_hidden_state[:, 1:]
        expected = patches.mean(dim=1) @ model.classifier.weight.T + model.classifier.bias
        torch.testing.assert_close(outputs.logits, expected)
        assert outputs.query_states is None and model.label_queries is None

    @torch.no_grad()
    def test_the_pooled_output_is_the_mean_patch(self, tmp_path):
        FerPllForImageClassification(tiny_config()).save_pretrained(tmp_path)
        tiny.tiny_processor(tiny_config()).save_pretrained(tmp_path)
        image = Image.fromarray(np.moveaxis(images_8bit(3)[0], 0, -1))
        extract = pipeline("image-feature-extraction", model=str(tmp_path))
        whole, pooled = np.array(extract(image)), np.array(extract(image, pool=True))
        assert whole.shape == (1, 1 + NUM_PATCHES, 32) and pooled.shape == (1, 32)
        np.testing.assert_allclose(pooled, whole[:, 1:].mean(axis=1), atol=1e-6)

    @classifiers
    def test_attentions_without_maps_are_none_with_gradients_and_without(self, changes):
        """sdpa gives no maps."""
        model = FerPllForImageClassification(tiny_config(**changes)).eval()
        for gradients in (False, True):
            with torch.set_grad_enabled(gradients):
                outputs = model(PIXELS, output_attentions=True)
            assert outputs.attentions is outputs.cross_attentions is None

    def test_problem_type_may_be_left_open(self):
        assert tiny_config(problem_type=None).problem_type == "single_label_classification"

    @pytest.mark.parametrize("model_class", [FerPllModel, FerPllForImageClassification, FerPllForPreTraining])
    def test_the_input_embeddings_are_those_of_the_patches(self, model_class):
        model = model_class(tiny_config())
        embeddings = getattr(model, "fer_pll", model).embeddings
        assert model.get_input_embeddings() is embeddings.patch_embeddings
        model.set_input_embeddings(other := type(embeddings.patch_embeddings)(model.config))
        assert embeddings.patch_embeddings is other

    def test_the_input_embeddings_of_another_backbone_are_its_first_convolution(self):
        network = {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8],
            "depths": [1],
            "layer_type": "basic",
        }
        model = FerPllForImageClassification(tiny_config(backbone_config=network)).eval()
        seen = []
        model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        model(PIXELS)
        assert len(seen) == 1 and torch.equal(seen[0], PIXELS)
        model.enable_input_require_grads()
        model(PIXELS)

    @torch.no_grad()
    @classifiers
    def test_labels_give_cross_entropy(self, changes):
        model = FerPllForImageClassification(tiny_config(**changes)).eval()
        outputs = model(PIXELS, labels=LABELS)
        assert outputs.logits.shape == (2, NUM_CLASSES)
        torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits, LABELS))
        assert model(PIXELS).loss is None
        loss, logits = model(PIXELS, labels=LABELS, return_dict=False)[:2]
        assert torch.equal(loss, outputs.loss) and torch.equal(logits, outputs.logits)

    def test_label_queries_start_at_the_simplex(self):
        model = FerPllForImageClassification(tiny_config(num_labels=8))
        queries = nn.functional.normalize(model.label_queries.detach(), dim=-1)
        cosines = (queries @ queries.T)[~torch.eye(8, dtype=torch.bool)]
        torch.testing.assert_close(cosines, torch.full((56,), -1 / 7), atol=1e-6, rtol=0)
        assert model.label_queries.requires_grad

    @torch.no_grad()
    def test_another_image_size(self):
        model = FerPllForImageClassification(tiny_config()).eval()
        model.set_attn_implementation("eager")
        outputs = model(random_input(2, 3, 16, 48), interpolate_pos_encoding=True, output_attentions=True)
        assert outputs.cross_attentions[0].shape == (2, 4, NUM_CLASSES, 12)


class TestGradients:
    @classifiers
    def test_reach_every_parameter_of_the_classifier(self, changes):
        model = FerPllForImageClassification(tiny_config(**changes)).train()
        model(PIXELS, labels=LABELS).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    @pretrainings
    def test_reach_every_parameter_of_the_pretraining_model(self, changes):
        model = FerPllForPreTraining(tiny_config(**changes)).train()
        model(PIXELS, noise=NOISE).loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []

    @pytest.mark.parametrize(
        ("model_class", "changes"),
        [
            (FerPllForImageClassification, {}),
            (FerPllForPreTraining, {}),
            (FerPllForPreTraining, {"mask_style": "token"}),
        ],
    )
    def test_are_equal_with_checkpointing(self, model_class, changes):
        given = {"labels": LABELS} if model_class is FerPllForImageClassification else {"noise": NOISE}
        inputs = {"pixel_values": PIXELS, **given}
        model = model_class(tiny_config(**changes)).train()
        calls = []
        for module in model.modules():
            if module.__class__.__name__ in ("FerPllLayer", "FerPllQueryLayer"):
                module.mlp.fc1.register_forward_hook(lambda *_: calls.append(1))
        gradients = []
        for checkpointing in (False, True):
            if checkpointing:
                model.gradient_checkpointing_enable()
            model.zero_grad()
            calls.clear()
            model(**inputs).loss.backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
            num_layers = 4 if "decoder" in str(list(gradients[0])) else 2
            assert len(calls) == num_layers * (2 if checkpointing else 1)  # every block is computed a second time
        torch.testing.assert_close(gradients[0], gradients[1], atol=1e-7, rtol=1e-5)


class TestDropPath:
    def test_rates_grow_linearly(self):
        model = FerPllForImageClassification(tiny_config(num_hidden_layers=5, drop_path_rate=0.2))
        rates = [layer.residual.drop_path_rate for layer in model.fer_pll.layers]
        assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
        assert all(layer.residual.drop_path_rate == 0 for layer in model.fer_pll.query_decoder.layers)

    def test_keeps_the_expectation_and_whole_samples(self):
        torch.manual_seed(0)
        residual = torch.ones(20_000, 3, 2)
        dropped = drop_path(residual, 0.3)
        values = dropped.flatten(1)
        assert torch.equal(values.amin(dim=1), values.amax(dim=1))
        kept = values[:, 0] > 0
        torch.testing.assert_close(values[kept], torch.full_like(values[kept], 1 / 0.7))
        assert kept.float().mean().item() == pytest.approx(0.7, abs=5 * (0.3 * 0.7 / 20_000) ** 0.5)

    @torch.no_grad()
    def test_acts_in_training_only(self):
        model = FerPllForImageClassification(tiny_config(drop_path_rate=0.9))
        plain = FerPllForImageClassification(tiny_config()).eval()
        plain.load_state_dict(model.state_dict())
        assert torch.equal(model.eval()(PIXELS).logits, plain(PIXELS).logits)
        model.train()
        assert any(not torch.equal(model(PIXELS).logits, plain(PIXELS).logits) for _ in range(8))


class TestSaving:
    @torch.no_grad()
    @classifiers
    @pytest.mark.parametrize("auto", [AutoModelForImageClassification, AutoModel])
    def test_classifier_round_trip(self, changes, auto, tmp_path):
        model = randomize(FerPllForImageClassification(tiny_config(**changes)))
        model.save_pretrained(tmp_path)
        loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
        assert not info["missing_keys"] and not info["mismatched_keys"]
        if auto is AutoModel:
            assert type(loaded) is FerPllModel
            expected, actual = model.fer_pll(PIXELS), loaded(PIXELS)
            assert torch.equal(actual.last_hidden_state, expected.last_hidden_state)
            if model.config.add_query_decoder:
                assert torch.equal(actual.query_states, expected.query_states)
        else:
            assert type(loaded) is FerPllForImageClassification and not info["unexpected_keys"]
            assert torch.equal(loaded(PIXELS).logits, model(PIXELS).logits)

    @torch.no_grad()
    @pretrainings
    def test_pretraining_round_trip(self, changes, tmp_path):
        model = randomize(FerPllForPreTraining(tiny_config(**changes)))
        model.save_pretrained(tmp_path)
        for auto in (AutoModelForMaskedImageModeling, AutoModelForPreTraining):
            loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
            assert type(loaded) is FerPllForPreTraining
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        assert torch.equal(loaded(PIXELS, noise=NOISE).logits, model(PIXELS, noise=NOISE).logits)

    @pretrainings
    def test_pretraining_checkpoint_opens_as_classifier(self, changes, tmp_path, caplog):
        pretrained = randomize(FerPllForPreTraining(tiny_config(**changes)))
        pretrained.save_pretrained(tmp_path)
        transformers_logging.enable_propagation()
        try:
            with caplog.at_level(logging.WARNING, logger="transformers"):
                model, info = FerPllForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
        finally:
            transformers_logging.disable_propagation()

        new = {name for name in model.state_dict() if name.startswith(("fer_pll.query_decoder.", "classifier."))}
        assert info["missing_keys"] == new
        for name, tensor in model.fer_pll.state_dict().items():
            if not name.startswith("query_decoder."):
                assert torch.equal(tensor, pretrained.fer_pll.state_dict()[name]), name
        # The new parts are initialized as in a fresh model.
        queries = nn.functional.normalize(model.label_queries.detach(), dim=-1)
        cosines = (queries @ queries.T)[~torch.eye(NUM_CLASSES, dtype=torch.bool)]
        torch.testing.assert_close(cosines, torch.full_like(cosines, -1 / (NUM_CLASSES - 1)), atol=1e-6, rtol=0)
        assert model.classifier.weight.abs().max() > 0 and model.classifier.bias.abs().max() == 0
        # And the user is told so.
        assert "classifier.weight" in caplog.text and "label_queries" in caplog.text and "MISSING" in caplog.text

    def test_classifier_checkpoint_opens_for_pretraining(self, tmp_path):
        classifier = randomize(FerPllForImageClassification(tiny_config()))
        classifier.save_pretrained(tmp_path)
        model, info = AutoModelForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
        assert info["missing_keys"] == {name for name in model.state_dict() if name.startswith("decoder.")}
        assert torch.equal(model.decoder.position_embeddings, sincos_positions(4, 16))
        assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.6)
        positions = classifier.fer_pll.embeddings.position_embeddings
        assert torch.equal(model.fer_pll.embeddings.position_embeddings, positions)

    def test_config_override_while_loading(self, tmp_path):
        FerPllForPreTraining(tiny_config()).save_pretrained(tmp_path)
        model = AutoModelForImageClassification.from_pretrained(tmp_path, num_labels=3, add_query_decoder=False)
        assert model.fer_pll.query_decoder is None and model.classifier.weight.shape == (3, 32)

    @torch.no_grad()
    def test_half_precision_checkpoint_takes_float_images(self, tmp_path):
        model = FerPllForImageClassification(tiny_config()).eval()
        model.save_pretrained(tmp_path)
        half = FerPllForImageClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
        logits = half(PIXELS).logits
        assert logits.dtype == torch.bfloat16
        torch.testing.assert_close(logits.float(), model(PIXELS).logits, atol=0.05, rtol=0.05)

    def test_model_can_be_made_without_memory(self):
        with torch.device("meta"):
            model = FerPllForImageClassification(tiny_config())
        assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


class TestCompiling:
    @pytest.fixture(autouse=True)
    def fresh_compiler(self):
        torch._dynamo.reset()
        yield
        torch._dynamo.reset()

    def check(self, model: nn.Module, inputs: dict[str, torch.Tensor], backend: str) -> None:
        """One graph, the same loss and the same gradients."""
        expected = model(**inputs)
        expected.loss.backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
        model.zero_grad()
        actual = torch.compile(model, fullgraph=True, backend=backend)(**inputs)
        actual.loss.backward()
        torch.testing.assert_close(actual.loss, expected.loss, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            {name: p.grad for name, p in model.named_parameters()}, gradients, atol=1e-5, rtol=1e-4
        )

    @pytest.mark.parametrize("backend", siblings("aot_eager", "inductor"))
    def test_classifier(self, backend):
        model = FerPllForImageClassification(tiny_config(drop_path_rate=0.1)).eval()
        self.check(model, {"pixel_values": PIXELS, "labels": LABELS}, backend)

    @pytest.mark.parametrize("backend", siblings("aot_eager", "inductor"))
    @pretrainings
    def test_pretraining(self, changes, backend):
        model = FerPllForPreTraining(tiny_config(**changes)).train()
        self.check(model, {"pixel_values": PIXELS, "noise": NOISE}, backend)

    def test_training_with_drop_path(self):
        config = tiny_config(drop_path_rate=0.5, num_hidden_layers=2)
        model = FerPllForImageClassification(config).train()
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        losses = {compiled(PIXELS, labels=LABELS).loss.item() for _ in range(4)}
        assert len(losses) > 1 and all(math.isfinite(loss) for loss in losses)

    @torch.no_grad()
    def test_export_of_the_classifier_with_any_batch_size(self):
        model = FerPllForImageClassification(tiny_config()).eval()
        batch = torch.export.Dim("batch", min=1, max=64)
        program = torch.export.export(model, (), {"pixel_values": PIXELS}, dynamic_shapes={"pixel_values": {0: batch}})
        for size in (1, 5):
            pixel_values = random_input(size, 3, 32, 32)
            expected = model(pixel_values).logits
            actual = program.module()(pixel_values=pixel_values).logits
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
    def test_the_older_onnx_exporter_keeps_the_batch_size_open(self, tmp_path):
        pytest.importorskip("onnx")
        onnxruntime = pytest.importorskip("onnxruntime")
        classifier = FerPllForImageClassification(tiny_config(num_channels=1)).eval()
        backbone = FerPllBackbone(tiny_config(num_channels=1)).eval()
        for name, model in (("logits", classifier), ("feature_maps", backbone)):
            torch.onnx.export(
                model,
                (random_input(2, 1, 32, 32),),
                file := str(tmp_path / f"{name}.onnx"),
                dynamo=False,
                input_names=["pixel_values"],
                output_names=[name],
                dynamic_axes={"pixel_values": {0: "batch"}, name: {0: "batch"}},
            )
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            for size in (1, 5):
                pixel_values = random_input(size, 1, 32, 32)
                expected = getattr(model(pixel_values), name)
                (actual,) = session.run([name], {"pixel_values": pixel_values.numpy()})
                expected = expected if name == "logits" else expected[0]
                np.testing.assert_allclose(actual, expected, atol=1e-5, rtol=1e-4)

    @torch.no_grad()
    @pretrainings
    def test_export_of_pretraining(self, changes):
        model = FerPllForPreTraining(tiny_config(**changes)).eval()
        program = torch.export.export(model, (), {"pixel_values": PIXELS, "noise": NOISE})
        pixel_values, noise = random_input(2, 3, 32, 32, seed=3), NOISE.flip(1)
        actual, expected = program.module()(pixel_values=pixel_values, noise=noise), model(pixel_values, noise=noise)
        torch.testing.assert_close(actual.loss, expected.loss, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(actual.logits, expected.logits, atol=1e-5, rtol=1e-4)
        assert torch.equal(actual.mask, expected.mask)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
class TestAutocast:
    def test_classifier(self, dtype):
        model = FerPllForImageClassification(tiny_config()).train()
        expected = model(PIXELS, labels=LABELS)
        with torch.autocast("cpu", dtype=dtype):
            outputs = model(PIXELS, labels=LABELS)
            uniformity = uniformity_loss(model.label_queries, 0.001)
        assert outputs.loss.dtype == uniformity.dtype == torch.float32
        assert outputs.loss.item() == pytest.approx(expected.loss.item(), abs=0.05)
        assert uniformity.item() == pytest.approx(0.001 * math.log(4) - 1 / 4, abs=1e-6)
        (outputs.loss + uniformity).backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())

    @pretrainings
    def test_pretraining(self, changes, dtype):
        config = tiny_config(**changes)
        model = FerPllForPreTraining(config).train()
        pixel_values = normalize(images_8bit(3), config)
        expected = model(pixel_values, noise=NOISE)
        with torch.autocast("cpu", dtype=dtype):
            targets = model.targets(pixel_values)
            outputs = model(pixel_values, noise=NOISE)
        assert torch.equal(targets, model.targets(pixel_values)) and targets.dtype == torch.float32
        assert outputs.logits.dtype == dtype and outputs.loss.dtype == torch.float32
        assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.02)
        outputs.loss.backward()
        assert all(p.grad.isfinite().all() for p in model.parameters())


class TestBadInput:
    @pytest.fixture(params=[FerPllModel, FerPllForPreTraining, FerPllForImageClassification])
    def model(self, request):
        return request.param(tiny_config())

    def test_number_of_channels(self, model):
        with pytest.raises(ValueError, match=r"images of 3 channel\(s\), `pixel_values` has 1.*image processor"):
            model(random_input(2, 1, 32, 32))

    def test_size_that_the_patch_does_not_divide(self, model):
        with pytest.raises(ValueError, match="32 x 36 pixels is not divisible by patch_size=8"):
            model(random_input(2, 3, 32, 36), interpolate_pos_encoding=True)

    def test_another_size(self, model):
        with pytest.raises(
            ValueError, match=r"built for 32 x 32 pixels, the input has 48 x 48: .*interpolate_pos_enc"
        ):
            model(random_input(2, 3, 48, 48))


def test_trainer_accumulates_gradients_to_those_of_one_batch_also_if_the_last_part_is_smaller(tmp_path):
    rows = [{"pixel_values": PIXELS[i % 2] + i, "labels": i % NUM_CLASSES} for i in range(5)]
    config = tiny_config()
    start = FerPllForImageClassification(config).state_dict()
    weights = []
    for size, accumulation in ((5, 1), (2, 3)):
        model = FerPllForImageClassification(config)
        model.load_state_dict(start)
        arguments = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
            max_grad_norm=0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.train()
        weights.append(model.state_dict())
    assert not torch.equal(weights[0]["classifier.weight"], start["classifier.weight"])
    torch.testing.assert_close(weights[0], weights[1], atol=1e-6, rtol=1e-4)


def test_trainer_divides_the_loss_of_pretraining_by_the_accumulation_steps(tmp_path):
    """A forward with **kwargs makes Trainer believe otherwise, unless the model says `accepts_loss_kwargs = False`."""
    arguments = TrainingArguments(tmp_path, report_to="none", use_cpu=True)
    assert not Trainer(FerPllForPreTraining(tiny_config()), arguments).model_accepts_loss_kwargs


@pytest.mark.parametrize("name", ["FerPllForImageClassification", "Theirs"])
def test_the_loss_is_that_of_transformers_and_can_be_replaced(name):
    model = type(name, (FerPllForImageClassification,), {})(tiny_config()).eval()
    outputs = model(PIXELS, labels=LABELS)
    torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits, LABELS))
    torch.testing.assert_close(model(PIXELS, labels=LABELS[:, None]).loss, outputs.loss)
    torch.testing.assert_close(model(PIXELS, labels=LABELS, num_items_in_batch=8).loss, outputs.loss * len(LABELS) / 8)
    model.loss_function = lambda labels, logits, config, **kwargs: logits.sum() + labels.sum()
    torch.testing.assert_close(model(PIXELS, labels=LABELS).loss, outputs.logits.sum() + LABELS.sum())
