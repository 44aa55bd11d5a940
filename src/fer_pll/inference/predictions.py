"""Predictions of a checkpoint for a prepared data set."""

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel
from transformers.image_processing_backends import PilBackend


@torch.inference_mode()
def predict_logits(
    model: PreTrainedModel, image_processor: PilBackend, dataset: Dataset, batch_size: int = 256
) -> torch.Tensor:
    """Logits, float32 (N, K), for the column `image`; shows a progress bar.

    Raises:
        ValueError: the model's answer for a row is NaN or infinite.
    """
    logits, in_color = [], getattr(model.config, "num_channels", 3) == 3
    for rows in tqdm(dataset.select_columns("image").iter(batch_size), "evaluate", -(-len(dataset) // batch_size)):
        # Processors of transformers do not turn gray images into colored ones.
        images = [image.convert("RGB") for image in rows["image"]] if in_color else rows["image"]
        inputs = image_processor(images, return_tensors="pt").to(model.device)
        logits.append(model(**inputs).logits.float().cpu())
    answers = torch.cat(logits)
    wrong = (~answers.isfinite().all(dim=1)).nonzero().flatten().tolist()
    if wrong:
        raise ValueError(
            f"{model.name_or_path or 'the model'} answers NaN or infinity for {len(wrong)} of {len(answers)} rows, "
            f"the first is row {wrong[0]}: take an earlier checkpoint, or one in float32"
        )
    return answers
