"""Names of the files that are published with a checkpoint. `training.run_folder` has those of a whole run."""

CARD_NAME = "README.md"
TRAINING_NAME = "training.json"  # what the card says about the training run
PREPROCESSOR_NAME = "preprocessor_config.json"
ADAPTER_FOLDER = "adapter"  # of the adapters that a model was merged with
ADAPTER_WEIGHTS_NAME = "adapter_model.safetensors"  # as peft names them

# In the folder of an evaluation, beside the checkpoint's files:
METRICS_NAME = "metrics.json"
PREDICTIONS_NAME = "predictions.csv"  # not published
CONFUSION_MATRIX_NAME = "confusion_matrix_{}.png"  # of a protocol
