import json
import re
from dataclasses import dataclass, field, make_dataclass

import pytest

from fer_pll.io.shipped import DEFAULT_CONFIG
from fer_pll.labels.revision import REVISION_RULES
from fer_pll.training.arguments import FerPllTrainingArguments
from fer_pll.training.config import LOCK, check_output_folder, config_folder, load_config, start_run
from fer_pll.training.finetuning import FineTuningOptions
from fer_pll.training.methods import METHODS
from fer_pll.training.settings_parser import SettingsParser, read_settings


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
    with pytest.raises(ValueError, match=r"nowhere.yaml: there is no such file"):
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
    with pytest.raises(ValueError, match=r"tiny-hog.* has no finetune.yaml\. These have: .*fer-pll-tiny-ferplus"):
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


def test_the_command_line_is_at_fault_where_it_overrides_a_file(tmp_path):
    with pytest.raises(ValueError, match=r"^crop_scale=2.0 must lie in \(0, 1\]"):
        parse(tmp_path, "crop_scale: 0.7\n", "--crop_scale", "2")
    with pytest.raises(ValueError, match=r"finetune.yaml: crop_scale: crop_scale=7.0 must lie"):
        parse(tmp_path, "crop_scale: 7\n", "--crop_ratio", "2")
    with pytest.raises(ValueError, match=r"^mask_ratio=1.5: mask_ratio=1.5 must lie in"):
        load_config("fer-pll-tiny-hog", mask_ratio=1.5)


def test_what_a_run_left_that_ended_before_its_first_step_is_not_in_the_way(tmp_path):
    for name in ("settings.json", "candidate_sets.png", ".partial-settings.json", LOCK):
        (tmp_path / name).write_text("{}")
    args = FerPllTrainingArguments(str(tmp_path), use_cpu=True)
    check_output_folder(args)
    (tmp_path / "model.safetensors").write_text("weights")
    with pytest.raises(ValueError, match="already holds files"):
        check_output_folder(args)


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


def test_help_shows_what_the_default_config_sets(capsys):
    """The Trainer's own learning rate is no command's, and the option's own default is not what a run has."""
    settings = read_settings(config_folder(DEFAULT_CONFIG) / "finetune.yaml")
    parser = SettingsParser((FineTuningOptions, FerPllTrainingArguments), "finetune.yaml", prog="fer-pll finetune")
    texts = {}
    for option in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            parser.parse_settings([option])
        texts[option] = " ".join(capsys.readouterr().out.split())
    momentum = settings["revision_momentum"]
    assert f"(default: {momentum} by the config, else 0.0)" in texts["--help"]
    assert f"(default: {settings['revision']} by the config)" in texts["--help"].replace("revision.", "")
    assert f"--learning_rate {settings['learning_rate']}," in texts["--help"]
    assert f"--num_train_epochs {settings['num_train_epochs']}," in texts["--help"]
    assert f"(default: {settings['learning_rate']} by the config, else 5e-05)" in texts["--help-all"]
    shown = re.findall(r"default: (\S+) by the config", texts["--help-all"])
    assert len(shown) >= 15 and f"by the config are those of {DEFAULT_CONFIG}." in texts["--help"]


def arguments(folder, **settings) -> FerPllTrainingArguments:
    return FerPllTrainingArguments(output_dir=str(folder), use_cpu=True, **settings)


def test_a_methods_own_setting_is_an_option_and_a_key_of_the_yaml_files(tmp_path):
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text("loss: pico\ncontrastive_temperature: 2e-1\n")
    from_file = ("--settings", str(experiment))
    assert parse(tmp_path, "loss: pll\n")[1].method_settings == {}
    assert parse(tmp_path, "loss: pico\n")[1].method_settings == {"contrastive_temperature": 0.07}
    assert parse(tmp_path, "loss: pll\n", *from_file)[1].method_settings == {"contrastive_temperature": 0.2}
    args = parse(tmp_path, "loss: pll\n", *from_file, "--contrastive_temperature", "0.3")[1]
    assert args.method_settings == {"contrastive_temperature": 0.3} and args.revision == "prototype"
    assert json.loads(json.dumps(args.to_dict()))["method_settings"] == args.method_settings


@pytest.mark.parametrize(
    ("yaml", "options", "match"),
    [
        ("loss: pico\n", ["--contrastive_temperature", "0"], "contrastive_temperature=0.0 must be positive"),
        (
            "loss: pico\ncontrastive_temperature: -1\n",
            [],
            r"finetune.yaml: .*contrastive_temperature=-1.0 must be positive",
        ),
        ("contrastive_temperature: 0.1\n", [], "contrastive_temperature is no setting of loss='pll', which has none"),
        ("", ["--contrastive-temperature", "0.1"], "contrastive_temperature is no setting of loss='pll'"),
        ("loss: pico\nmethod_settings: {heat: 1}\n", [], "heat is no setting of loss='pico', which has contrastive_t"),
        ("class_balance: sometimes\n", [], "class_balance='sometimes': choose one of none, sampler, logit_adjust"),
        ("loss: guess\n", [], "loss='guess': choose one of cross_entropy, soft_votes, pll"),
    ],
)
def test_a_setting_that_the_method_does_not_heed_or_that_cannot_be_is_refused(tmp_path, yaml, options, match):
    with pytest.raises(ValueError, match=match):
        parse(tmp_path, yaml, *options)


@pytest.mark.parametrize(
    ("option", "choices"),
    [
        ("--loss", "cross_entropy, soft_votes, pll"),
        ("--revision", "margin, margin_softmax, soft, none, prototype"),
        ("--confidence_init", "uniform, votes, column"),
        ("--class_balance", "none, sampler, logit_adjustment"),
    ],
)
def test_an_option_with_a_choice_lists_it(tmp_path, capsys, option, choices):
    with pytest.raises(SystemExit) as stop:
        parse(tmp_path, "", option, "guess")
    assert stop.value.code == 2
    message = capsys.readouterr().err.replace("'", "")
    assert f"error: argument {option}" in message and f": invalid choice: guess (choose from {choices}" in message


def test_help_tells_of_every_loss_every_rule_and_their_settings(capsys):
    with pytest.raises(SystemExit):
        SettingsParser((Script, FerPllTrainingArguments), "finetune.yaml").parse_settings(["--help"])
    text = "".join(capsys.readouterr().out.split())  # it breaks lines at hyphens as well
    for registry in (METHODS, REVISION_RULES):
        for name, each in registry.items():
            assert f"{name}: {each.summary}".replace(" ", "") in text
    assert "marginwithpll" in text and "prototypewithpico" in text
    assert "Temperatureofthecontrastiveloss.(losspico;default:0.07)" in text
    assert "method_settings" not in text


@dataclass(frozen=True)
class WarmSettings:
    heat: float = field(default=1.0, metadata={"help": "How warm, at most 100 %%."})
    contrastive_temperature: float = field(default=0.5, metadata={"help": "Shared with pico."})
    loud: bool = field(default=True, metadata={"help": "Whether it can be heard."})

    def __post_init__(self):
        if self.heat < 0:
            raise ValueError(f"heat={self.heat} must not be negative.")


def test_a_method_of_ones_own_is_on_the_command_line_once_it_is_registered(tmp_path, monkeypatch, capsys):
    warm = type("Warm", (METHODS["pll"],), {"name": "warm", "summary": "80 % warmth", "Settings": WarmSettings})
    monkeypatch.setitem(METHODS, "warm", warm)
    args = parse(tmp_path, "heat: 2.5\n", "--loss", "warm", "--no_loud")[1]
    assert args.method_settings == {"heat": 2.5, "contrastive_temperature": 0.5, "loud": False}
    assert parse(tmp_path, "", "--loss", "warm")[1].method_settings["loud"] is True
    with pytest.raises(ValueError, match=r"heat=-1.0 must not be negative"):
        parse(tmp_path, "", "--loss", "warm", "--heat", "-1")
    with pytest.raises(ValueError, match="heat is no setting of loss='pico'"):
        parse(tmp_path, "", "--loss", "pico", "--heat", "1")
    with pytest.raises(SystemExit):
        parse(tmp_path, "", "--help")
    text = " ".join(capsys.readouterr().out.split())
    assert "How warm, at most 100 %. (loss warm; default: 1.0)" in text and "(loss pico, warm; default: 0.07)" in text

    warm.Settings = make_dataclass("Clash", [("learning_rate", float, field(default=1.0, metadata={"help": "?"}))])
    with pytest.raises(ValueError, match="the setting 'learning_rate' of loss='warm' has the name of another option"):
        parse(tmp_path, "")


def test_names_of_the_version_before_are_read_from_files_and_from_the_command_line(tmp_path):
    with pytest.warns(UserWarning, match="loss='softmax' is called 'cross_entropy' now"):
        assert parse(tmp_path, "loss: softmax\n")[1].loss == "cross_entropy"
    with pytest.warns(UserWarning, match="revision='paper' is called 'margin' now"):
        assert parse(tmp_path, "revision: paper\n")[1].revision == "margin"
    with pytest.warns(UserWarning, match="revision='normalized' is called 'margin_softmax' now"):
        assert parse(tmp_path, "", "--revision", "normalized")[1].revision == "margin_softmax"
    with pytest.warns(UserWarning, match="is called 'margin' now"):
        assert arguments(tmp_path, revision="paper").revision == "margin"


@pytest.mark.parametrize("loss", ["pll", "pico"])
def test_a_run_of_the_version_before_says_how_it_was_trained(tmp_path, loss):
    """Of then are the names, and PiCO's temperature among the settings of every loss."""
    before = {**arguments(tmp_path).to_dict(), "loss": loss, "revision": "paper" if loss == "pll" else "prototype"}
    del before["method_settings"]
    before |= {"contrastive_temperature": 0.2, "hub_token": "<HUB_TOKEN>"}
    args = FerPllTrainingArguments.from_settings(before, learning_rate=0.5)
    assert (args.loss, args.learning_rate) == (loss, 0.5)
    assert args.revision == {"pll": "margin", "pico": "prototype"}[loss]
    assert args.method_settings == ({"contrastive_temperature": 0.2} if loss == "pico" else {})
    again = FerPllTrainingArguments.from_settings(json.loads(json.dumps(args.to_dict())))
    assert again.to_dict() == args.to_dict()
    with pytest.raises(TypeError, match="heat"):
        FerPllTrainingArguments.from_settings({**args.to_dict(), "heat": 1})


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
    assert {path.name for path in folder.iterdir()} == {LOCK, "settings.json"}


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
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")
    args = arguments(tmp_path, resume_from_checkpoint="last")
    check_output_folder(args)
    assert args.resume_from_checkpoint.endswith("checkpoint-40")


def test_a_half_written_checkpoint_is_passed_over_with_a_message(tmp_path, caplog):
    for step, state in ((5, "{}"), (9, '{"epoch": 1.'), (10, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    args = arguments(tmp_path, resume_from_checkpoint="last")
    check_output_folder(args)
    assert args.resume_from_checkpoint.endswith("checkpoint-5")
    messages = [record.getMessage() for record in caplog.records]
    for message, step in zip(messages, (10, 9), strict=True):
        assert f"checkpoint-{step} is passed over: it is half-written" in message


def test_settings_are_written_without_a_token(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_planted_secret")
    start_run(arguments(tmp_path, learning_rate=0.5), Script("c", "d"))
    text = (tmp_path / "settings.json").read_text()
    assert json.loads(text)["arguments"]["learning_rate"] == 0.5
    assert json.loads(text)["script"]["config"] == "c"
    assert "hf_planted_secret" not in text


@pytest.mark.parametrize(
    ("yaml", "match"),
    [
        ("learning_rate: [\n", "is no YAML file of settings .*line 2"),
        (
            "a: !!python/object/apply:os.system [touch /tmp/ran]\n",
            "is no YAML file .*could not determine a constructor",
        ),
        ("\x00", "is no YAML file"),
        ("[" * 5000, "is nested too deeply"),
        ("- learning_rate\n", "holds no settings"),
        ("learning_rate\n", "holds no settings"),
        ("seed: 1\nseed: 2\n", "has 'seed' twice"),
        ("1: 2\n", "1 is not a setting"),
        ("learning_rate: abc\n", "learning_rate: 'abc' is given where a number"),
        ("learning_rate: [1, 2]\n", r"learning_rate: \[1, 2\] is given where a number"),
        ("learning_rate: {}\n", "learning_rate: {} is given where a number"),
        ("learning_rate:\n", "learning_rate: None is given where a number"),
        ("learning_rate: true\n", "learning_rate: True is given where a number"),
        ("learning_rate: 2026-01-01\n", "learning_rate: datetime.date.* is given where a number"),
        ("seed: 1.5\n", "seed: 1.5 is given where a whole number"),
        ("max_candidates: x\n", "max_candidates: 'x' is given where a whole number"),
        ("flip: maybe\n", "flip: 'maybe' is given where true or false"),
        ("flip: 3\n", "flip: 3 is given where true or false"),
        ("flip: [true]\n", r"flip: \[True\] is given where true or false"),
        ("crop_scale: [1, .5]\n", r"crop_scale: \[1, 0.5\] is given where a number"),
        ("confidence_init: guess\n", "confidence_init='guess': choose one of uniform, votes, column"),
        ("loss: 3\n", "loss=3: choose one of cross_entropy"),
        ("data: [a, b]\n", r"data: \['a', 'b'\] is given where a text"),
        ("data:\n", "data: None is given where a text"),
        ("eval_strategy: sometimes\n", "eval_strategy=.*sometimes"),
        ("eval_strategy: no\n", "eval_strategy=.*False"),  # YAML's no is a switch
        ("lr_scheduler_kwargs: [1]\n", r"lr_scheduler_kwargs: \[1\] is given where"),
        ("crop_scale: 7\n", "crop_scale: crop_scale=7.0 must lie"),
        ("deepspeed: nowhere.json\n", "deepspeed: .*deepspeed"),
        ("accelerator_config: nowhere.json\n", "accelerator_config: .*nowhere.json"),
        ("accelerator_config: {even_batchez: true}\n", "accelerator_config: .*even_batchez"),
        ("contrastive_temperature: hot\nloss: pico\n", "contrastive_temperature: 'hot' is given where a number"),
        ("contrastive_temperature: 0.5\n", "contrastive_temperature: contrastive_temperature is no setting of loss"),
        ("warmup_steps: -3\n", "warmup_steps: "),
        ("learning_rate: .nan\n", "learning_rate: learning_rate=nan must be finite"),
        ("lr_scheduler_type: zigzag\n", "lr_scheduler_type: .*zigzag"),
    ],
)
def test_a_damaged_file_of_settings_is_one_line_with_file_and_setting(tmp_path, yaml, match):
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(yaml)
    with pytest.raises(ValueError, match=f"experiment.yaml:? {match}") as raised:
        parse(tmp_path, "learning_rate: 1.0e-3\n", "--settings", str(experiment))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_text_is_no_settings(tmp_path):
    (tmp_path / "experiment.yaml").write_bytes(b"\xff\xfe\x00seed")
    with pytest.raises(ValueError, match=r"experiment.yaml is no YAML file"):
        parse(tmp_path, "", "--settings", str(tmp_path / "experiment.yaml"))


@pytest.mark.parametrize(
    ("yaml", "name", "value"),
    [
        ("num_train_epochs: 7\n", "num_train_epochs", 7.0),
        ("learning_rate: '1e-3'\n", "learning_rate", 1e-3),
        ("flip: 'no'\n", "flip", False),
        ("bf16: false\n", "bf16", False),
        ("run_name: 2026-01-01\n", "run_name", "2026-01-01"),
        ("run_name: 12\n", "run_name", "12"),
        ("report_to: [none]\n", "report_to", []),
        ("drop_path_rate:\n", "drop_path_rate", None),
        ("drop_path_rate: 0\n", "drop_path_rate", 0.0),
        ("lr_scheduler_kwargs: {power: 2}\nlr_scheduler_type: polynomial\n", "lr_scheduler_kwargs", {"power": 2}),
        ("label_names: [label]\n", "label_names", ["label"]),
        ("eval_strategy: 'no'\n", "eval_strategy", "no"),
        ("", "learning_rate", 1e-3),
    ],
)
def test_settings_of_every_kind_are_read(tmp_path, yaml, name, value):
    (tmp_path / "experiment.yaml").write_text(yaml)
    args = parse(tmp_path, "learning_rate: 1.0e-3\n", "--settings", str(tmp_path / "experiment.yaml"))[1]
    assert getattr(args, name) == value and type(getattr(args, name)) in (type(value), type(args.eval_strategy))
