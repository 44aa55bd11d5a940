"""MoCo, momentum contrast: the one pre-training in Table 6 without masks (He et al., 2020)."""

import torch
from accelerate.utils import gather
from torch import nn
from transformers.utils import ModelOutput

from ..model.configuration_fer_pll import FerPllConfig
from ..model.modeling_fer_pll import FerPllModel, FerPllPreTrainedModel


class FerPllForMomentumContrast(FerPllPreTrainedModel):
    """Tells two views of one image from the views of others.

        loss = -log(exp(q . k / t) / (exp(q . k / t) + sum_j exp(q . n_j / t)))    (InfoNCE, Eq. 1)
        weights of the key encoder = m * (their value) + (1 - m) * weights of the query encoder    (Eq. 2)

    q and k are unit vectors of two views of an image, by the encoder and the key encoder. The n_j are those of earlier
    images, from a queue. A network of two layers projects them from the mean of the patch tokens (as in MoCo v2; Chen
    et al., 2020), which is also the input of a classifier on patch tokens.

    Key encoder and queue are part of the state, so that a checkpoint has all that a resumed run needs. A finished run
    keeps `fer_pll` only.

    Args:
        config: of the encoder.
        queue_size: number of earlier keys, Q.
        temperature: t.
        momentum: m, applied at each forward in training, so to each part of a step with accumulated gradients.
    """

    DIM = 128
    queue: torch.Tensor  # (Q, DIM), unit vectors
    next_place: torch.Tensor  # () int64

    def __init__(
        self, config: FerPllConfig, queue_size: int = 65536, temperature: float = 0.07, momentum: float = 0.999
    ) -> None:
        super().__init__(config)
        self.temperature, self.momentum = temperature, momentum
        self.fer_pll, self.projection = self._encoder()
        self.key_encoder, self.key_projection = self._encoder()
        self.key_encoder.requires_grad_(False)
        self.key_projection.requires_grad_(False)
        self.register_buffer("queue", nn.functional.normalize(torch.randn(queue_size, self.DIM), dim=1))
        self.register_buffer("next_place", torch.zeros((), dtype=torch.int64))
        self.post_init()
        self.start_alike()

    def _encoder(self) -> tuple[FerPllModel, nn.Module]:
        size = self.config.hidden_size
        projection = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, self.DIM))
        return FerPllModel(self.config, add_query_decoder=False), projection

    def start_alike(self) -> None:
        """Give the key encoder the weights of the query encoder."""
        self.key_encoder.load_state_dict(self.fer_pll.state_dict())
        self.key_projection.load_state_dict(self.projection.state_dict())

    def embed(self, encoder: FerPllModel, projection: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
        """Unit vectors, float32 (B, DIM)."""
        states = encoder(pixel_values).last_hidden_state[:, 1:].mean(dim=1)  # (B, d)
        return nn.functional.normalize(projection(states).float(), dim=1)

    def forward(self, pixel_values: torch.Tensor) -> ModelOutput:
        """Loss of a batch. In training, the key encoder follows, and the keys of all processes enter the queue.

        Args:
            pixel_values: (2B, C, H, W), normalized: one view of B images, then another.
        """
        views = pixel_values.chunk(2)
        queries = self.embed(self.fer_pll, self.projection, views[0])
        with torch.no_grad():
            if self.training:
                self.follow()
            keys = self.embed(self.key_encoder, self.key_projection, views[1])
        positive = (queries * keys).sum(dim=1, keepdim=True)  # (B, 1)
        negative = queries @ self.queue.clone().T  # (B, Q); the queue changes before the backward
        logits = torch.cat([positive, negative], dim=1) / self.temperature
        loss = nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
        if self.training:
            self.enqueue(gather(keys))
        return ModelOutput(loss=loss)

    @torch.no_grad()
    def follow(self) -> None:
        """Move the key encoder towards the query encoder."""
        for slow, fast in (
            *zip(self.key_encoder.parameters(), self.fer_pll.parameters(), strict=True),
            *zip(self.key_projection.parameters(), self.projection.parameters(), strict=True),
        ):
            slow.lerp_(fast, 1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, keys: torch.Tensor) -> None:
        """Replace the oldest keys by these, (n, DIM)."""
        places = (self.next_place + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys
        self.next_place.copy_((self.next_place + len(keys)) % len(self.queue))
