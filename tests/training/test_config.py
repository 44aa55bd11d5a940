import json
from dataclasses import dataclass, field

import pytest

from fer_pll.training.arguments import FerPllTrainingArguments
from fer_pll.training.config import check_output_folder, config_folder, load_config, start_run
from fer_pll.training.settings_parser import SettingsParser


@dataclass
class Script:
    config: str = field(metadata={"help": "configuration"})
    data: str = field(metadata={"help": "data"})
    max_candidates: int = field(default=2, metadata={"help": "candidates"})
    settings: str | None = field(default=None, metadata={"help": "settings"})


def write_config(folder, yaml: str) -> str:
    (folder / "config.json").write_text("{}")
    (folder / "finetune.yaml").write_text(yaml)
    return str(folder)


def parse(tmp_path, yaml: str, *options: str):
    config = write_config(tmp_path, yaml)
    argv = ["--config", config, "--data", "d", "--output_dir", str(tmp_path / "run"), "--use_cpu", *options]
    return SettingsParser((Script, FerPllTrainingArguments), "finetune.yaml").parse_settings(argv)


def test_yaml_gives_defaults_and_the_command_line_wins(tmp_path):
    yaml = "learning_rate: 1.0e-3\nnum_train_epochs: 7\nmax_candidates: 3\nflip: false\nrevision: none\n"
    script, args = parse(tmp_path, yaml, "--num_train_epochs", "2")
    assert (args.learning_rate, args.num_train_epochs, args.flip, args.revision) == (1e-3, 2, False, "none")
    assert script.max_candidates == 3 and script.data == "d"


def test_a_number_that_yaml_reads_as_text_is_converted(tmp_path):
    assert parse(tmp_path, "learning_rate: 1e-3\n")[1].learning_rate == 1e-3  # YAML 1.1 needs a dot


def test_a_file_of_settings_wins_over_the_config_and_the_command_line_over_both(tmp_path):
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("num_train_epochs: 3\nlearning_rate: 5.0e-4\n")
    yaml = "learning_rate: 1.0e-3\nnum_train_epochs: 7\nmax_candidates: 3\n"
    script, args = parse(tmp_path, yaml, "--settings", str(experiment), "--num_train_epochs", "2")
    assert (script.max_candidates, args.learning_rate, args.num_train_epochs) == (3, 5e-4, 2)
    assert script.settings == str(experiment)
    experiment.write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match=r"experiment.yaml: 'learning_rat' is not a setting"):
        parse(tmp_path, yaml, "--settings", str(experiment))
    experiment.write_text("- learning_rate\n")
    with pytest.raises(ValueError, match=r"experiment.yaml holds no settings"):
        parse(tmp_path, yaml, "--settings", str(experiment))
    with pytest.raises(ValueError, match="nowhere.yaml: there is no such file"):
        parse(tmp_path, yaml, "--settings", "nowhere.yaml")


def test_an_unknown_key_of_the_yaml_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"finetune.yaml: 'learning_rat' is not a setting"):
        parse(tmp_path, "learning_rat: 1\n")


def test_an_unknown_config_names_those_that_exist():
    with pytest.raises(ValueError, match="fer-pll-tiny-ferplus"):
        config_folder("fer-pll-huge")
    assert config_folder("fer-pll-tiny-ferplus").name == "fer-pll-tiny-ferplus"


def test_a_config_of_another_script_is_refused():
    argv = ["--config", "fer-pll-tiny-hog", "--data", "d", "--output_dir", "run"]
    with pytest.raises(ValueError, match=r"tiny-hog.* has no finetune.yaml\. These have: fer-pll-tiny-ferplus"):
        SettingsParser((Script, FerPllTrainingArguments), "finetune.yaml").parse_settings(argv)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"image_size": 50}, "image_size=50 is not divisible by patch_size=8: choose an image size such as 48"),
        ({"patch_size": 12, "image_size": 48, "hog_cell_size": 8}, "hog_cell_size=8 does not divide patch_size=12"),
        ({"hidden_size": "large"}, "'hidden_size' expected int, got str"),
        ({"num_channels": 3}, r"image_mean=\[0.5\] needs one value for each of 3 channels"),
    ],
)
def test_sizes_that_do_not_fit_are_named_with_their_file(tmp_path, sizes, message):
    shipped = config_folder("fer-pll-tiny-hog")
    (tmp_path / "preprocessor_config.json").write_bytes((shipped / "preprocessor_config.json").read_bytes())
    settings = json.loads((shipped / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | sizes))
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        load_config(str(tmp_path))


def test_settings_given_beside_the_config_are_checked_with_it():
    assert load_config("fer-pll-tiny-hog", mask_ratio=0.25)[0].mask_ratio == 0.25
    assert load_config("fer-pll-tiny-hog", mask_ratio=None)[0].mask_ratio == 0.5
    with pytest.raises(ValueError, match=r"mask_ratio=1.5 must lie in \[0, 1\)"):
        load_config("fer-pll-tiny-hog", mask_ratio=1.5)


def test_help_teaches(capsys):
    parser = SettingsParser(
        (Script, FerPllTrainingArguments), "finetune.yaml", description="Train a classifier.", epilog="And so on."
    )
    texts = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            parser.parse_settings([option])
        assert stop.value.code == 0
        texts[option] = capsys.readouterr().out
        assert "Train a classifier." in texts[option] and "And so on." in texts[option]
        sections = [f"  {name} " for name in ("--max_candidates", "--revision_threshold", "--help-all")]
        places = [texts[option].index(section) for section in sections]
        assert places == sorted(places)  # ours first
    assert "  --learning_rate" not in texts["--help"] and "--help-all lists them" in texts["--help"]
    assert "  --learning_rate" in texts["--help-all"] and "--help-all lists them" not in texts["--help-all"]


def arguments(folder, **settings) -> FerPllTrainingArguments:
    return FerPllTrainingArguments(output_dir=str(folder), use_cpu=True, **settings)


def test_another_run_is_neither_lost_nor_mixed_in(tmp_path):
    folder = tmp_path / "run"
    check_output_folder(arguments(folder))  # there is nothing yet
    start_run(arguments(folder), Script("c", "d"))
    (folder / "model.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="--overwrite"):
        check_output_folder(arguments(folder))
    assert (folder / "model.safetensors").read_text() == "weights"
    replacing = arguments(folder, overwrite=True)
    check_output_folder(replacing)
    assert (folder / "model.safetensors").exists()  # until everything else was found right
    start_run(replacing, Script("c", "d"))
    assert [path.name for path in folder.iterdir()] == ["settings.json"]


def test_overwrite_never_empties_a_folder_that_is_no_run(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds no run of fer-pll"):
        check_output_folder(arguments(tmp_path, overwrite=True))
    assert (tmp_path / "thesis.txt").exists()


def test_resuming_from_the_last_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="no checkpoint"):
        check_output_folder(arguments(tmp_path, resume_from_checkpoint="last"))
    for step in (5, 40, 9):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    args = arguments(tmp_path, resume_from_checkpoint="last")
    check_output_folder(args)
    assert args.resume_from_checkpoint.endswith("checkpoint-40")


def test_a_half_written_checkpoint_is_passed_over_with_a_message(tmp_path, caplog):
    for step, state in ((5, "{}"), (9, '{"epoch": 1.'), (10, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    args = arguments(tmp_path, resume_from_checkpoint="last")
    check_output_folder(args)
    assert args.resume_from_checkpoint.endswith("checkpoint-5")
    messages = [record.getMessage() for record in caplog.records]
    assert ["checkpoint-10 is half-written" in m or "checkpoint-9 is half-written" in m for m in messages] == [
        True
    ] * 2


def test_settings_are_written_without_a_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    start_run(arguments(tmp_path, learning_rate=0.5), Script("c", "d"))
    text = (tmp_path / "settings.json").read_text()
    assert json.loads(text)["arguments"]["learning_rate"] == 0.5
    assert json.loads(text)["script"]["config"] == "c"
    assert "hf_planted_secret" not in text
