"""What transformers' Trainer takes is honored or refused by name: searches, optimizers, losses, kinds of data set."""

from functools import partial

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features
from transformers import AutoModelForImageClassification, TrainerCallback, TrainingArguments

from fer_pll import FerPllTrainer, FerPllTrainingArguments
from fer_pll.training.arguments import FerPllPreTrainingArguments
from fer_pll.training.pretraining import FerPllPreTrainer
from siblings import siblings
from tiny import CLASSES, QUICK, make_dataset, make_pretrainer, make_trainer, tiny_config, tiny_processor


def arguments(folder, **settings) -> FerPllTrainingArguments:
    settings = QUICK | {"revision_threshold": 0.005, "confidence_init": "uniform"} | settings
    return FerPllTrainingArguments(str(folder), **settings)


def make(folder, train=None, model=None, model_init=None, args=None, **options) -> FerPllTrainer:
    if model is None and model_init is None:
        model = AutoModelForImageClassification.from_config(tiny_config())
    return FerPllTrainer(
        model,
        args or arguments(folder),
        processing_class=tiny_processor(),
        train_dataset=train,
        model_init=model_init,
        **options,
    )


class Beginnings(TrainerCallback):
    """Notes how many rows are revised when a training begins, and the first confidences."""

    def __init__(self):
        self.revised, self.tables, self.crops = [], [], []

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.revised.append(int((self.trainer.table.revised_epoch >= 0).sum()))
        self.tables.append(self.trainer.table.confidence.clone())
        self.crops.append(self.trainer.augmentation.crop_scale)


def new_model():
    return AutoModelForImageClassification.from_config(tiny_config())


def watched(trainer) -> Beginnings:
    beginnings = Beginnings()
    beginnings.trainer = trainer
    trainer.add_callback(beginnings)
    return beginnings


@pytest.mark.parametrize("loss", siblings("pll", "pico"))
def test_each_trial_of_a_search_starts_with_new_confidences_and_a_new_method(tmp_path, toy_train, loss):
    args = arguments(tmp_path, eval_strategy="epoch", loss=loss)
    trainer = make(tmp_path, toy_train, model_init=new_model, args=args, eval_dataset=make_dataset(16, seed=1))
    beginnings, methods = watched(trainer), []

    def space(trial):
        methods.append(trainer.method)
        return {
            "revision_threshold": trial.suggest_float("revision_threshold", 0.001, 0.006),
            "crop_scale": trial.suggest_float("crop_scale", 0.5, 0.9),
        }

    best = trainer.hyperparameter_search(space, n_trials=3, direction="maximize", backend="optuna")
    assert best.hyperparameters["revision_threshold"] > 0
    assert beginnings.revised == [0, 0, 0]
    assert all(torch.equal(table, beginnings.tables[0]) for table in beginnings.tables)
    assert len({id(method) for method in [*methods, trainer.method]}) == 4  # made anew for each trial
    assert (trainer.table.revised_epoch >= 0).any()  # so the zeros above say something
    assert len(set(beginnings.crops)) == 3  # augmentation too has the values of the trial
    if loss == "pll":
        assert trainer.method.rule_value == trainer.args.revision_threshold != 0.005


def test_a_second_training_goes_on_with_a_given_model_and_starts_anew_with_model_init(tmp_path, toy_train):
    going_on = make(tmp_path / "one", toy_train)
    beginnings = watched(going_on)
    going_on.train()
    going_on.train()
    assert beginnings.revised[0] == 0 < beginnings.revised[1]
    anew = make(tmp_path / "two", toy_train, model_init=lambda trial: new_model())
    beginnings = watched(anew)
    anew.train()
    first = anew.table.confidence.clone()
    anew.train()
    assert beginnings.revised == [0, 0]
    assert torch.equal(anew.table.confidence, first)  # the same seed


def test_a_run_with_model_init_resumes_with_its_table(tmp_path, toy_train):
    def run():
        args = arguments(tmp_path, num_train_epochs=4, save_strategy="epoch")
        return make(tmp_path, toy_train, model_init=new_model, args=args)

    whole = run()
    whole.train()
    resumed = run()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-6"))
    assert torch.equal(whole.table.confidence, resumed.table.confidence)
    assert torch.equal(whole.table.revised_epoch, resumed.table.revised_epoch)


def test_without_a_training_set_it_evaluates_and_predicts(tmp_path, toy_train, toy_validation):
    trained = make_trainer(tmp_path / "run", tiny_config(), tiny_processor(), toy_train, toy_validation)
    trained.train()
    judge = make(tmp_path / "judge", model=trained.model, eval_dataset=toy_validation)
    assert judge.evaluate()["eval_accuracy"] == trained.evaluate()["eval_accuracy"]
    logits = judge.predict(toy_validation).predictions
    assert np.array_equal(logits, trained.predict(toy_validation).predictions)
    with pytest.raises(ValueError, match="requires a train_dataset"):
        judge.train()


@pytest.mark.parametrize("kind", [FerPllTrainingArguments, FerPllPreTrainingArguments])
def test_label_smoothing_is_refused(tmp_path, kind):
    with pytest.raises(ValueError, match=r"label_smoothing_factor=0\.3 has no effect"):
        kind(str(tmp_path), use_cpu=True, label_smoothing_factor=0.3)


def test_a_loss_function_that_would_not_be_called_is_refused(tmp_path, toy_train):
    with pytest.raises(ValueError, match="compute_loss_func is refused"):
        make(tmp_path, toy_train, compute_loss_func=lambda *_, **__: None)
    with pytest.raises(ValueError, match="compute_loss_func is refused"):
        make_pretrainer(
            tmp_path,
            tiny_config(),
            tiny_processor(),
            toy_train.select_columns("image"),
            trainer_class=lambda *args, **kwargs: FerPllPreTrainer(*args, compute_loss_func=print, **kwargs),
        )


def test_an_optimizer_class_is_used_with_its_options_in_the_groups_of_layer_decay(tmp_path, toy_train):
    args = arguments(tmp_path, layer_decay=0.5)
    options = {"lr": 7e-4, "momentum": 0.5}
    trainer = make(tmp_path, toy_train, args=args, optimizer_cls_and_kwargs=(torch.optim.SGD, options))
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert {group["momentum"] for group in optimizer.param_groups} == {0.5}
    rates = {group["lr"] for group in optimizer.param_groups}
    assert rates == {7e-4 * 0.5**depth for depth in range(4)}  # two layers: above, 2, 1, embeddings
    trainer.train()


def test_an_optimizer_with_groups_of_its_own_is_refused(tmp_path, toy_train):
    options = {"lr": 1e-3, "params": []}
    trainer = make(tmp_path, toy_train, optimizer_cls_and_kwargs=(torch.optim.SGD, options))
    with pytest.raises(ValueError, match="makes parameter groups of its own"):
        trainer.create_optimizer()


class TorchRows(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return {}


class TorchStream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(())


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (lambda rows: rows.to_iterable_dataset(), r"is a datasets\..*IterableDataset, but the confidences need rows"),
        (lambda rows: TorchRows(), r"TorchRows, but the confidences need rows .* Dataset.from_list"),
        (lambda rows: TorchStream(), r"TorchStream, but the confidences need rows"),
        (
            lambda rows: rows.with_transform(lambda batch: {"x": batch["image"]}),
            r"has a transform .* reset_format\(\)",
        ),
        (lambda rows: rows.remove_columns("image"), "has no column 'image'; it has"),
    ],
)
def test_other_kinds_of_training_sets_are_named(tmp_path, toy_train, data, match):
    with pytest.raises(ValueError, match=match):
        make(tmp_path, data(toy_train))


@pytest.mark.parametrize("kind", [TrainingArguments, FerPllPreTrainingArguments])
def test_arguments_of_another_kind_are_named(tmp_path, toy_train, kind):
    with pytest.raises(ValueError, match="give a FerPllTrainingArguments of fer_pll"):
        make(tmp_path, toy_train, args=kind(str(tmp_path), use_cpu=True))


def test_a_pre_trainer_names_them_too(tmp_path, toy_train):
    options = {"processing_class": tiny_processor(), "train_dataset": toy_train}
    with pytest.raises(ValueError, match=r"args is a transformers\.training_args\.TrainingArguments"):
        FerPllPreTrainer(new_model(), TrainingArguments(str(tmp_path), use_cpu=True), **options)
    args = FerPllPreTrainingArguments(str(tmp_path), use_cpu=True)
    with pytest.raises(ValueError, match=r"train_dataset is a .*TorchRows: give a datasets\.Dataset"):
        FerPllPreTrainer(new_model(), args, **options | {"train_dataset": TorchRows()})


def test_a_model_is_given_or_made(tmp_path, toy_train):
    options = {"processing_class": tiny_processor(), "train_dataset": toy_train}
    with pytest.raises(ValueError, match="Neither of model and model_init"):
        FerPllTrainer(None, arguments(tmp_path), **options)
    with pytest.raises(ValueError, match="Both of model and model_init"):
        FerPllTrainer(new_model(), arguments(tmp_path), model_init=new_model, **options)
    optimizer = torch.optim.SGD(new_model().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="whose parameters `optimizers` does not have"):
        FerPllTrainer(None, arguments(tmp_path), model_init=new_model, optimizers=(optimizer, None), **options)


def test_an_evaluation_set_of_other_classes_is_refused_before_the_first_step(tmp_path, toy_train, toy_validation):
    names = ["right", "left", "top", "bottom"]
    features = Features(toy_validation.features | {"label": ClassLabel(names=names)})
    other = Dataset.from_list(list(toy_validation.cast_column("label", features["label"])), features=features)
    with pytest.raises(
        ValueError, match="evaluation set has the classes right, left, top, bottom; the model has left"
    ):
        make(tmp_path, toy_train, eval_dataset=other)
    with pytest.raises(ValueError, match="evaluation set new has the classes"):
        make(tmp_path, toy_train, eval_dataset={"old": toy_validation, "new": other})
    args = arguments(
        tmp_path, eval_strategy="epoch", save_strategy="epoch", load_best_model_at_end=True, metric_for_best_model="f1"
    )
    with pytest.raises(ValueError, match="metric_for_best_model='f1': choose one of loss, accuracy"):
        make(tmp_path, toy_train, args=args, eval_dataset=toy_validation)


def test_an_evaluation_set_that_comes_later_is_checked_too(tmp_path, toy_validation):
    features = Features(toy_validation.features | {"label": ClassLabel(names=CLASSES[::-1])})
    other = Dataset.from_list(list(toy_validation.cast_column("label", features["label"])), features=features)
    trainer = make(tmp_path, model=new_model())
    for judge in (trainer.evaluate, trainer.predict):
        judge(toy_validation)
        with pytest.raises(ValueError, match="evaluation set has the classes bottom, top"):
            judge(other)
        with pytest.raises(ValueError, match="a column 'labels' and none named 'label'"):
            judge(toy_validation.rename_column("label", "labels"))
        short = toy_validation.remove_columns("candidates").add_column("candidates", [[True] * 3] * len(other))
        with pytest.raises(ValueError, match="candidate sets of 3 classes, the model has 4"):
            judge(short)


def test_what_is_given_as_none_is_the_default(tmp_path, toy_train, toy_validation):
    trainer = make(tmp_path, toy_train, data_collator=None, compute_metrics=None, eval_dataset=toy_validation)
    trainer.train()
    assert "eval_accuracy" in trainer.evaluate()


def test_metrics_do_not_depend_on_how_trainer_collects(tmp_path, toy_validation):
    model = new_model()
    whole = make(tmp_path, model=model, eval_dataset=toy_validation).evaluate()
    args = arguments(tmp_path, eval_do_concat_batches=False)
    in_batches = make(tmp_path, model=model, args=args, eval_dataset=toy_validation).evaluate()
    beside_others = make(tmp_path, model=model, eval_dataset=toy_validation).evaluate(ignore_keys=["hidden_states"])
    for name in ("eval_accuracy", "eval_mean_class_accuracy", "eval_ece", "eval_candidate_accuracy"):
        assert in_batches[name] == beside_others[name] == pytest.approx(whole[name])


@pytest.mark.parametrize("change", [lambda logits, _: logits.argmax(-1), lambda logits, _: logits.topk(2).indices])
def test_candidate_accuracy_is_not_taken_from_changed_predictions(tmp_path, toy_validation, change):
    trainer = make(
        tmp_path,
        model=new_model(),
        eval_dataset=toy_validation,
        preprocess_logits_for_metrics=change,
        compute_metrics=lambda prediction: {"rows": len(prediction.predictions)},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_rows"] == len(toy_validation) and "eval_candidate_accuracy" not in metrics


@pytest.mark.parametrize(("first", "second"), [("pico", "pll"), ("scn", "dda"), ("pll", "solar"), ("dda", "dacl")])
def test_a_search_goes_over_losses_with_settings_of_their_own(tmp_path, toy_train, first, second):
    args = arguments(tmp_path, eval_strategy="epoch", loss=first, max_steps=1)
    trainer = make(tmp_path, toy_train, model_init=new_model, args=args, eval_dataset=make_dataset(16, seed=1))
    space = lambda trial: {"loss": trial.suggest_categorical("loss", [second])}  # noqa: E731
    trainer.hyperparameter_search(space, n_trials=1, direction="maximize", backend="optuna")
    assert trainer.method.name == second
    assert trainer.args.method_settings == FerPllTrainingArguments(str(tmp_path), loss=second).method_settings


def test_settings_survive_their_own_dictionary(tmp_path):
    args = arguments(tmp_path)
    again = FerPllTrainingArguments(**args.to_dict())
    assert again.to_dict() == args.to_dict()
    changed = FerPllTrainingArguments.from_settings(arguments(tmp_path, loss="dacl").to_dict(), loss="pico")
    assert (changed.loss, changed.revision, changed.revision_is_chosen) == ("pico", "prototype", False)
    kept = FerPllTrainingArguments.from_settings(arguments(tmp_path, revision="soft").to_dict(), loss="rc")
    assert kept.revision == "soft"


def test_a_training_set_without_rows_is_named(tmp_path, toy_train):
    with pytest.raises(ValueError, match="The training set has no rows"):
        make(tmp_path, toy_train.select([]))


def test_pre_training_is_evaluated_by_its_loss_on_the_same_patches_each_time(tmp_path, toy_validation):
    def train(folder, **settings) -> FerPllPreTrainer:
        trainer_class = partial(FerPllPreTrainer, eval_dataset=toy_validation.select_columns(["image", "row_id"]))
        trainer = make_pretrainer(
            tmp_path / folder,
            tiny_config(),
            tiny_processor(),
            make_dataset(48),
            trainer_class=trainer_class,
            **settings,
        )
        trainer.train()
        return trainer

    best = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = train("evaluated", **best)
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 2 and losses[1] < losses[0]
    assert trainer.evaluate()["eval_loss"] == trainer.evaluate()["eval_loss"] == losses[1]
    weights = train("not evaluated").model.state_dict()
    assert all(torch.equal(weights[name], weight) for name, weight in trainer.model.state_dict().items())
    with pytest.raises(ValueError, match="moco has no loss to evaluate by"):
        train("moco", objective="moco")
