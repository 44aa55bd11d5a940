"""Checkpoint folders that strangers made: a push sends nothing but their own files, and no command runs their code."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
import yaml
from datasets import DatasetDict
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageClassification

import fer_pll_cli
from fer_pll import FerPllForImageClassification
from fer_pll.data.dataset import load_dataset, save_dataset
from fer_pll.data.provenance import Provenance
from fer_pll.faces.crops import load_crop
from fer_pll.hub.card import folder_card, training_record, weights_digest
from fer_pll.hub.confidences import confidence_dataset
from fer_pll.hub.markdown import code, escaped, link, one_line, prose
from fer_pll.hub.push import check_plain_files, published_files, push_files
from fer_pll.io.errors import DataError
from fer_pll.io.pretrained import load_image_processor, load_model, load_model_config
from fer_pll.labels.confidence_table import ConfidenceTable
from fer_pll.training.calibrated import calibrate
from fer_pll.training.run_folder import RunFolder
from fer_pll.training.trainer import start_table
from hub.fake_hub import FakeHub
from siblings import siblings
from tiny import CLASSES, CROP, make_dataset, make_trainer, tiny_config, tiny_processor

ROOT = Path(__file__).parents[2]
SECRET = "an ssh key, say"


@pytest.fixture(scope="module")
def hub():
    with FakeHub() as hub:
        yield hub


@pytest.fixture
def secret(tmp_path) -> Path:
    (tmp_path / "home").mkdir()
    file = tmp_path / "home" / "id_rsa"
    file.write_text(SECRET)
    return file


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A checkpoint with a card's inputs, in which nothing is wrong."""
    folder = tmp_path / "checkpoint"
    torch.manual_seed(0)
    FerPllForImageClassification(tiny_config()).save_pretrained(folder)
    tiny_processor(face_crop=CROP).save_pretrained(folder)
    data = Provenance("toy", split="train", kept=8, license="free for all.")
    table = start_table(make_dataset(8), CLASSES, "uniform")
    (folder / "training.json").write_text(json.dumps(training_record({"max_candidates": 2}, data, table)))
    figures = {"rows": 8, "accuracy": 0.5, "mean_class_accuracy": 0.4, "ece": 0.1}
    figures |= {"per_class_recall": dict.fromkeys(CLASSES, 0.5)}
    report = {"weights": weights_digest(folder), "data": data.to_dict(), "split": "validation"}
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "metrics.json").write_text(json.dumps(report | {"protocols": {"all": figures}}))
    (folder / "evaluation" / "confusion_matrix_all.png").write_bytes(b"a figure")
    return folder


def in_parts(folder: Path) -> dict[str, str]:
    """Split the weights of a checkpoint into two files with an index; returns its weight_map."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"model-0000{n % 2 + 1}-of-00002.safetensors" for n, name in enumerate(sorted(weights))}
    for file in set(names.values()):
        save_file({n: weights[n] for n in weights if names[n] == file}, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return names


def push(hub: FakeHub, folder: Path, name: str, *options: object) -> subprocess.CompletedProcess:
    """`fer-pll push` in a process of its own, against a Hub on this machine."""
    environment = hub.environment(folder.parent / "hub-home", "hf_token", PYTHONPATH=os.environ.get("PYTHONPATH", ""))
    command = [sys.executable, "-m", "fer_pll_cli", "push", folder, f"someone/{name}", *options]
    return subprocess.run(
        list(map(str, command)), env=environment, capture_output=True, text=True, cwd=folder.parent, input="y\n" * 9
    )


def pushed(hub: FakeHub, name: str) -> bytes:
    """All that a repository holds, names and contents."""
    return b"\n".join(key.encode() + b"\n" + value for key, value in hub.repos.get(f"someone/{name}", {}).items())


def test_a_good_folder_is_pushed_whole(hub, checkpoint):
    done = push(hub, checkpoint, "good")
    assert done.returncode == 0, done.stderr
    assert set(hub.repos["someone/good"]) >= {"model.safetensors", "README.md", "evaluation/confusion_matrix_all.png"}
    in_parts(checkpoint)
    assert sum(name.endswith(".safetensors") for name in published_files(checkpoint)) == 2


@pytest.mark.parametrize(
    "name",
    [
        *("{secret}", "../home/id_rsa", "../home/x.safetensors", "home/x.safetensors", "evaluation/../../home/id_rsa"),
        *(
            "config.json",
            "",
            ".",
            "..",
            "/x.safetensors",
            "C:\\x.safetensors",
            "a\\b.safetensors",
            "http://x.safetensors",
        ),
        *(5, None, ["x"], {"x": 1}, "missing.safetensors"),
    ],
    ids=repr,
)
def test_an_index_names_safetensors_files_of_its_folder_only(checkpoint, secret, name):
    names = in_parts(checkpoint)
    name = str(secret) if name == "{secret}" else name
    (secret.parent / "x.safetensors").write_text(SECRET)
    index = {"metadata": {}, "weight_map": names | {"extra": name}}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    for use in (published_files, lambda folder: load_model(FerPllForImageClassification, folder)):
        with pytest.raises(DataError, match=r"model\.safetensors\.index\.json|has no missing"):
            use(checkpoint)


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": 5}', '{"weight_map": {}}', "null", "<html>", ""])
def test_an_index_that_is_none_is_named(checkpoint, content):
    in_parts(checkpoint)
    (checkpoint / "model.safetensors.index.json").write_text(content)
    with pytest.raises(DataError, match=r"model\.safetensors\.index\.json"):
        published_files(checkpoint)


LINKED = [
    *("model.safetensors", "config.json", "preprocessor_config.json", "README.md", "training.json", "hog.py"),
    *("evaluation/metrics.json", "evaluation/confusion_matrix_all.png", "evaluation/confusion_matrix_more.png"),
    "evaluation",
]


@pytest.mark.parametrize("name", siblings(*LINKED))
def test_no_link_is_followed(hub, checkpoint, secret, name):
    """Each file that a push may send is a link to the same contents elsewhere, or its folder is."""
    path = checkpoint / name
    elsewhere = secret.parent / path.name
    if path.exists():
        path.rename(elsewhere)
    else:
        elsewhere.write_text(SECRET)
    path.symlink_to(elsewhere)
    before = None if elsewhere.is_dir() else elsewhere.read_bytes()
    with pytest.raises(DataError, match="is a link, or lies behind one"):
        published_files(checkpoint)
    if name in ("README.md", "evaluation/confusion_matrix_more.png", "model.safetensors"):
        done = push(hub, checkpoint, f"link-{path.stem}")
        assert done.returncode == 1 and "is a link" in done.stderr and "Traceback" not in done.stderr
        assert not pushed(hub, f"link-{path.stem}")
    assert before is None or elsewhere.read_bytes() == before  # nothing was written through the link either


def test_a_dangling_link_and_what_is_no_file_are_refused(checkpoint):
    (checkpoint / "README.md").symlink_to(checkpoint / "nowhere")
    with pytest.raises(DataError, match=r"README\.md is a link"):
        published_files(checkpoint)
    (checkpoint / "README.md").unlink()
    os.mkfifo(checkpoint / "README.md")
    with pytest.raises(DataError, match=r"README\.md is no file"):
        published_files(checkpoint)


@pytest.mark.parametrize("name", ["../home/id_rsa", "{secret}", "a/../../home/id_rsa", "link", "folder/id_rsa", ""])
def test_what_pushes_files_checks_each_of_them(checkpoint, secret, name):
    """Whoever calls it: the command, the Trainer, or what pushes confidences."""
    (checkpoint / "link").symlink_to(secret)
    (checkpoint / "folder").symlink_to(secret.parent)
    with pytest.raises(DataError, match=r"is a link|does not lie in it"):
        push_files(checkpoint, [name.replace("{secret}", str(secret))], "someone/x")
    check_plain_files(checkpoint, ["config.json", "evaluation/metrics.json"])


def test_the_trainer_pushes_no_link(checkpoint, secret, tmp_path):
    trainer = make_trainer(tmp_path / "run", tiny_config(), tiny_processor(), make_dataset(16), max_steps=1)
    trainer.hub_model_id = "someone/x"
    trainer.save_model(_internal_call=True)
    trainer.create_model_card()
    (tmp_path / "run" / "pictures").symlink_to(secret.parent)
    (tmp_path / "run" / "optimizer.pt").symlink_to(secret)
    with pytest.raises(DataError, match=r"optimizer\.pt is a link"):
        trainer._push(tmp_path / "run", "all", "last-checkpoint")
    (tmp_path / "run" / "README.md").unlink()
    (tmp_path / "run" / "README.md").symlink_to(secret)
    with pytest.raises(DataError, match=r"README\.md is a link"):
        trainer._push(tmp_path / "run", "published")


def test_damaged_weights_are_refused_before_anything_is_sent_or_written(hub, checkpoint):
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "README.md").write_text("mine")
    other = {name: tensor.clone() for name, tensor in load_file(checkpoint / "model.safetensors").items()}
    other.pop("classifier.bias")
    damages = {"cut": whole[: len(whole) // 2], "html": b"<html>404</html>", "empty": b""}
    for name, content in damages.items():
        (checkpoint / "model.safetensors").write_bytes(content)
        with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
            published_files(checkpoint)
        if name == "cut":
            done = push(hub, checkpoint, "damaged")
            assert done.returncode == 1 and "model.safetensors cannot be read" in done.stderr
    save_file(other, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=r"the weights classifier\.bias are missing, as its config\.json wants them"):
        folder_card(checkpoint, "someone/damaged")
    assert (checkpoint / "README.md").read_text() == "mine" and not pushed(hub, "damaged")


@pytest.mark.parametrize(
    "auto_map", ["x", ["x"], 5, {"AutoModel": 5}, {"AutoModel": ["a.B", "c.D"]}, {"AutoModel": "../../x.Y"}]
)
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_auto_map_names_classes_beside_it_or_is_refused(checkpoint, name, auto_map):
    settings = json.loads((checkpoint / name).read_text())
    (checkpoint / name).write_text(json.dumps(settings | {"auto_map": auto_map}))
    with pytest.raises(DataError, match=f"{name}.*auto_map"):
        published_files(checkpoint)


# What the card says


ODD = {
    "html": '<img src=x onerror="alert(1)"><script>alert(1)</script>',
    "lines": "a\n---\nlicense: mit\n---\n# Heading\r\n\r\n- item",
    "table": "a | b | `c` | $x$ ~~y~~",
    "link": "[click](http://evil.example) ![x](http://evil.example/x.png)",
    "jinja": "{{ 7*7 }}{% for x in y %}",
    "control": "a\x1b]0;title\x07\x00\u202eb\ud800",
    "fence": "```\n```python\nx",
    "quotes": "\"'\\",
    "yaml": "a: b # c",
}


@pytest.mark.parametrize("kind", ODD)
def test_a_card_shows_text_from_data_and_obeys_none(checkpoint, kind):
    """Class names, splits, names and terms of data, settings, sentences, and the name of the repository."""
    odd = ODD[kind]
    settings = json.loads((checkpoint / "config.json").read_text())
    settings["id2label"]["0"] = odd
    settings["label2id"] = {name: int(k) for k, name in settings["id2label"].items()}
    (checkpoint / "config.json").write_text(json.dumps(settings))
    processor = json.loads((checkpoint / "preprocessor_config.json").read_text())
    processor["face_crop"]["name"] = odd
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(processor))
    data = {"name": odd, "split": odd, "license": odd, "hub_id": odd, "kept": 3, "dropped": {odd: 2}}
    record = json.loads((checkpoint / "training.json").read_text())
    record |= {"data": data, "settings": {odd: odd, "max_candidates": odd, "min_votes": odd}}
    record |= {
        "method": {"sentence": odd},
        "revision": {"sentence": odd},
        "compute": dict.fromkeys(("device", "torch"), odd),
    }
    (checkpoint / "training.json").write_text(json.dumps(record))
    path = checkpoint / "evaluation" / "metrics.json"
    report = json.loads(path.read_text()) | {"data": data, "split": odd}
    figures = report["protocols"].pop("all")
    report["protocols"][odd] = figures | {"per_class_recall": {odd: 0.5}}
    path.write_text(json.dumps(report))

    text = str(folder_card(checkpoint, f"someone/{odd}", license=odd))
    text.encode()  # halves of characters are gone
    card = ModelCard(text)
    assert list(card.data.to_dict()) and card.data.library_name == "transformers"
    body = re.sub(r"```python\n.*?\n```", "", card.text, flags=re.DOTALL)  # code shows what stands in it
    body = re.sub(r"(?<!\\)`[^`\n]*`", "", body)
    assert text.count("\n---\n") == 1 and "<script" not in body and "<img" not in body
    assert "\x1b" not in text and "\x00" not in text and "\u202e" not in text
    assert not re.search(r"(?<!\\)\]\(http://evil", body) and "49" not in body
    assert yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))["model-index"]
    headings = [line for line in card.text.splitlines() if line.startswith("#")]
    assert [line for line in headings if not line.startswith("# someone/")] == [
        *("## Use", "### The crop", "## Model", "## Training", "## Results", "## Limits and responsible use"),
        *("## License", "## Citation"),
    ]
    assert len([line for line in card.text.splitlines() if line.startswith("```")]) % 2 == 0
    (row,) = [line for line in card.text.splitlines() if line.startswith("| ") and "50.0 %" in line]
    assert row.replace("\\|", "").count("|") == 6


def test_markdown_by_hand():
    assert escaped("a|b_c _d_ <e> & `f` [g](h) $i$ \\") == (
        "a\\|b_c \\_d\\_ &lt;e&gt; &amp; \\`f\\` \\[g\\](h) \\$i\\$ \\\\"
    )
    assert prose("`code` and <b> [x](y)") == "`code` and &lt;b&gt; \\[x\\](y)"
    assert code("a`b|c\nd") == "a'b\\|c d" and link("a b/(c).png") == "a%20b/%28c%29.png"
    assert one_line("\x1b[1m a\r\n\tb \u2028\udcff") == "[1m a b"


def test_a_card_that_the_hub_refuses_costs_nothing(hub, checkpoint, monkeypatch):
    """The former card is there, and nothing was sent."""
    (checkpoint / "README.md").write_text("---\nlicense: [\n---\nmine")
    done = push(hub, checkpoint, "bad-card", "--keep-card")
    assert done.returncode == 1 and "README.md" in done.stderr and "Traceback" not in done.stderr
    assert not pushed(hub, "bad-card") and (checkpoint / "README.md").read_text().endswith("mine")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *[
            ("training.json", d)
            for d in ("[]", "null", "{", '{"data": 5}', '{"settings": []}', '{"metrics": {"a": 1}}')
        ],
        *[
            ("training.json", d)
            for d in ('{"method": {}}', '{"compute": {"hours": "x"}}', '{"pretraining": {"data": 1}}')
        ],
        *[("training.json", d) for d in ('{"data": {"kept": "x"}}', '{"data": {"parts": [5]}}', "[" * 100_000)],
        *[("evaluation/metrics.json", d) for d in ("[]", "null", "{", "W", 'W"split": 5', 'W"protocols": []')],
        *[
            ("evaluation/metrics.json", d)
            for d in ('W"protocols": {"all": 1}', 'W"protocols": {"all": {"accuracy": "x"}}')
        ],
        *[("config.json", d) for d in ("[]", "null", "{", "[" * 100_000, "{}", '{"model_type": "evil"}')],
        *[("preprocessor_config.json", d) for d in ("[]", "null", "{", "[" * 100_000)],
    ],
)
def test_damaged_inputs_of_a_card_are_named(checkpoint, name, damage):
    if damage.startswith("W"):  # of these weights, so that it counts
        report = {"weights": weights_digest(checkpoint), "data": None, "split": "x", "protocols": {}}
        damage = (
            json.dumps(report)[:-1] + ", " + damage[1:] + "}"
            if damage[1:]
            else json.dumps({"weights": report["weights"]})
        )
    (checkpoint / name).write_text(damage)
    with pytest.raises(DataError, match=Path(name).name):
        published_files(checkpoint)
        folder_card(checkpoint, "someone/x")


def test_the_card_of_confidences_is_escaped(monkeypatch):
    from fer_pll.hub import confidences

    rows = make_dataset(8)
    Provenance(ODD["html"], split="train", kept=8, license=ODD["lines"]).attach(rows)
    published = confidence_dataset(start_table(rows, CLASSES, "uniform"), rows)
    texts = []
    monkeypatch.setattr(
        confidences, "push_files", lambda folder, *_, **__: texts.append((Path(folder) / "README.md").read_text())
    )
    confidences.push_confidences(published, "someone/x-confidences", ODD["link"])
    (text,) = texts
    body = text.split("\n---\n")[1]
    assert "<img" not in body and text.count("\n---\n") == 1
    assert not re.search(r"(?<!\\)\]\(http://evil", body)


# Code in the folder is never run


EVIL = """
from pathlib import Path
Path({marker!r}).touch()
from transformers import PretrainedConfig, PreTrainedModel
class EvilConfig(PretrainedConfig):
    model_type = "evil"
class Evil(PreTrainedModel):
    config_class = EvilConfig
"""


@pytest.mark.parametrize("model_type", siblings("evil", "fer_pll", "vit"))
def test_no_command_runs_code_beside_the_weights_or_asks_to(checkpoint, tmp_path, monkeypatch, model_type):
    """Asked on a terminal, the user would say yes: `input` does so here, and must not be reached."""
    marker = tmp_path / "ran"
    (checkpoint / "evil.py").write_text(EVIL.format(marker=str(marker)))
    names = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoImageProcessor")
    auto_map = {name: f"evil.{'EvilConfig' if name == 'AutoConfig' else 'Evil'}" for name in names}
    for name in ("config.json", "preprocessor_config.json"):
        settings = json.loads((checkpoint / name).read_text())
        settings |= {"auto_map": auto_map, "model_type": model_type}
        if model_type == "evil":
            settings |= {"architectures": ["Evil"], "image_processor_type": "EvilImageProcessor"}
        (checkpoint / name).write_text(json.dumps(settings))
    rows = make_dataset(8)
    save_dataset(DatasetDict(train=rows, validation=rows, held_out=rows), tmp_path / "data")
    start_table(load_dataset(tmp_path / "data", "train"), CLASSES, "uniform").save(RunFolder(checkpoint).confidence)
    for name in ("finetune.yaml", "pretrain.yaml"):
        (checkpoint / name).write_text("max_steps: 1\n")
    rows[0]["image"].save(tmp_path / "face.png")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(1) or "y")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    data, train = tmp_path / "data", ("--use_cpu", "--report_to", "none", "--max_steps", 1, "--disable_tqdm", "true")
    commands = [
        ("predict", tmp_path / "face.png", "--model", checkpoint, "--cropped"),
        ("evaluate", checkpoint, data),
        ("calibrate", checkpoint, data, "--out", tmp_path / "calibrated"),
        ("export", checkpoint, "--out", tmp_path / "exported"),
        ("push", checkpoint, "someone/evil"),
        ("audit", checkpoint, "--data", data, "--out", tmp_path / "audit"),
        ("finetune", "--config", checkpoint, "--data", data, "--output_dir", tmp_path / "f1", *train),
        (
            "finetune",
            "--config",
            "fer-pll-tiny-ferplus-quick",
            "--init_from",
            checkpoint,
            "--data",
            data,
            "--output_dir",
            tmp_path / "f2",
            *train,
        ),
        ("pretrain", "--config", checkpoint, "--data", data, "--output_dir", tmp_path / "p", *train),
    ]
    for command in commands:
        status = fer_pll_cli.main(list(map(str, command)))
        assert not marker.exists() and not asked, command[0]
        assert status in (0, 1), command[0]
        if model_type == "fer_pll" and command[0] in ("predict", "evaluate", "calibrate"):
            assert status == 0, command[0]
        if model_type == "evil" and command[0] != "audit":
            assert status == 1, command[0]


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation"])
@pytest.mark.parametrize("value", ["evil/kernel", "flash_attention_2", "evil/kernel@main:f", 5, {"": "evil/kernel"}])
def test_no_config_fetches_code_for_its_attention(checkpoint, key, value):
    settings = json.loads((checkpoint / "config.json").read_text())
    for content in (settings | {key: value}, settings | {"backbone_config": {key: value}}):
        (checkpoint / "config.json").write_text(json.dumps(content))
        with pytest.raises(DataError, match=rf"config\.json: {key} is .*remove it"):
            load_model(FerPllForImageClassification, checkpoint)


CONFIG_DAMAGES = [
    *({"hidden_size": value} for value in (0, -1, "x", 130, None, 1.5, [1])),
    *({"hidden_act": value} for value in ("nope", 5, None)),
    *({"dtype": value} for value in ("float1", 5, {"a": 1}, "os.system")),
    *({"quantization_config": value} for value in ({"quant_method": "bitsandbytes"}, {"quant_method": "x"}, 5)),
    *(
        {"id2label": value}
        for value in (
            {"0": "a", "2": "b"},
            {"1": "a"},
            {"x": "a"},
            {"0": 5},
            [],
            5,
            {str(n): str(n) for n in range(9)},
            {str(n): "a" for n in range(len(CLASSES))},
        )
    ),
    *({"num_labels": value} for value in (9, "x", -1)),
    *({"architectures": value} for value in (5, [5], "x")),
    *({"image_mean": value} for value in ("x", [0.5, 0.5], 5)),
    *({"patch_size": value} for value in (0, 3, 10**9)),
    {"num_attention_heads": 0},
    {"query_decoder_num_hidden_layers": 5},
    {"model_type": "nope"},
]


@pytest.mark.parametrize("change", CONFIG_DAMAGES, ids=str)
def test_values_that_a_config_cannot_have_are_an_error_that_names_it(checkpoint, change):
    settings = json.loads((checkpoint / "config.json").read_text()) | change
    (checkpoint / "config.json").write_text(json.dumps(settings))
    try:
        load_model(FerPllForImageClassification, checkpoint)
    except DataError as error:
        assert str(checkpoint) in str(error)
        assert "config.json" in str(error)
    else:  # some are taken as not given
        assert set(change) <= {"dtype", "quantization_config"} or change == {"id2label": []}


def test_a_model_of_another_kind_may_have_two_classes_of_one_name(tmp_path):
    """ImageNet has two cranes; what a backbone's own head was called does not matter."""
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "resnet", "id2label": {"0": "crane", "1": "crane"}})
    )
    assert load_model_config(tmp_path).id2label == {0: "crane", 1: "crane"}


def test_a_folder_of_this_machine_fetches_nothing(checkpoint, monkeypatch):
    asked = []

    def ask(*address: object, **options: object) -> None:
        asked.append(address)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", ask)
    monkeypatch.setattr(socket, "getaddrinfo", ask)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    slept = []
    monkeypatch.setattr(time, "sleep", slept.append)  # between the attempts to reach the Hub
    load_model(AutoModelForImageClassification, checkpoint)
    load_image_processor(checkpoint)
    load_crop(str(checkpoint))
    folder_card(checkpoint, "someone/x")
    assert not asked
    with pytest.raises(DataError, match="someone/nothing"):  # a name on the Hub does ask
        load_model(AutoModelForImageClassification, "someone/nothing")
    assert asked
    for load in (load_image_processor, load_crop):  # asks as long as for the model, and not once for each file
        once = sum(slept)
        slept.clear()
        with pytest.raises(DataError, match="someone/nothing"):
            load("someone/nothing")
        assert 0 < sum(slept) <= once


def test_a_folder_that_is_not_there_or_not_a_checkpoint_is_named(tmp_path):
    for use in (load_model_config, load_image_processor):
        with pytest.raises(DataError, match="nowhere: there is no such folder"):
            use(tmp_path / "nowhere")
        with pytest.raises(DataError, match=f"{tmp_path} has no .*config.json"):
            use(tmp_path)


def test_files_that_training_and_calibration_leave_follow_the_umask(tmp_path):
    """The weights and the confidences too, so that colleagues can read them."""
    data = make_dataset(16)
    save_dataset(DatasetDict(train=data, held_out=data), tmp_path / "data")
    before = os.umask(0o022)
    try:
        settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "report_to": "none"}
        trainer = make_trainer(tmp_path / "run", tiny_config(), tiny_processor(), data, **settings)
        trainer.train()
        trainer.save_model()
        trainer.save_confidence()
        calibrate(tmp_path / "run", tmp_path / "data", tmp_path / "calibrated")
    finally:
        os.umask(before)
    files = [path for name in ("run", "calibrated") for path in (tmp_path / name).rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {
        "model.safetensors",
        "confidence.safetensors",
        "config.json",
        "optimizer.pt",
    }
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == {path.name: "0o644" for path in files}
    assert ConfidenceTable.load(RunFolder(tmp_path / "run").confidence)
