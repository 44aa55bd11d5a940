"""The fer-pll models: a ViT encoder with MAE-style masking, a HOG head for pre-training, label queries to classify.

Shapes in comments: B images, L patches, V visible patches, K classes, d hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from os import PathLike
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BackboneOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_fer_pll import FerPllConfig
from .drop_path import drop_path
from .feature_tokens import FerPllFeatureTokens, make_backbone
from .hog import hog_targets, patchify_cells
from .masking import blockwise_masking, given_masking, random_masking, unit_masking
from .uniformity import simplex_queries


@dataclass
class FerPllModelOutput(ModelOutput):
    """Output of `FerPllModel`.

    last_hidden_state: (B, 1 + V, d), class token first, after the last LayerNorm; V = L without masking. With
        `config.backbone_config`, (B, L, d): the tokens that the label queries attend to, without a class token.
    pooler_output: (B, d), the mean of the patch tokens.
    query_states: (B, K, d), one state per class; `None` without a query decoder.
    mask: (B, L), 1 where a patch was hidden; `None` without masking.
    ids_restore: (B, L), place of each patch among visible patches followed by hidden ones; `None` without masking, and
        if a token replaces the hidden patches.
    hidden_states, attentions: one entry per encoder block on request, as in transformers' ViT. With
        `config.backbone_config`, what the backbone gives under these names: the maps of all stages, for convolutions.
    cross_attentions: one (B, heads, K, V) per query decoder block on request.

    Maps of attention need eager attention: without it, or where there are none, the value is `None`.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    query_states: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None

    def __setitem__(self, key: str, value: Any) -> None:
        # transformers records what was asked for, and sets () for what it has not seen: a backbone's own states are
        # here already, and without any the value stays `None`.
        if not isinstance(value, tuple) or value:
            super().__setitem__(key, value)


@dataclass
class FerPllForPreTrainingOutput(ModelOutput):
    """Output of `FerPllForPreTraining`.

    loss: mean error over the target values of the hidden patches.
    logits: (B, L, `config.num_target_values`), predictions for all patches.
    mask, ids_restore, hidden_states, attentions: see `FerPllModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    ids_restore: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class FerPllImageClassifierOutput(ModelOutput):
    """Output of `FerPllForImageClassification`.

    loss: cross-entropy, if `labels` were given.
    logits: (B, K).
    query_states, hidden_states, attentions, cross_attentions: see `FerPllModelOutput`.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    query_states: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


def sincos_positions(grid_size: int, dim: int) -> torch.Tensor:
    """Fixed 2D sine-cosine positions of a square patch grid in MAE's layout, (1, 1 + grid_size^2, dim).

    A quarter of the channels each for sin(column), cos(column), sin(row), cos(row); zeros for the class token.
    """
    frequency = 10000.0 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))
    angle = torch.arange(grid_size, dtype=torch.float64).outer(frequency)  # (grid, dim / 4)
    col = angle.repeat(grid_size, 1)
    row = angle.repeat_interleave(grid_size, dim=0)
    patches = torch.cat([col.sin(), col.cos(), row.sin(), row.cos()], dim=1)
    # In the default type, which `from_pretrained` sets to the checkpoint's while it makes the model.
    return torch.cat([torch.zeros(1, dim), patches.to(torch.get_default_dtype())])[None]


def interpolate_positions(positions: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Bicubic interpolation of (1, 1 + n^2, d) positions to a grid of height x width patches."""
    side = int((positions.shape[1] - 1) ** 0.5)
    if (height, width) == (side, side):
        return positions
    cls_position, patches = positions[:, :1], positions[:, 1:]
    patches = patches.unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, d, side, side)
    patches = nn.functional.interpolate(patches, size=(height, width), mode="bicubic", align_corners=False)
    return torch.cat([cls_position, patches.flatten(2).transpose(1, 2)], dim=1)


def take_tokens(tokens: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Pick (B, n) of the (B, L, d) tokens: (B, n, d)."""
    return tokens.gather(1, ids[..., None].expand(-1, -1, tokens.shape[-1]))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention that also returns its map; same signature as transformers' other attention functions."""
    weights = (query @ key.transpose(2, 3) * scaling).softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class FerPllAttention(nn.Module):
    """Multi-head attention of a sequence to itself, or to `key_value_states`."""

    is_causal = False

    def __init__(self, config: FerPllConfig, hidden_size: int, num_heads: int) -> None:
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_heads
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def split_heads(self, states: torch.Tensor) -> torch.Tensor:
        # (B, n, d) -> (B, heads, n, d / heads). Not `unflatten`, which a traced model keeps for one size of batch.
        return states.reshape(states.shape[0], states.shape[1], -1, self.head_dim).transpose(1, 2)

    def forward(
        self, hidden_states: torch.Tensor, key_value_states: torch.Tensor | None = None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        if key_value_states is None:
            key_value_states = hidden_states
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        context, weights = attention(
            self,
            self.split_heads(self.q_proj(hidden_states)),
            self.split_heads(self.k_proj(key_value_states)),
            self.split_heads(self.v_proj(key_value_states)),
            None,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            scaling=self.head_dim**-0.5,
            **kwargs,
        )
        return self.o_proj(context.flatten(2)), weights  # (B, n, heads, d / heads) -> (B, n, d)


class FerPllMLP(nn.Module):
    def __init__(self, config: FerPllConfig, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.fc2 = nn.Linear(intermediate_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class FerPllResidual(nn.Module):
    """Adds a branch to its input, with dropout and stochastic depth in training."""

    def __init__(self, config: FerPllConfig, drop_path_rate: float = 0.0) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path_rate = drop_path_rate

    def forward(self, hidden_states: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        if self.training:  # otherwise nothing is dropped, and calling the modules costs a small model noticeable time
            branch = self.dropout(branch)
            if self.drop_path_rate > 0:
                branch = drop_path(branch, self.drop_path_rate)
        return hidden_states + branch


class FerPllLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block."""

    def __init__(
        self,
        config: FerPllConfig,
        hidden_size: int,
        num_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = FerPllAttention(config, hidden_size, num_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = FerPllMLP(config, hidden_size, intermediate_size)
        self.residual = FerPllResidual(config, drop_path_rate)

    def forward(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = self.residual(hidden_states, attended)
        return self.residual(hidden_states, self.mlp(self.layernorm_after(hidden_states)))


class FerPllQueryLayer(GradientCheckpointingLayer):
    """Pre-norm block of the query decoder: label queries attend to the patch tokens."""

    def __init__(self, config: FerPllConfig) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_attention_heads
        self.layernorm_before = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.cross_attention = FerPllAttention(config, size, heads)
        self.layernorm_after = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.mlp = FerPllMLP(config, size, config.intermediate_size)
        self.residual = FerPllResidual(config)

    def forward(
        self, queries: torch.Tensor, patch_tokens: torch.Tensor, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attended, weights = self.cross_attention(self.layernorm_before(queries), patch_tokens, **kwargs)
        queries = self.residual(queries, attended)
        return self.residual(queries, self.mlp(self.layernorm_after(queries))), weights


class FerPllQueryDecoder(nn.Module):
    """One learnable query per class, decoded against the patch tokens (paper, section 3.3; Query2Label)."""

    def __init__(self, config: FerPllConfig) -> None:
        super().__init__()
        assert config.num_labels is not None  # transformers gives every configuration its labels
        self.label_queries = nn.Parameter(torch.empty(config.num_labels, config.hidden_size))
        self.layers = nn.ModuleList(FerPllQueryLayer(config) for _ in range(config.query_decoder_num_hidden_layers))
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, patch_tokens: torch.Tensor, **kwargs) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """States (B, K, d), and the attention (B, heads, K, L) of each block, where the attention in use gives it."""
        queries = self.label_queries.expand(patch_tokens.shape[0], -1, -1)  # (B, K, d)
        # The slice without the class token is not contiguous: each projection would keep a copy for its backward.
        patch_tokens = patch_tokens.contiguous()
        attentions = []
        for layer in self.layers:
            queries, weights = layer(queries, patch_tokens, **kwargs)
            if weights is not None:
                attentions.append(weights)
        return self.layernorm(queries), tuple(attentions)


class FerPllPatchEmbeddings(nn.Module):
    """One linear map of each patch (`config.stem="patch"`), or a few small convolutions (`"conv"`).

    The latter are 3x3 with batch norm, each of stride 2 or 3, until a cell is a patch, and then a 1x1 projection (Xiao
    et al., Early Convolutions Help Transformers See Better, 2021). They see a few pixels beyond a patch.
    """

    def __init__(self, config: FerPllConfig) -> None:
        super().__init__()
        self.convolutions = None
        in_size, patch_size = config.num_channels, config.patch_size
        if config.stem == "conv":
            strides = config.stem_strides
            layers: list[nn.Module] = []
            for number, stride in enumerate(strides, start=1):
                size = config.hidden_size // 2 ** (len(strides) - number)
                convolution = nn.Conv2d(in_size, size, kernel_size=3, stride=stride, padding=1, bias=False)
                layers += [convolution, nn.BatchNorm2d(size), nn.ReLU()]
                in_size, patch_size = size, patch_size // stride
            self.convolutions = nn.Sequential(*layers)
        self.projection = nn.Conv2d(in_size, config.hidden_size, kernel_size=patch_size, stride=patch_size)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        embeddings = pixel_values.to(self.projection.weight.dtype)
        if self.convolutions is not None:
            embeddings = self.convolutions(embeddings)
        embeddings = self.projection(embeddings)
        return embeddings.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, L, d)


class FerPllEmbeddings(nn.Module):
    """Patch embeddings with positions, class token and, in training, masking."""

    position_embeddings: torch.Tensor

    def __init__(self, config: FerPllConfig, use_mask_token: bool) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size)) if use_mask_token else None
        self.patch_embeddings = FerPllPatchEmbeddings(config)
        if config.position_embedding_type == "learned":
            self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + config.grid_size**2, config.hidden_size))
        else:
            # A buffer, because `from_pretrained` makes every parameter require a gradient.
            self.register_buffer("position_embeddings", sincos_positions(config.grid_size, config.hidden_size))

    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_ratio: float,
        noise: torch.Tensor | None,
        bool_masked_pos: torch.Tensor | None,
        interpolate_pos_encoding: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        check_pixel_values(pixel_values, self.config, interpolate_pos_encoding)
        height, width = (side // self.config.patch_size for side in pixel_values.shape[2:])
        shape = pixel_values.shape[0], height * width
        if bool_masked_pos is not None and bool_masked_pos.shape != shape:
            raise ValueError(
                f"`bool_masked_pos` has the shape {tuple(bool_masked_pos.shape)}: it needs one value for each of the "
                f"patches, {shape}."
            )
        mask = ids_keep = ids_restore = None
        if mask_ratio > 0 or noise is not None or bool_masked_pos is not None:
            if self.mask_token is None:
                if bool_masked_pos is not None:
                    ids_keep, mask, ids_restore = given_masking(bool_masked_pos)
                else:
                    if noise is None:
                        noise = torch.rand(shape, device=pixel_values.device)
                    ids_keep, mask, ids_restore = random_masking(noise, mask_ratio)
            elif bool_masked_pos is not None:
                mask = (bool_masked_pos != 0).float()
            else:
                mask = self.draw_mask(pixel_values, (height, width), mask_ratio, noise)
        if mask is not None and self.config.stem == "conv":  # which would see hidden pixels at the edges of patches
            visible = (1 - mask).view(-1, 1, height, 1, width, 1).to(pixel_values.dtype)
            patches = pixel_values.unflatten(3, (width, -1)).unflatten(2, (height, -1))  # (B, C, h, patch, w, patch)
            pixel_values = (patches * visible).flatten(4, 5).flatten(2, 3)
        tokens = self.patch_embeddings(pixel_values)
        if mask is not None and self.mask_token is not None:
            tokens = torch.where(mask[..., None].bool(), self.mask_token.to(tokens.dtype), tokens)
        positions = interpolate_positions(self.position_embeddings, height, width)
        tokens = tokens + positions[:, 1:]
        if ids_keep is not None:
            tokens = take_tokens(tokens, ids_keep)
        cls_token = (self.cls_token + positions[:, :1]).expand(tokens.shape[0], -1, -1)
        return torch.cat([cls_token, tokens], dim=1), mask, ids_restore

    def draw_mask(
        self, images: torch.Tensor, grid: tuple[int, int], mask_ratio: float, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """Draws the patches to replace by the mask token, (B, L), 1 where hidden, as the configuration says."""
        if self.config.mask_shape == "blocks":
            if noise is not None:
                raise ValueError(
                    "`noise` cannot place the rectangles of mask_shape='blocks': leave it out, or give "
                    "`bool_masked_pos`, the patches to hide."
                )
            return blockwise_masking(len(images), grid, mask_ratio, images.device)
        unit = self.config.patches_per_mask_unit
        if noise is None:
            noise = torch.rand(len(images), (grid[0] // unit) * (grid[1] // unit), device=images.device)
        return unit_masking(noise, mask_ratio, grid, unit)


def check_pixel_values(pixel_values: torch.Tensor, config: FerPllConfig, interpolate_pos_encoding: bool) -> None:
    """Checks that the model can take the input."""
    _, channels, height, width = pixel_values.shape
    if channels != config.num_channels:
        raise ValueError(
            f"The model takes images of {config.num_channels} channel(s), `pixel_values` has {channels}: preprocess "
            "with the checkpoint's own image processor."
        )
    patched = config.backbone_config is None
    if patched and (height % config.patch_size or width % config.patch_size):
        raise ValueError(f"An image of {height} x {width} pixels is not divisible by patch_size={config.patch_size}.")
    if (height, width) != (config.image_size, config.image_size) and not interpolate_pos_encoding:
        raise ValueError(
            f"The model was built for {config.image_size} x {config.image_size} pixels, the input has {height} x "
            f"{width}: resize it, or pass interpolate_pos_encoding=True."
        )


class FerPllPreTrainedModel(PreTrainedModel):
    config: FerPllConfig
    config_class = FerPllConfig
    base_model_prefix = "fer_pll"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]  # transformers' own models have tuples, too
    _input_embed_layer = "patch_embeddings"
    supports_gradient_checkpointing = True
    _no_split_modules = ["FerPllEmbeddings", "FerPllLayer", "FerPllQueryLayer"]  # noqa: RUF012  # no ClassVar there
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {  # noqa: RUF012  # no ClassVar in transformers
        "hidden_states": FerPllLayer,
        "attentions": OutputRecorder(FerPllAttention, index=1, layer_name="attention"),
    }

    # transformers wraps this method in a way that mypy takes for a function of the model as its argument.
    def push_to_hub(self, repo_id: str, **kwargs) -> str:  # type: ignore[override]
        """As in transformers, but from the package a new repository gets our model card, not the default one."""
        package = __name__.removesuffix(".model.modeling_fer_pll")
        if package != __name__ and not kwargs.get("create_pr"):  # else this is the copy beside a checkpoint's weights
            options = {name: kwargs.get(name) for name in ("token", "private", "revision")}
            import_module(f"{package}.hub.push").push_card(self, repo_id, **options)
        return super().push_to_hub(repo_id, **kwargs)  # type: ignore[arg-type]

    def set_attn_implementation(self, attn_implementation: str | dict, *args: Any, **kwargs: Any) -> None:
        """As in transformers, but a backbone of convolutions, which has no attention, keeps what it has."""
        backbone: Any = getattr(self.base_model, "backbone", None)
        if isinstance(attn_implementation, str) and not getattr(backbone, "has_attentions", True):
            own = backbone.config._attn_implementation
            attn_implementation = {"": attn_implementation, "backbone_config": own}
        super().set_attn_implementation(attn_implementation, *args, **kwargs)

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        # transformers registers only the saved class, but the file that it copies holds the others as well. (A
        # subclass from elsewhere is saved with its own file.)
        if type(self).__module__ == __name__:
            self.config.auto_map = {
                "AutoConfig": "configuration_fer_pll.FerPllConfig",
                "AutoModel": "modeling_fer_pll.FerPllModel",
                "AutoModelForPreTraining": "modeling_fer_pll.FerPllForPreTraining",
                "AutoModelForMaskedImageModeling": "modeling_fer_pll.FerPllForPreTraining",
                "AutoModelForImageClassification": "modeling_fer_pll.FerPllForImageClassification",
                "AutoBackbone": "modeling_fer_pll.FerPllBackbone",
            }
            self.config.custom_pipelines = {}
            if isinstance(self, FerPllForImageClassification):
                # Here, so that loading a model takes no longer. It also makes transformers bring that file along.
                from .pipeline_fer_pll import CUSTOM_PIPELINES

                self.config.custom_pipelines = CUSTOM_PIPELINES
        if self.config.backbone_config is not None:
            # transformers would give a backbone's weights the names that files of its kind have had, and Trainer,
            # which loads checkpoints by their present names, would leave them random.
            kwargs.setdefault("save_original_format", False)
        super().save_pretrained(save_directory, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """MAE's initialization: Xavier for all projections (the patch projection as a linear layer), zero biases."""
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            bound = (6 / (len(module.weight) + module.weight[0].numel())) ** 0.5  # Xavier of the flattened kernel
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            init.ones_(module.weight)
            init.zeros_(module.bias)
            for name, value in (("running_mean", init.zeros_), ("running_var", init.ones_)):
                value(module.get_buffer(name))
            init.zeros_(module.get_buffer("num_batches_tracked"))
        elif isinstance(module, FerPllEmbeddings):
            init.normal_(module.cls_token, std=self.config.initializer_range)
            if module.mask_token is not None:
                init.normal_(module.mask_token, std=self.config.initializer_range)
            if self.config.position_embedding_type == "sincos":
                init.copy_(
                    module.position_embeddings, sincos_positions(self.config.grid_size, self.config.hidden_size)
                )
            else:
                init.normal_(module.position_embeddings, std=self.config.initializer_range)
        elif isinstance(module, FerPllFeatureTokens):
            if module.stage_embeddings is not None:
                init.normal_(module.stage_embeddings, std=self.config.initializer_range)
        elif isinstance(module, FerPllQueryDecoder):
            init.copy_(module.label_queries, simplex_queries(*module.label_queries.shape))
        elif isinstance(module, FerPllPreTrainingDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)
            positions = sincos_positions(self.config.grid_size, self.config.decoder_hidden_size)
            init.copy_(module.position_embeddings, positions)


class FerPllEncoderModel(FerPllPreTrainedModel):
    """Base of those that hold the ViT encoder, under the names that checkpoints have."""

    embeddings: FerPllEmbeddings
    layers: nn.ModuleList
    layernorm: nn.LayerNorm

    def add_encoder(self, config: FerPllConfig, use_mask_token: bool = False) -> None:
        rates = torch.linspace(0, config.drop_path_rate, config.num_hidden_layers, device="cpu").tolist()
        self.embeddings = FerPllEmbeddings(config, use_mask_token)
        self.layers = nn.ModuleList(
            FerPllLayer(config, config.hidden_size, config.num_attention_heads, config.intermediate_size, rate)
            for rate in rates
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)


class FerPllModel(FerPllEncoderModel):
    """ViT encoder, or another backbone, followed by the query decoder if there is one.

    Args:
        config: sizes and switches.
        add_query_decoder: overrides `config.add_query_decoder`; the pre-training model has none, so that distributed
            training finds no unused parameters.
        use_mask_token: whether a token replaces masked patches (`mask_style="token"` in pre-training) or they are
            dropped.
    """

    def __init__(
        self, config: FerPllConfig, add_query_decoder: bool | None = None, use_mask_token: bool = False
    ) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            self.add_encoder(config, use_mask_token)
        else:
            self.backbone = make_backbone(config)
            channels: Any = self.backbone.channels
            self.feature_tokens = FerPllFeatureTokens(config, channels)
            # transformers would hook the layers of the backbone, which it has hooked already, again: each state would
            # come twice, and the backbone would take others for its maps.
            self._output_capturing_hooks_installed = True
        if add_query_decoder is None:
            add_query_decoder = config.add_query_decoder
        self.query_decoder = FerPllQueryDecoder(config) if add_query_decoder else None
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The first module that an image goes through; for another backbone its first convolution."""
        if self.config.backbone_config is None:
            return super().get_input_embeddings()
        return next(module for module in self.backbone.modules() if isinstance(module, nn.Conv2d))

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        mask_ratio: float = 0.0,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FerPllModelOutput:
        """Encode images.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor.
            mask_ratio: share of the patches to hide; 0 hides none.
            noise: (B, L), the patches with the highest values are hidden; drawn if not given. With
                `config.mask_unit_size`, (B, number of squares).
            bool_masked_pos: (B, L), true or 1 for the patches to hide; it takes the place of ratio and noise. Where
                hidden patches are dropped, as many in each image.
            interpolate_pos_encoding: accept another image size than `config.image_size`.

        Raises:
            ValueError: images or masks do not fit the configuration.
        """
        mask = ids_restore = query_states = hidden_states = attentions = cross_attentions = None
        asked = {
            name: kwargs.get(name, getattr(self.config, name))
            for name in ("output_hidden_states", "output_attentions")
        }
        if self.config.backbone_config is None:
            tokens, mask, ids_restore = self.embeddings(
                pixel_values, mask_ratio, noise, bool_masked_pos, interpolate_pos_encoding
            )
            for layer in self.layers:
                tokens = layer(tokens, **kwargs)
            tokens = self.layernorm(tokens)  # (B, 1 + V, d)
            patch_tokens = tokens[:, 1:]
        else:
            if mask_ratio > 0 or noise is not None or bool_masked_pos is not None:
                raise ValueError("A backbone encodes whole images: masks are for the ViT encoder of fer-pll.")
            check_pixel_values(pixel_values, self.config, interpolate_pos_encoding)
            gives_attentions = self.backbone.has_attentions and self.backbone.config.model_type != "timm_backbone"
            outputs = self.backbone(
                pixel_values,
                output_hidden_states=asked["output_hidden_states"],
                output_attentions=asked["output_attentions"] and gives_attentions,
            )
            hidden_states, attentions = outputs.hidden_states, outputs.attentions
            tokens = patch_tokens = self.feature_tokens(outputs.feature_maps, pixel_values.shape[2:])  # (B, L, d)
        if self.query_decoder is not None:
            query_states, cross_attentions = self.query_decoder(patch_tokens, **kwargs)  # (B, K, d)
        return FerPllModelOutput(
            last_hidden_state=tokens,
            pooler_output=patch_tokens.mean(dim=1),
            query_states=query_states,
            mask=mask,
            ids_restore=ids_restore,
            hidden_states=hidden_states,
            attentions=attentions or None,
            cross_attentions=(asked["output_attentions"] and cross_attentions) or None,
        )


class FerPllPreTrainingDecoder(nn.Module):
    """Predicts the target of every patch from the visible ones; used in pre-training only (paper, section 3.2)."""

    position_embeddings: torch.Tensor

    def __init__(self, config: FerPllConfig) -> None:
        super().__init__()
        size = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, size))
        self.register_buffer("position_embeddings", sincos_positions(config.grid_size, size))
        self.layers = nn.ModuleList(
            FerPllLayer(config, size, config.decoder_num_attention_heads, config.decoder_intermediate_size)
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(size, eps=config.layer_norm_eps)
        self.head = nn.Linear(size, config.num_target_values)

    def forward(
        self, tokens: torch.Tensor, ids_restore: torch.Tensor, grid: tuple[int, int], **kwargs
    ) -> torch.Tensor:
        tokens = self.embed(tokens)  # (B, 1 + V, decoder size)
        batch, length = ids_restore.shape
        hidden = self.mask_token.to(tokens.dtype).expand(batch, length + 1 - tokens.shape[1], -1)
        patches = take_tokens(torch.cat([tokens[:, 1:], hidden], dim=1), ids_restore)  # (B, L, decoder size)
        tokens = torch.cat([tokens[:, :1], patches], dim=1) + interpolate_positions(self.position_embeddings, *grid)
        for layer in self.layers:
            tokens = layer(tokens, **kwargs)
        return self.head(self.layernorm(tokens[:, 1:]))  # (B, L, values)


def patchify_pixels(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """(B, C, H, W) to (B, L, patch_size^2 * C): patches and the pixels of each in row-major order, channels last."""
    batch, channels, height, width = pixel_values.shape
    patches = pixel_values.view(batch, channels, height // patch_size, patch_size, width // patch_size, patch_size)
    return patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


class FerPllForPreTraining(FerPllPreTrainedModel):
    """Masked image modeling (paper, section 3.2).

    `config.mask_style="visible"` encodes the visible patches and predicts the hidden ones with a small decoder;
    `"token"` encodes the full sequence with mask tokens and predicts with a linear head. Target, loss and the shape of
    masks are options as well, so the rivals in Table 6 are configurations of this class:

    | | `pretraining_target` | `mask_style` | `pretraining_loss` | masks |
    |---|---|---|---|---|
    | the paper's | `hog` | `visible` | `l2` | random |
    | MaskFeat (Wei et al., 2022) | `hog`, `hog_gradient="sobel"` | `token` | `l2` | `mask_shape="blocks"` |
    | MAE (He et al., 2022) | `normalized_pixels` | `visible` | `l2` | random |
    | SimMIM (Xie et al., 2022) | `pixels` | `token` | `l1` | `mask_unit_size=32` |
    """

    # The loss is a mean per micro-batch, so Trainer must divide it by the accumulation steps. By default it does not
    # for a forward with **kwargs.
    accepts_loss_kwargs = False

    def __init__(self, config: FerPllConfig) -> None:
        super().__init__(config)
        if config.backbone_config is not None:
            raise ValueError(
                "Masked pre-training is for the ViT encoder of fer-pll: take a configuration without backbone_config."
            )
        token_style = config.mask_style == "token"
        self.fer_pll = FerPllModel(config, add_query_decoder=False, use_mask_token=token_style)
        if token_style:
            self.head = nn.Linear(config.hidden_size, config.num_target_values)
        else:
            self.decoder = FerPllPreTrainingDecoder(config)
        self.post_init()

    def to_pixels(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Undo the normalization: (B, C, H, W) to 0..255 in float32 (`hog_targets` rounds to 8 bits)."""
        mean = torch.tensor(self.config.image_mean, device=pixel_values.device).view(-1, 1, 1)
        std = torch.tensor(self.config.image_std, device=pixel_values.device).view(-1, 1, 1)
        return (pixel_values.float() * std + mean) * 255

    def targets(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Targets of every patch, float32 (B, L, `config.num_target_values`).

        `hog`: HOG values. `pixels`: the patch of `pixel_values`. `normalized_pixels`: the same, minus the mean of the
        patch, divided by its standard deviation (MAE, section 3).

        Args:
            pixel_values: normalized (B, C, H, W).
        """
        config = self.config
        with torch.autocast(pixel_values.device.type, enabled=False):
            if config.pretraining_target == "hog":
                cells = hog_targets(
                    self.to_pixels(pixel_values),
                    config.hog_cell_size,
                    config.hog_orientations,
                    config.hog_gradient,
                )
                return patchify_cells(cells, config.patch_size // config.hog_cell_size)
            patches = patchify_pixels(pixel_values.float(), config.patch_size)
            if config.pretraining_target == "normalized_pixels":
                variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
                patches = (patches - mean) / (variance + 1e-6).sqrt()
            return patches

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        noise: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FerPllForPreTrainingOutput:
        """Predict the hidden patches.

        Args:
            pixel_values: (B, C, H, W), normalized with `config.image_mean` / `image_std` (HOG needs the 8-bit values
                back).
            noise, bool_masked_pos: which patches to hide, see `FerPllModel`.
            interpolate_pos_encoding: accept another image size than `config.image_size`.
        """
        outputs = self.fer_pll(
            pixel_values,
            mask_ratio=self.config.mask_ratio,
            noise=noise,
            bool_masked_pos=bool_masked_pos,
            interpolate_pos_encoding=interpolate_pos_encoding,
            **kwargs,
        )
        if self.config.mask_style == "token":
            logits = self.head(outputs.last_hidden_state[:, 1:])
        else:
            grid = tuple(side // self.config.patch_size for side in pixel_values.shape[2:])
            logits = self.decoder(outputs.last_hidden_state, outputs.ids_restore, grid)
        error = logits.float() - self.targets(pixel_values)
        error = error.abs() if self.config.pretraining_loss == "l1" else error.square()
        loss = (error.mean(dim=-1) * outputs.mask).sum() / outputs.mask.sum().clamp(min=1)
        return FerPllForPreTrainingOutput(
            loss=loss,
            logits=logits,
            mask=outputs.mask,
            ids_restore=outputs.ids_restore,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class FerPllForImageClassification(FerPllPreTrainedModel):
    """Expression classifier (paper, section 3.3): logit k is <w_k, h_k> + b_k, one output row per class.

    h_k is the state of label query k, or the mean of the patch tokens if `config.add_query_decoder` is off.
    """

    def __init__(self, config: FerPllConfig) -> None:
        super().__init__(config)
        self.fer_pll = FerPllModel(config)
        assert config.num_labels is not None  # transformers gives every configuration its labels
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.loss_type = "ForImageClassification"  # transformers takes it from the name of the class, a subclass's too
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is self.classifier:
            # Small first logits: else chance would decide the first revisions of the confidences, which are final.
            init.normal_(module.weight, std=self.config.initializer_range)
            init.zeros_(module.bias)
        else:
            super()._init_weights(module)

    @property
    def label_queries(self) -> nn.Parameter | None:
        """(K, d), or `None` without a query decoder; the uniformity loss acts on them."""
        return None if self.fer_pll.query_decoder is None else self.fer_pll.query_decoder.label_queries

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> FerPllImageClassifierOutput:
        """Classify images.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor.
            labels: long (B,) or (B, 1); gives a cross-entropy loss, the mean over the batch, or, with
                `num_items_in_batch`, the sum over the batch divided by that, as Trainer asks for it.
            interpolate_pos_encoding: accept another image size than `config.image_size`.
        """
        outputs = self.fer_pll(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        if outputs.query_states is None:
            logits = self.classifier(outputs.pooler_output)  # (B, K)
        else:
            # All rows for all states, and those on the diagonal kept: what wraps a linear layer (adapters,
            # quantized weights, offloading) does for this one what it does for any other, and K^2 products are few.
            # By a slice: the exporter writes `diagonal` with operators that make tensors of any size, which exported
            # models must not have.
            every = self.classifier(outputs.query_states)  # (B, K, K)
            logits = every.flatten(1)[:, :: every.shape[-1] + 1].contiguous()  # (B, K)
        loss = None if labels is None else self.loss_function(labels, logits.float(), self.config, **kwargs)
        return FerPllImageClassifierOutput(
            loss=loss,
            logits=logits,
            query_states=outputs.query_states,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


class FerPllBackbone(BackboneMixin, FerPllEncoderModel):
    """The ViT encoder as a backbone of other models: the tokens of chosen blocks as feature maps.

    Takes the weights of any checkpoint of ours: `FerPllBackbone.from_pretrained(folder, out_features=["stage2"])`, or
    with `AutoBackbone`, which knows names on the Hub only.
    Maps are (B, d, H / patch, W / patch), after the encoder's last LayerNorm; the stages are `config.stage_names`.
    """

    _can_record_outputs = {  # noqa: RUF012  # no ClassVar in transformers
        "hidden_states": FerPllLayer,
        "attentions": OutputRecorder(FerPllAttention, index=1, layer_name="attention"),
    }

    def __init__(self, config: FerPllConfig) -> None:
        super().__init__(config)
        if config.backbone_config is not None:
            raise ValueError(
                "This checkpoint has another network as its encoder: load that one, "
                "AutoBackbone.from_config(config.backbone_config)."
            )
        config.set_output_features_output_indices(config.out_features, config.out_indices)
        self.num_features = [config.hidden_size] * len(config.stage_names)
        self.add_encoder(config)
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, pixel_values: torch.Tensor, interpolate_pos_encoding: bool = True, **kwargs: Unpack[TransformersKwargs]
    ) -> BackboneOutput:
        """Feature maps of images.

        Args:
            pixel_values: (B, C, H, W), normalized by the image processor.
            interpolate_pos_encoding: accept another image size than `config.image_size`.
        """
        tokens, _, _ = self.embeddings(pixel_values, 0.0, None, None, interpolate_pos_encoding)
        states = [tokens]
        for layer in self.layers:
            states.append(layer(states[-1], **kwargs))
        grid = [side // self.config.patch_size for side in pixel_values.shape[2:]]
        feature_maps = tuple(
            self.layernorm(state)[:, 1:].transpose(1, 2).reshape(state.shape[0], -1, *grid)
            for name, state in zip(self.stage_names, states, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(feature_maps=feature_maps)


# Checkpoints carry this file, so they load with `trust_remote_code=True` without the package.
FerPllModel.register_for_auto_class("AutoModel")
FerPllForPreTraining.register_for_auto_class("AutoModelForPreTraining")
FerPllForImageClassification.register_for_auto_class("AutoModelForImageClassification")
FerPllBackbone.register_for_auto_class("AutoBackbone")

__all__ = [
    "FerPllBackbone",
    "FerPllForImageClassification",
    "FerPllForPreTraining",
    "FerPllModel",
    "FerPllPreTrainedModel",
]
