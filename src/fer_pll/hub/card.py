"""The model card: what a checkpoint is, how it was trained, what was measured, and what it must not be used for."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from ..data.provenance import Provenance
from ..io.errors import DataError
from ..io.pretrained import CONFIG_FILE, load_image_processor, load_model_config, make_model, tensor_shapes
from ..io.shipped import DEFAULT_NAME, shipped
from ..io.stored import check_shape, read_json, reading
from ..labels.confidence_table import ConfidenceTable
from ..labels.renamed import current_name
from ..labels.revision import REVISION_RULES, RevisionRule
from ..model.configuration_fer_pll import FerPllConfig
from ..model.image_processing_fer_pll import FerPllImageProcessor
from ..model.modeling_fer_pll import FerPllForImageClassification, FerPllForPreTraining, FerPllModel
from .files import CONFUSION_MATRIX_NAME, METRICS_NAME, TRAINING_NAME
from .markdown import code, escaped, link, one_line, prose

TAGS = ["fer-pll", "facial-expression-recognition", "partial-label-learning", "vision"]

EVALUATE_AGAIN = "run `fer-pll evaluate` again, or delete the file"

_FIGURES = {"accuracy": float, "mean_class_accuracy": float, "ece": float}
_NONE = type(None)
_RECORD: dict[str, Any] = {
    "data?": ({str: object}, str, _NONE),
    "data_license?": (str, _NONE),
    "settings?": ({str: object}, _NONE),
    "candidate_sets?": ({"rows": int, "mean_size": float, "ambiguous": int, "revised": int}, _NONE),
    "method?": {"sentence": (str, _NONE)},
    "revision?": {"sentence": (str, _NONE)},
    "metrics?": {str: _FIGURES},
    "compute?": ({"hours?": float}, _NONE),
    "calibration?": (
        {"balance": float, "temperature": float, "rows": int, "ece_before": float, "ece_after": float},
        _NONE,
    ),
    "pretraining?": ({"data": ({str: object}, str, _NONE), "objective": str, "epochs": (float, _NONE)}, _NONE),
}
"""What a card takes from `training.json`."""

_REPORT: dict[str, Any] = {
    "data": ({str: object}, str, _NONE),
    "split": str,
    "protocols": {str: {**_FIGURES, "rows": int, "per_class_recall": {str: (float, _NONE)}}},
}
"""What a card takes from the `metrics.json` of an evaluation."""

_BEFORE_SENTENCES = {
    "cross_entropy": "The loss did not use them: it is the cross-entropy with the given label.",
    "soft_votes": "The loss did not use them: it is the cross-entropy with the shares of all votes.",
    "prototype": "Each time the image is seen, they move towards the candidate whose prototype is nearest.",
}
"""Sentences about losses and rules in a `training.json` of the version before, which holds only their names."""


class DescribesItself(Protocol):
    """What a card needs to know about a method of learning from candidate sets; a `training.methods.Method` has it."""

    name: str
    rule: RevisionRule

    def sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str: ...

    def revision_sentence(self, settings: Mapping[str, Any], candidate_sets: Mapping[str, Any]) -> str | None: ...


def training_record(
    settings: Mapping[str, Any],
    data: Provenance | None = None,
    table: ConfidenceTable | None = None,
    method: DescribesItself | None = None,
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    compute: Mapping[str, Any] | None = None,
    init_from: str | Path | None = None,
) -> dict[str, Any]:
    """What a card says about a training run, ready for `training.json`. It names no path of the machine.

    Args:
        settings: those that the card shows, e.g. `args.card_settings()`; the ones that are `None` are left out.
        data: what the model was trained on.
        table: the confidences that the run left; they give the sizes of the candidate sets and the images revised.
        method: how it learned; needs a `table`. Its sentences are stored beside the names, so that a card can still be
            made where the method or rule is unknown.
        metrics: `accuracy`, `mean_class_accuracy` and `ece` for each data set that was evaluated during training.
        compute: `device`, `processes`, the versions of `torch` and `transformers` and, where known, `hours`.
        init_from: where the weights came from. The record has it only if that is the folder of one of our pre-training
            runs.
    """
    settings = {name: value for name, value in settings.items() if value is not None}
    numbers = None if table is None else _candidate_sets(table)
    learned = {}
    if method is not None and numbers is not None:
        learned = {
            "method": {"name": method.name, "sentence": method.sentence(settings, numbers)},
            "revision": {"name": method.rule.name, "sentence": method.revision_sentence(settings, numbers)},
        }
    return {
        "data": None if data is None else data.to_dict(),
        "settings": settings,
        "candidate_sets": numbers,
        **learned,
        "metrics": dict(metrics or {}),
        "compute": dict(compute or {}),
        "pretraining": None if init_from is None else _pretraining(Path(init_from)),
    }


def model_card(
    model: PreTrainedModel,
    model_id: str,
    training: Mapping[str, Any] | None = None,
    evaluations: Mapping[str, Mapping[str, Any]] | None = None,
    license: str | None = None,
    face_crop: Mapping[str, Any] | None = None,
    packaged: bool = False,
) -> ModelCard:
    """The card of a checkpoint. It leaves out what is not given: it claims nothing that was not measured.

    Args:
        model: a fer-pll model, without a head if only its encoder was trained; its config has the classes and sizes.
        model_id: what `from_pretrained` loads it by, a Hub name or a folder.
        training: a `training_record`. Text in it, as that in all other arguments, may come from strangers: the card
            shows it as it is, and obeys none of it.
        evaluations: the metrics.json files of fer-pll evaluate, by the name of their folder, which lies beside the
            card. They replace the metrics from training.
        license: Hub identifier of the license of the weights.
        face_crop: how the training images show a face, as the image processor's `face_crop` says.
        packaged: the checkpoint comes with the package, without code beside it, and is not on the Hub.

    Returns:
        the card; `card.save(path)` writes it.
    """
    pretraining = not isinstance(model, FerPllForImageClassification)
    config = model.config
    names = cast(dict[int, str], config.id2label)  # it turns the keys that JSON made text into numbers
    training = training or {}
    data = Provenance.from_json(training.get("data"))
    started_from = training.get("pretraining")
    if started_from is not None:
        started_from = started_from | {"data": _sentence(started_from["data"])}
    results = _results(evaluations or {})
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-feature-extraction" if pretraining else "image-classification",
        tags=TAGS,
        license=license and one_line(license),
        datasets=(data and data.hub_ids()) or None,
        metrics=["accuracy"] if results or training.get("metrics") else None,
        model_name=one_line(model_id.split("/")[-1]) if results else None,
        eval_results=[entry for result in results for entry in _model_index(result)] or None,
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(shipped("model_card.md")),
        escaped=escaped,
        code=code,
        link=link,
        prose=prose,
        model_id=model_id,
        default_name=DEFAULT_NAME,
        model_text=json.dumps(model_id),
        pretraining=pretraining,
        has_head=not isinstance(model, FerPllModel),
        config=config,
        class_names=[names[i] for i in range(len(names))],
        num_parameters=model.num_parameters(),
        data=data and data.sentence(),
        data_license=training.get("data_license")
        or (data and data.terms()),  # the first is where older records have it
        settings=training.get("settings") or {},
        candidate_sets=training.get("candidate_sets"),
        learned=_learned(training),
        calibration=training.get("calibration"),
        started_from=started_from,
        compute=training.get("compute") or {},
        metrics=[] if results else [{"name": name, **values} for name, values in training.get("metrics", {}).items()],
        results=results,
        weights_license=license,
        face_crop=face_crop,
        packaged=packaged,
    )


def folder_card(folder: str | Path, model_id: str, license: str | None = None, packaged: bool = False) -> ModelCard:
    """The card of a checkpoint on disk, made from its config, its image processor, and the JSON files beside them.

    For `license` and `packaged` see `model_card`.

    Raises:
        DataError: the folder does not hold a fer-pll model, or one of its files is damaged.
    """
    folder = Path(folder)
    config = load_model_config(folder, FerPllConfig)
    classes = {each.__name__: each for each in (FerPllForImageClassification, FerPllForPreTraining, FerPllModel)}
    architecture = (config.architectures or [""])[0]
    if architecture not in classes:
        raise DataError(
            f"{folder / CONFIG_FILE}: no card is known for {architecture or 'a model without `architectures`'}."
        )
    if architecture == FerPllModel.__name__:
        config.add_query_decoder = False
    with torch.device("meta"):
        model = make_model(classes[architecture], config)
    _check_weights(folder, model)
    training = read_json(folder / TRAINING_NAME, _RECORD) if (folder / TRAINING_NAME).is_file() else None
    for content in (training and (training.get("data"), (training.get("pretraining") or {}).get("data"))) or ():
        Provenance.from_json(content, f"{folder / TRAINING_NAME}: data")
    evaluations = read_evaluations(folder)
    face_crop = load_image_processor(folder, FerPllImageProcessor).face_crop
    with reading(f"{folder} ({TRAINING_NAME}, {METRICS_NAME})"):
        card = model_card(model, model_id, training, evaluations, license, face_crop, packaged)
        ModelCard(str(card))  # its metadata are whole
    return card


def _check_weights(folder: Path, model: PreTrainedModel) -> None:
    """Raise `DataError` if the weights in a checkpoint's folder are not those that its config.json describes."""
    shapes = tensor_shapes(folder)
    for name, tensor in model.state_dict().items():
        if shapes.get(name) != tuple(tensor.shape):
            found = f"of shape {shapes[name]}, not {tuple(tensor.shape)}" if name in shapes else "missing"
            raise DataError(
                f"{folder}: the weights {name} are {found}, as its {CONFIG_FILE} wants them: save or download the "
                "checkpoint again"
            )


def weights_digest(folder: str | Path) -> str | None:
    """SHA-256 of the safetensors weights in a checkpoint's folder; `None` where there are none."""
    digest, files = hashlib.sha256(), sorted(Path(folder).glob("model*.safetensors"))
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest() if files else None


def read_evaluations(folder: str | Path) -> dict[str, dict[str, Any]]:
    """Reports of fer-pll evaluate beside a checkpoint that are about its present weights, by name of their folder.

    Raises:
        DataError: a metrics.json is damaged.
    """
    paths = sorted(Path(folder).glob(f"*/{METRICS_NAME}"))
    digest = weights_digest(folder) if paths else None
    reports = {path: read_json(path, dict, EVALUATE_AGAIN) for path in paths}
    of_these = {path: report for path, report in reports.items() if digest and report.get("weights") == digest}
    for path, report in of_these.items():
        check_shape(report, _REPORT, str(path), EVALUATE_AGAIN)
        Provenance.from_json(report["data"], f"{path}: data")
    return {path.parent.name: report for path, report in of_these.items()}


def _results(evaluations: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row of the card for each protocol of each evaluation."""
    results = []
    for folder, report in evaluations.items():
        data = Provenance.from_json(report["data"]) or Provenance()
        results += [
            {
                "name": f"{data.title()}, {report['split']}, protocol {protocol}",
                "data": data,
                "split": report["split"],
                "protocol": protocol,
                "image": f"{folder}/{CONFUSION_MATRIX_NAME.format(protocol)}",
                **metrics,
            }
            for protocol, metrics in report["protocols"].items()
        ]
    return results


def _sentence(data: dict[str, Any] | str | None) -> str | None:
    """The sentence about the data of a record."""
    provenance = Provenance.from_json(data)
    return provenance.sentence() if provenance else None


def _model_index(result: Mapping[str, Any]) -> list[EvalResult]:
    """Entries of the card's metadata. Files in `.eval_results/` the Hub takes for its registered benchmarks only."""
    shared = {
        "task_type": "image-classification",
        "dataset_type": result["data"].dataset_type(),
        "dataset_name": one_line(result["data"].title()),
        "dataset_config": one_line(result["protocol"]),
        "dataset_split": one_line(result["split"]),
    }
    accuracy = EvalResult(metric_type="accuracy", metric_value=round(result["accuracy"], 4), **shared)
    mean_class_accuracy = EvalResult(
        metric_type="recall",
        metric_name="mean class accuracy",
        metric_value=round(result["mean_class_accuracy"], 4),
        metric_args={"average": "macro"},
        **shared,
    )
    return [accuracy, mean_class_accuracy]


def _learned(training: Mapping[str, Any]) -> dict[str, str | None]:
    """Sentences about the loss and about the revision; `None` where there is nothing to say."""
    if "method" in training:
        return {name: training[name]["sentence"] for name in ("method", "revision")}
    # Records of the version before hold only names.
    settings, numbers = training.get("settings") or {}, training.get("candidate_sets")
    loss, revision = (current_name(name, settings.get(name)) for name in ("loss", "revision"))
    loss_sentence = _BEFORE_SENTENCES.get(loss)
    if numbers is None or revision is None or (loss_sentence is not None and revision == "none"):
        revision_sentence = None
    elif revision in REVISION_RULES:
        revision_sentence = REVISION_RULES[revision].sentence(settings, numbers)
    else:
        neutral = f"The revision rule was `{revision}`. Images revised at least once: {numbers['revised']:,}."
        revision_sentence = _BEFORE_SENTENCES.get(revision, neutral)
    return {"method": loss_sentence, "revision": revision_sentence}


def _pretraining(folder: Path) -> dict[str, Any] | None:
    """Data, epochs and objective of a pre-training run; `None` where the folder holds none of ours."""
    if not (folder / TRAINING_NAME).is_file():
        return None
    training = read_json(folder / TRAINING_NAME, _RECORD)
    settings = training.get("settings") or {}
    if "objective" not in settings:
        return None
    config = load_model_config(folder, FerPllConfig)
    objective = "moco" if settings["objective"] == "moco" else config.pretraining_target
    return {"data": training.get("data"), "objective": objective, "epochs": settings.get("num_train_epochs")}


def _candidate_sets(table: ConfidenceTable) -> dict[str, float]:
    set_sizes = table.candidates.sum(dim=1)
    ambiguous = int((set_sizes > 1).sum())
    return {
        "rows": len(table),
        "mean_size": set_sizes.float().mean().item(),
        "ambiguous": ambiguous,
        "revised": int((table.revised_epoch >= 0).sum()),
    }
