"""Pushes and pulls against a Hub of our own: fresh processes, and at the pulling side none that knows fer_pll."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import skimage.data
import torch
from datasets import DatasetDict
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from fer_pll import FerPllForImageClassification, FerPllImageProcessor, load_recognizer
from fer_pll.data.dataset import load_dataset, save_dataset
from fer_pll.data.row_ids import row_ids
from fer_pll.hub.card import weights_digest
from fer_pll.hub.confidences import confidence_dataset, confidences_from_hub
from fer_pll.hub.push import published_files
from fer_pll.io.errors import DataError
from fer_pll.io.pretrained import load_model
from fer_pll.training.run_folder import RunFolder
from fer_pll.training.trainer import start_table
from hub.fake_hub import FakeHub, Fault
from hub.stranger import run_stranger
from tiny import CLASSES

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
TOKEN = "hf_aTokenThatMustNotBeFoundInAnyFile"
CODE = {
    "configuration_fer_pll.py",
    "configuration_fer_pll_resnet.py",
    "drop_path.py",
    "face_alignment.py",
    "face_answers.py",
    "face_crop.py",
    "face_detection.py",
    "feature_tokens.py",
    "hog.py",
    "image_processing_fer_pll.py",
    "masking.py",
    "missing_extra.py",
    "modeling_fer_pll.py",
    "modeling_fer_pll_resnet.py",
    "pipeline_fer_pll.py",
    "preprocessing.py",
    "uniformity.py",
}
NEEDED = CODE | {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"}
FAULTS = {
    "at-end": Fault("commit", None),
    "answers-401": Fault("create", 401),
    "answers-403": Fault("commit", 403),
    "answers-404": Fault("preupload", 404, {"X_Error_Code": "RepoNotFound"}),
    "answers-409": Fault("commit", 409),
    "answers-429": Fault("commit", 429, {"Retry_After": "7"}),
    "answers-500": Fault("commit", 500),
    "answers-cut": Fault("commit", None),
    "answers-batch-429": Fault("batch", 429, {"Retry_After": "0"}),
    "answers-batch-500": Fault("batch", 500, {"Retry_After": "0"}),
    "answers-upload-403": Fault("upload", 403),
    "answers-upload-cut": Fault("upload", None),
    "command-403": Fault("create", 403),
    "every-save": Fault("commit", 500),
}
CLASSIFIERS = ("fer-pll-tiny-ferplus", "every-save", "with-checkpoint", "at-end", "by-hand")

# Loads every repository that is named, and writes the logits for face.png to pulled.safetensors.
PULL = """
import json
import sys
from pathlib import Path
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, pipeline

trust = {"trust_remote_code": True}
logits = {}
for repo in sys.argv[1:]:
    config = AutoConfig.from_pretrained(repo, **trust)
    inputs = AutoImageProcessor.from_pretrained(repo, **trust)(Image.open("face.png"), return_tensors="pt")
    head = AutoModelForPreTraining if repo.endswith("pretrained") else AutoModelForImageClassification
    model = head.from_pretrained(repo, **trust)
    with torch.no_grad():
        AutoModel.from_pretrained(repo, **trust)(**inputs)
        if head is AutoModelForImageClassification:
            logits[repo] = model(**inputs).logits
save_file(logits, "pulled.safetensors")
recognize = pipeline(model=sys.argv[1], device="cpu", **trust)
Path("faces.json").write_text(json.dumps([recognize.task, recognize("group.jpg")]))
assert "fer_pll" not in sys.modules
"""


def readme_section() -> str:
    return (ROOT / "docs" / "guides" / "hub.md").read_text()


def code_of(section: str, language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", section, flags=re.DOTALL)).replace("YOUR-NAME", "someone")


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        for name, fault in FAULTS.items():
            retried = fault.status != 403 and fault.route in ("batch", "upload")  # five times, by huggingface_hub
            hub.faults[f"someone/{name}"] += [fault] * (6 if retried else 1)
        yield hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    Image.linear_gradient("L").resize((40, 30)).save(folder / "face.png")
    Image.fromarray(skimage.data.astronaut()).save(folder / "group.jpg")
    return folder


@pytest.fixture(scope="module")
def messages(hub, folder) -> dict[str, str | None]:
    """What failed pushes said; afterwards everything is pushed but what the README pushes."""
    command = [sys.executable, Path(__file__).with_name("pushing.py"), folder]
    path = os.pathsep.join(filter(None, (str(ROOT / "tests"), os.environ.get("PYTHONPATH"))))
    environment = hub.environment(folder / "home", TOKEN, PYTHONPATH=path)
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return {**json.loads(done.stdout.splitlines()[-1]), "log": done.stderr}


@pytest.fixture(scope="module")
def pushed(hub, folder, messages) -> dict[str, dict[str, bytes]]:
    """The repositories, that of the README's commands among them."""
    environment = hub.environment(folder / "home", TOKEN, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    commands = "set -e\n" + code_of(readme_section(), "sh")
    done = subprocess.run(["bash", "-c", commands], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return hub.repos


@pytest.fixture(scope="module")
def pulled(hub, folder, pushed) -> dict[str, torch.Tensor]:
    """Logits by repository, of a process without fer_pll that also ran the README's Python."""
    code = code_of(readme_section(), "python") + PULL
    repos = [f"someone/{name}" for name in (*CLASSIFIERS, "pretrained")]
    output = run_stranger(code, *repos, environment=hub.environment(folder / "stranger"), cwd=folder)
    assert "left" in output and "score" in output
    return load_file(folder / "pulled.safetensors")


def test_the_repository_of_the_readme_file_by_file(pushed):
    assert set(pushed["someone/fer-pll-tiny-ferplus"]) == NEEDED | {
        "training.json",
        "evaluation/metrics.json",
        "evaluation/confusion_matrix_all.png",
    }
    assert set(pushed["datasets/someone/fer-pll-tiny-ferplus-confidences"]) == {"README.md", "train.parquet"}


@pytest.mark.parametrize("name", ["every-save", "with-checkpoint", "at-end", "by-hand", "pretrained"])
def test_every_way_to_push_leaves_the_same_files(pushed, name):
    files = {path for path in pushed[f"someone/{name}"] if not path.startswith("last-checkpoint/")}
    assert files == NEEDED | (set() if name == "by-hand" else {"training.json"})
    for file in CODE:
        assert pushed[f"someone/{name}"][file] == (ROOT / "src/fer_pll/model" / file).read_bytes()
    config = json.loads(pushed[f"someone/{name}"]["config.json"])
    preprocessor = json.loads(pushed[f"someone/{name}"]["preprocessor_config.json"])
    assert set(config["auto_map"] | preprocessor["auto_map"]) == {
        "AutoBackbone",
        "AutoConfig",
        "AutoImageProcessor",
        "AutoModel",
        "AutoModelForImageClassification",
        "AutoModelForMaskedImageModeling",
        "AutoModelForPreTraining",
    }
    assert preprocessor["face_crop"]["name"] == "toy"


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_stranger_gets_what_was_pushed(pulled, pushed, folder, name):
    run = {"fer-pll-tiny-ferplus": "finetune", "by-hand": "finetune"}.get(name, name)
    model = FerPllForImageClassification.from_pretrained(folder / "runs" / run).eval()
    inputs = FerPllImageProcessor.from_pretrained(folder / "runs" / run)(
        Image.open(folder / "face.png"), return_tensors="pt"
    )
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(pulled[f"someone/{name}"], logits, atol=1e-6, rtol=0)


def test_a_stranger_recognizes_faces_in_photographs(pulled, folder):
    task, faces = json.loads((folder / "faces.json").read_text())
    assert task == "facial-expression-recognition" and len(faces) == 1
    (expected,) = load_recognizer(folder / "runs" / "finetune", device="cpu")(folder / "group.jpg")
    scores = {each["label"]: pytest.approx(each["score"], abs=1e-6) for each in expected.pop("expressions")}
    assert {each["label"]: each["score"] for each in faces[0].pop("expressions")} == scores
    assert faces == [expected]


def test_what_was_pulled_once_loads_offline(hub, folder, pulled):
    environment = hub.environment(folder / "stranger", HF_HUB_OFFLINE="1")
    requests = len(hub.requests)
    for name in ("pulled.safetensors", "faces.json"):
        (folder / name).unlink()
    run_stranger(PULL, "someone/at-end", environment=environment, cwd=folder)
    assert torch.equal(load_file(folder / "pulled.safetensors")["someone/at-end"], pulled["someone/at-end"])
    assert len(hub.requests) == requests
    assert len(json.loads((folder / "faces.json").read_text())[1]) == 1


def test_half_trained_pushes_say_so_and_survive_a_failure(hub, pushed, messages, folder):
    assert hub.commits["someone/every-save"] == ["Training in progress, step 2"]  # step 1 met the 500
    assert "was not pushed, training goes on" in messages["log"] and "try again later" in messages["log"]
    assert hub.commits["someone/with-checkpoint"] == [
        "Training in progress, step 1",
        "Training in progress, step 1, checkpoint",
        "Training in progress, step 2",
        "Training in progress, step 2, checkpoint",
    ]
    checkpoint = folder / "runs" / "with-checkpoint" / "checkpoint-2"
    files = {path.name for path in checkpoint.iterdir()} - {"training_args.bin"}
    assert {"confidence.safetensors", "optimizer.pt", "trainer_state.json"} < files
    on_the_hub = pushed["someone/with-checkpoint"]
    assert {name.split("/")[1] for name in on_the_hub if name.startswith("last-checkpoint/")} == files
    table = (checkpoint / "confidence.safetensors").read_bytes()
    assert on_the_hub["last-checkpoint/confidence.safetensors"] == table


@pytest.mark.parametrize(
    ("scenario", "said"),
    [
        ("401", "(401): it does not know you: log in with `hf auth login`"),
        ("403", "(403): your token may not write there"),
        ("404", "(404): there is no such repository"),
        ("409", "(409): somebody else is changing the repository: try again"),
        ("429", "(429): too many requests: try again in 7 seconds"),
        ("500", "(500): try again later"),
        ("cut", "the connection to the Hub failed"),
        ("batch-429", "(429): too many requests: try again in 0 seconds"),
        ("batch-500", "(500): try again later"),
        ("upload-403", "try again.\nError while uploading 'model.safetensors' to the Hub.\n403 Forbidden"),
        ("upload-cut", "a large file did not get through, and nothing of this push is there: try again."),
        ("at-end", "someone/at-end: the connection to the Hub failed"),
        ("command", "error: someone/command-403: the Hub refused the push (403)"),
    ],
)
def test_a_failed_push_says_why_and_a_second_one_succeeds(hub, messages, scenario, said):
    assert said in messages[scenario]
    if scenario not in ("at-end", "command"):
        assert f"someone/answers-{scenario}" in messages[scenario]
        assert set(hub.repos[f"someone/answers-{scenario}"]) == NEEDED | {"training.json"}
        assert hub.faults[f"someone/answers-{scenario}"] == []


def test_the_token_is_in_no_file(hub, folder, pulled):
    assert hub.tokens == {TOKEN}  # it was used
    written = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "training_args.bin" for path in written)
    assert [path for path in written if TOKEN.encode() in path.read_bytes()] == []
    assert not any(TOKEN.encode() in content for files in hub.repos.values() for content in files.values())


def test_no_file_on_the_hub_names_a_path_of_this_machine(pushed, folder):
    for repo, files in pushed.items():
        for name, content in files.items():
            if not name.startswith("last-checkpoint/"):
                assert str(folder).encode() not in content and b"runs/" not in content, (repo, name)


def test_the_card_holds_the_figures_of_the_evaluation(pushed, folder):
    card = ModelCard(pushed["someone/fer-pll-tiny-ferplus"]["README.md"].decode())
    metrics = json.loads((folder / "runs" / "finetune" / "evaluation" / "metrics.json").read_text())
    accuracy = metrics["protocols"]["all"]["accuracy"]
    assert f"| {100 * accuracy:.1f} % |" in card.text
    assert "toy train: 48 rows" in card.text and "free for all." in card.text
    assert "cropped like those of toy" in card.text
    image = re.search(r"!\[.*\]\((.*)\)", card.text)[1]
    assert image in pushed["someone/fer-pll-tiny-ferplus"]
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["accuracy"].metric_value == round(accuracy, 4)
    assert results["accuracy"].dataset_split == "validation"


def test_the_card_of_a_model_pushed_by_hand_is_ours_and_stays(hub, pushed):
    assert "## Limits and responsible use" in pushed["someone/by-hand"]["README.md"].decode()
    assert hub.commits["someone/by-hand"][0] == "Upload model card"


def test_the_confidences_as_a_data_set(pushed, folder):
    files = pushed["datasets/someone/fer-pll-tiny-ferplus-confidences"]
    (folder / "train.parquet").write_bytes(files["train.parquet"])
    rows = datasets.Dataset.from_parquet(str(folder / "train.parquet"), cache_dir=str(folder / "parquet"))
    assert rows.column_names == ["row_id", "label", "votes", "candidates", "confidence", "revised_epoch"]
    table = load_file(folder / "runs" / "finetune" / "confidence.safetensors")
    for name in ("candidates", "confidence", "revised_epoch"):
        assert torch.equal(torch.tensor(rows[name][:], dtype=table[name].dtype), table[name])
    prepared = load_dataset(folder / "data" / "ferplus", "train")
    for name in ("row_id", "label", "votes"):
        assert rows[name][:] == prepared[name][:]
    assert rows.features["label"].names == CLASSES
    card = files["README.md"].decode()
    assert "The images are not in it." in card and "Its terms: free for all." in card
    assert "Training data: toy train: 48 rows" in card and "| `votes` |" in card
    assert "fer-pll audit someone/fer-pll-tiny-ferplus-confidences" in card


AUDIT = """
import sys
from fer_pll.audit.report import read_run, run_audit
name, run, data, out = sys.argv[1:]
rows, table = read_run(name)
assert rows.column_names == ["row_id", "label", "votes", "candidates", "confidence", "revised_epoch"]
own_rows, own = read_run(run, data)
assert table.fingerprint == own.fingerprint and table.class_names == own.class_names
for tensor in ("confidence", "candidates", "revised_epoch"):
    assert getattr(table, tensor).equal(getattr(own, tensor)), tensor
run_audit(name, f"{out}/from-hub")
run_audit(run, f"{out}/from-run", data)
with_data, _ = read_run(name, data)  # whoever has the data set sees its images
assert "image" in with_data.column_names and with_data["row_id"][:] == own_rows["row_id"][:]
"""


def test_an_audit_starts_from_the_hub(hub, pushed, folder, tmp_path):
    """Without run and images it finds what it finds with them."""
    name = "someone/fer-pll-tiny-ferplus-confidences"
    arguments = [name, folder / "runs" / "finetune", folder / "data" / "ferplus", tmp_path]
    command = [sys.executable, "-c", AUDIT, *map(str, arguments)]
    environment = hub.environment(folder / "auditor")
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{name} has no images, so the page shows none" in done.stdout
    from_hub, from_run = (pd.read_csv(tmp_path / each / "audit.csv") for each in ("from-hub", "from-run"))
    pd.testing.assert_frame_equal(from_hub, from_run[from_hub.columns])
    assert set(from_run.columns) - set(from_hub.columns) == {"true_label"}
    page = (tmp_path / "from-hub" / "audit.html").read_text()
    assert "fer-pll-tiny-ferplus-confidences, without its images" in page and 'id="sheet-0"' not in page
    assert 'id="sheet-0"' in (tmp_path / "from-run" / "audit.html").read_text()


def test_what_is_no_data_set_of_confidences_is_refused(pushed, tmp_path):
    with pytest.raises(ValueError, match="nobody/nothing is no folder here, and no data set of confidences that can"):
        confidences_from_hub("nobody/nothing")
    datasets.Dataset.from_dict({"row_id": ["a"], "index": [0], "label": [0], "confidence": [[1.0]]}).to_parquet(
        tmp_path / "train.parquet"
    )
    with pytest.raises(ValueError, match=r"lacks candidates, revised_epoch. If an earlier version published it"):
        confidences_from_hub(tmp_path)
    (tmp_path / "train.parquet").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="no data set of confidences that can be read"):
        confidences_from_hub(tmp_path)


def test_images_go_along_when_asked_for_and_their_terms_are_told(hub, messages, folder, tmp_path):
    files = hub.repos["datasets/someone/with-images-confidences"]
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    rows = datasets.load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names[:3] == ["image", "row_id", "label"] and "confidence" in rows.column_names
    prepared = load_dataset(folder / "data" / "ferplus", "train")
    assert rows["row_id"][:] == prepared["row_id"][:] and len(rows) == 48
    for pushed, own in zip(rows["image"], prepared["image"], strict=True):
        assert np.array_equal(np.asarray(pushed), np.asarray(own))
    assert "The images are in it." in files["README.md"].decode()
    assert "warning: images of people go along. Their terms: free for all." in messages["log"]


def test_confidences_only_of_their_data(folder, messages, toy_train, tmp_path):
    other = toy_train.map(lambda row: {"row_id": row["row_id"] + "x"})
    save_dataset(DatasetDict(train=other), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other is not the data set that .*finetune was trained on"):
        RunFolder(folder / "runs" / "finetune").table_and_rows(tmp_path / "other")


def test_confidences_of_rows_without_names(toy_train):
    """They get those that the fingerprint is taken over."""
    train = toy_train.remove_columns("row_id")
    rows = confidence_dataset(start_table(train, CLASSES, "uniform"), train)
    assert rows.column_names == ["row_id", "label", "votes", "candidates", "confidence", "revised_epoch"]
    assert rows["row_id"][:] == row_ids(train) and len(set(rows["row_id"][:])) == len(train)


def test_what_cannot_be_published_is_refused(toy_config, toy_processor, tmp_path):
    with pytest.raises(ValueError, match=r"no config.json"):
        published_files(tmp_path)
    FerPllForImageClassification(toy_config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="image processor"):
        published_files(tmp_path)
    toy_processor.save_pretrained(tmp_path)
    (tmp_path / "hog.py").rename(tmp_path / "pig.py")
    with pytest.raises(ValueError, match=r"lacks hog.py"):
        published_files(tmp_path)
    (tmp_path / "pig.py").rename(tmp_path / "hog.py")
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no weights in a safetensors file"):
        published_files(tmp_path)


def test_figures_of_other_weights_are_left_out(toy_config, toy_processor, tmp_path):
    FerPllForImageClassification(toy_config).save_pretrained(tmp_path)
    toy_processor.save_pretrained(tmp_path)
    (tmp_path / "evaluation").mkdir()
    report = tmp_path / "evaluation" / "metrics.json"
    of_nothing = {"data": None, "split": "validation", "protocols": {}}
    report.write_text(json.dumps({"weights": weights_digest(tmp_path)} | of_nothing))
    assert "evaluation/metrics.json" in published_files(tmp_path)
    FerPllForImageClassification(toy_config).save_pretrained(tmp_path)  # trained again
    assert "evaluation/metrics.json" not in published_files(tmp_path)


def test_weights_in_a_pickle_are_not_opened(toy_config, tmp_path):
    model = FerPllForImageClassification(toy_config)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"Pickles .* are not opened.*convert it"):
        load_model(FerPllForImageClassification, tmp_path)
    with pytest.raises(DataError, match="nowhere: there is no such folder"):  # another trouble keeps its own message
        load_model(FerPllForImageClassification, tmp_path / "nowhere")
