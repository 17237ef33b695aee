"""The configuration of a training: ranges, flags, presets, and the table of them in the documentation."""

import json
import re
import shlex
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import click
import pytest

from model.train import main
from model.train_config import PRESETS, TrainConfig, duration, flag_of
from model.vae import VAE, VAEConfig

GUIDE = Path(__file__).resolve().parent.parent / "docs" / "training.md"
OTHER = TrainConfig(
    name="my model",
    data="photos/2024",
    channels=3,
    height=32,
    width=48,
    latent_dim=5,
    patch=4,
    widths=(16, 24, 32),
    blocks=(1, 2, 1),
    hidden=64,
    likelihood="gaussian",
    prior="realnvp",
    flow_couplings=3,
    flow_hidden=17,
    start_from="mnist",
    objective="dreg",
    draws=4,
    batch_size=8,
    learning_rate=3e-4,
    weight_decay=0.0,
    warmup_steps=7,
    kl_warmup=0.2,
    clip=5.0,
    ema=0.9,
    epochs=3,
    max_steps=11,
    time_budget=90.5,
    evaluate_every=3,
    validation=12,
    precision="fp32",
    device="cuda:1",
    threads=2,
    seed=42,
)


def parsed(*arguments: str) -> dict[str, Any]:
    """Return the fields that a command line gives."""
    given = main.make_context("train", list(arguments)).params
    return {item.name: given[item.name] for item in fields(TrainConfig) if given[item.name] is not None}


def test_every_field_is_a_flag_and_every_flag_has_a_help_text() -> None:
    options = {option.name: option for option in main.params if isinstance(option, click.Option)}
    for item in fields(TrainConfig):
        assert options[item.name].opts == [flag_of(item.name)]
        assert options[item.name].help == item.metadata["help"]
    assert set(options) == {item.name for item in fields(TrainConfig)} | {
        "preset",
        "out",
        "data_dir",
        "resume",
        "tensorboard",
    }
    assert all(option.help for option in options.values())


def test_the_command_of_a_configuration_gives_it_back() -> None:
    changed = [item.name for item in fields(TrainConfig) if getattr(OTHER, item.name) != item.default]
    assert set(changed) == {item.name for item in fields(TrainConfig)}
    command = shlex.split(OTHER.command())
    assert command[:2] == ["vae", "train"]
    assert replace(PRESETS["mnist"], **parsed(*command[2:])) == OTHER
    assert TrainConfig().command() == "vae train"


def test_a_flag_that_is_not_given_changes_nothing() -> None:
    assert parsed() == {}
    assert parsed("--seed", "0", "--widths", "8,16") == {"seed": 0, "widths": (8, 16)}


def test_a_configuration_survives_json_with_strangers_and_gaps_in_it() -> None:
    values = json.loads(json.dumps(asdict(OTHER) | {"steps": 7, "torch": "2"}))
    assert TrainConfig.from_json(values) == OTHER
    del values["ema"]
    assert TrainConfig.from_json(values) == replace(OTHER, ema=TrainConfig().ema)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_makes_a_network_that_its_fields_describe(name: str) -> None:
    config = PRESETS[name]
    assert isinstance(config.network(), VAEConfig)
    for item in fields(VAEConfig):
        assert getattr(config.network(), item.name) == getattr(config, item.name)
    assert VAE(config.network()).config == config.network()
    assert config.name == name


def test_the_defaults_are_the_mnist_preset_and_every_network_field_has_the_networks_default() -> None:
    assert PRESETS["mnist"] == TrainConfig()
    assert TrainConfig().network() == VAEConfig()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch_size": 0}, "--batch-size: got 0; expected 1 to"),
        ({"epochs": 0}, "--epochs: got 0"),
        ({"learning_rate": -1.0}, "--learning-rate: got -1.0; expected 0 to 1"),
        ({"learning_rate": float("nan")}, "--learning-rate: got nan"),
        ({"ema": 1.5}, "--ema: got 1.5"),
        ({"clip": 0.0}, "--clip: got 0.0"),
        ({"time_budget": float("inf")}, "--time-budget: got inf"),
        ({"validation": -1}, "--validation: got -1"),
        ({"seed": -1}, "--seed: got -1"),
        ({"channels": 2}, "--channels: got 2; expected 1 or 3"),
        ({"precision": "fp8"}, "--precision: got 'fp8'; expected bf16 or fp32"),
        ({"height": 30}, "both sides must be multiples of 4"),
        ({"likelihood": "beta"}, "expected one of bernoulli"),
        ({"blocks": (1,)}, "2 widths and 1 numbers of blocks"),
    ],
)
def test_a_wrong_value_is_refused_with_its_flag(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(TrainConfig(), **change)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("20m", 1200), ("1.5h", 5400), ("0", 0), ("1e3", 1000)]
)
def test_a_duration_is_seconds_or_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert duration(text) == seconds
    assert parsed("--time-budget", text) == {"time_budget": seconds}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--time-budget", "soon"),
        ("--time-budget", "m"),
        ("--time-budget", ""),
        ("--widths", "8;8"),
        ("--widths", ""),
        ("--likelihood", "beta"),
        ("--precision", "fp8"),
        ("--batch-size", "many"),
        ("--preset", "imagenet"),
        ("--learning_rate", "1"),
    ],
)
def test_a_flag_with_nonsense_is_a_usage_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(click.UsageError):
        parsed(*arguments)


@pytest.mark.parametrize("name", ["latent_dim", "widths", "likelihood", "data", "batch_size", "validation", "seed"])
def test_what_shapes_network_or_batches_cannot_change_in_the_middle_of_a_run(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{flag_of(name)} cannot change with --resume; this run has"):
        TrainConfig().resumed({name: getattr(OTHER, name)})
    assert TrainConfig().resumed({name: getattr(TrainConfig(), name)}) == TrainConfig()


def test_limits_rates_and_hardware_can_change_in_the_middle_of_a_run() -> None:
    change = {"epochs": 500, "max_steps": 7, "time_budget": 60.0, "learning_rate": 1e-4, "device": "cpu", "threads": 1}
    assert TrainConfig().resumed(change) == replace(TrainConfig(), **change)  # type: ignore[arg-type]


def test_the_guide_has_a_row_for_each_field_with_its_default_and_for_nothing_else() -> None:
    rows = dict(re.findall(r"^\| `(--[\w-]+)` \| `?([^|`]*)`? \|", GUIDE.read_text(), re.MULTILINE))
    defaults = {}
    for item in fields(TrainConfig):
        value = item.default
        defaults[flag_of(item.name)] = ",".join(map(str, value)) if isinstance(value, tuple) else f"{value}"
    own = {"--preset", "--out", "--data-dir", "--resume", "--tensorboard"}
    assert set(rows) - own == set(defaults)
    assert own <= set(rows)
    assert {flag: default.strip() for flag, default in rows.items() if flag not in own} == defaults


def test_the_guide_names_every_preset() -> None:
    rows = re.findall(r"^\| `([a-z][a-z-]*)` \|", GUIDE.read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(PRESETS)
