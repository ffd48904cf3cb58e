"""The documents say what the program says."""
import re
import shlex
import textwrap

import pytest

from audiocodec import codec
from audiocodec.cli import cli
from audiocodec.training import config as configs


@pytest.fixture(scope="module")
def readme(request):
    return (request.config.rootpath / "README.md").read_text()


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_readme_names_every_option(command, readme):
    usage = next(line for line in readme.splitlines() if line.startswith(f"    nac {command} "))
    block = readme[readme.index(usage):]
    block = block[:min(end for end in (block.find("\n    nac "), block.find("\n\n")) if end > 0)]
    for parameter in cli.commands[command].params:
        if parameter.param_type_name == "option" and "--help" not in parameter.opts:
            assert any(name in block for name in parameter.opts), f"{command} {parameter.opts}"


def test_readme_states_the_model(readme):
    config = codec.Codec.load(device="cpu").config
    assert f"{config.sample_rate // config.hop} frames/s, {config.book_size} entries" in readme
    assert f"The model works at {config.sample_rate // 1000} kHz" in readme


@pytest.fixture(scope="module")
def training(request):
    return (request.config.rootpath / "docs" / "training.md").read_text(encoding="utf-8")


def test_training_is_told_with_options_that_exist(training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FOLDER", "FOLDER..."):
        (tmp_path / name).mkdir()
    told = re.findall(r"(?:^    |`)nac train\b([^`\n]*)", training, re.MULTILINE)
    told = [line for line in told if "FOLDER" in line]
    assert len(told) >= 3
    for line in told:
        cli.commands["train"].make_context("train", shlex.split(line))


def test_settings_are_told_that_exist(training, tmp_path):
    path = tmp_path / "told.toml"
    path.write_text(textwrap.dedent(re.search(r"^    base = .*?(?=\n\n\S)", training, re.MULTILINE | re.DOTALL)[0]))
    assert configs.load(str(path)) != configs.load("nac-24k")
    for name in re.findall(r"`([a-z_]+)` in `\[losses\]`", training):
        assert name in configs.load("nac-24k").losses
