"""How to train, read from a TOML file: audiocodec/configs/nac-24k.toml documents every setting."""
import difflib
import tomllib
from dataclasses import dataclass
from pathlib import Path

from audiocodec.entropy import EntropyConfig
from audiocodec.errors import NacError
from audiocodec.model import ModelConfig

DEFAULT = "nac-24k"
STAGES = ("reconstruction", "adversarial", "polish", "entropy")
_FOLDER = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class TrainConfig:
    """The settings of a run: those of the table [training], and one table each for the others."""

    model: ModelConfig
    entropy: EntropyConfig
    losses: dict[str, float]             # by name: shares of the gradient
    share: dict[str, float]              # by stage
    learning_rate: dict[str, float]      # by stage
    batch: int
    crop: int                            # samples
    seed: int
    compile: bool
    last_rate: float
    discriminator_rate: float
    discriminator_channels: int
    commitment: float
    codebook_decay: float
    average_decay: float
    start_crops: int
    refit_crops: int
    validate_updates: int
    validate_clips: int
    workers: int
    code_hours: float


def presets() -> list[str]:
    """The names of the configurations that come with the program."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml"))


def load(name: str) -> TrainConfig:
    """Read a configuration by its name or its path. Raises NacError, naming unknown keys and wrong values."""
    path = _FOLDER / f"{name}.toml" if name in presets() else Path(name)
    return _config(_tables(path), path)


def _tables(path: Path) -> dict:
    """The tables of a file, laid over those of its base."""
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise NacError(f"{path}: no such configuration; there are {', '.join(presets())}, or give a file") from None
    except (OSError, ValueError) as error:
        raise NacError(f"{path}: {error}") from None
    base = found.pop("base", None if path.parent == _FOLDER and path.stem == DEFAULT else DEFAULT)
    if base is None:
        return found
    if base not in presets():
        raise NacError(f"{path}: base {base!r}; expected one of {', '.join(presets())}")
    tables = _tables(_FOLDER / f"{base}.toml")
    for name, table in found.items():
        _check_key(path, name, tables, "table")
        if not isinstance(table, dict):
            raise NacError(f"{path}: {name} is a table, [{name}]")
        for key, value in table.items():
            _check_key(path, key, tables[name], f"key in [{name}]")
            tables[name][key] = _checked(path, f"{name}.{key}", value, tables[name][key])
    return tables


def _check_key(path: Path, key: str, known: dict, what: str) -> None:
    if key not in known:
        near = difflib.get_close_matches(key, known, 1, 0)
        raise NacError(f"{path}: unknown {what}: {key}; the nearest is {near[0]}")


def _checked(path: Path, name: str, value, usual):
    """A value of the type that its key usually has."""
    if isinstance(usual, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(usual) or not _is_sane(value):
        raise NacError(f"{path}: {name} = {value!r}; expected a {type(usual).__name__}, such as {usual!r}")
    return value


def _is_sane(value) -> bool:
    """No number is below 0; a list is of counts."""
    if isinstance(value, list):
        return bool(value) and all(type(count) is int and count > 0 for count in value)
    return isinstance(value, bool) or value >= 0


def _config(tables: dict, path: Path) -> TrainConfig:
    training = tables.pop("training")
    model = ModelConfig(**tables.pop("model"))
    entropy = EntropyConfig(num_books=model.num_books, **tables.pop("entropy"))
    config = TrainConfig(model=model, entropy=entropy, **tables, **training)
    if config.crop % model.hop or config.crop < 16 * model.hop:
        raise NacError(f"{path}: training.crop = {config.crop}; expected 16 times the hop, {model.hop}, or more of it")
    if config.batch < 1 or not sum(config.share.values()) > 0:
        raise NacError(f"{path}: a batch of {config.batch}, shares of {config.share}; expected more than nothing")
    return config
