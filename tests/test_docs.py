"""The documents say what the program says."""
import pytest

from audiocodec import codec
from audiocodec.cli import cli


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
