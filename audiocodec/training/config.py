"""How to train, read from a TOML file: audiocodec/configs/nac-24k.toml documents every setting."""
import difflib
import math
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from audiocodec import limits
from audiocodec.audio import MAX_SAMPLE_RATE, MIN_SAMPLE_RATE
from audiocodec.entropy import BOOK_SIZE, MAX_INNER, MAX_LAYERS, MAX_WINDOW, EntropyConfig
from audiocodec.errors import NacError
from audiocodec.model import LEVELS_FROM, ModelConfig

DEFAULT = "nac-24k"
STAGES = ("reconstruction", "adversarial", "polish", "entropy")
ADVERSARIAL = ("adversarial", "matching")      # the losses that need a discriminator
_FOLDER = Path(__file__).parents[1] / "configs"
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", list: "a list of whole numbers over 0"}
_OR_NONE = "training.seed", "training.workers", "training.refit_crops"
_LIMITS = {             # other counts are 1 or more, other numbers 0 or more
    "model.sample_rate": (MIN_SAMPLE_RATE, MAX_SAMPLE_RATE),
    "model.companding": (0.1, 1),
    "model.gain_bands": (0, math.inf),
    "model.gain_limit": (0.1, 8),
    "model.level_bands": (0, limits.MAX_LEVEL_BANDS),
    "model.num_books": (1, limits.MAX_BOOKS),
    "model.book_size": (BOOK_SIZE, BOOK_SIZE),
    "entropy.layers": (1, MAX_LAYERS),
    "entropy.window": (1, MAX_WINDOW),
    "training.last_rate": (0, 1),
    "training.judged_books": (0.1, math.inf),
    "training.codebook_decay": (0, 1),
    "training.average_decay": (0, 1),
    **{name: (0, math.inf) for name in _OR_NONE},
}


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
    judged_books: float
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
    """A value of the type that its key usually has, within its limits."""
    if isinstance(usual, float) and type(value) is int:
        value = float(value)
    if type(value) is not type(usual) or isinstance(value, list) and not _are_counts(value):
        raise NacError(f"{path}: {name} = {value!r}; expected {_WORDS[type(usual)]}, such as {usual!r}")
    if type(value) in (int, float):
        least, most = _LIMITS.get(name, (int(isinstance(usual, int)), math.inf))
        if not least <= value <= most or value == math.inf:
            span = f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}" if least < most else least
            raise NacError(f"{path}: {name} = {value!r}; expected {span}")
    return value


def _are_counts(values: list) -> bool:
    return bool(values) and all(type(count) is int and count > 0 for count in values)


def _config(tables: dict, path: Path) -> TrainConfig:
    training = tables.pop("training")
    model = ModelConfig(**tables.pop("model"))
    entropy = fitted(EntropyConfig(**tables.pop("entropy")), model.num_books)
    config = TrainConfig(model=model, entropy=entropy, **tables, **training)
    for problem in _problems(config):
        raise NacError(f"{path}: {problem}")
    return config


def fitted(entropy: EntropyConfig, num_books: int) -> EntropyConfig:
    """The same for so many books: a model of few books need not say that it has few of any kind."""
    return replace(entropy, num_books=num_books, detailed_books=min(num_books, entropy.detailed_books),
                   context_books=min(num_books, entropy.context_books))


def _problems(config: TrainConfig) -> Iterator[str]:
    """What does not go together: an hour later it would be a pity."""
    model, entropy, crop = config.model, config.entropy, config.crop
    if crop % model.hop or crop < 16 * model.hop:
        yield f"training.crop = {crop}; expected 16 times the hop, {model.hop}, or more of it"
    if config.start_crops * crop < model.book_size * model.hop:
        yield (f"training.start_crops = {config.start_crops}; expected {-(-model.book_size * model.hop // crop)} "
               f"or more, as a codebook starts with {model.book_size} frames")
    if len(model.coarse_books) != len(model.coarse_dims) or list(model.coarse_dims) != sorted(model.coarse_dims):
        yield (f"model.coarse_books = {list(model.coarse_books)}, coarse_dims = {list(model.coarse_dims)}; "
               "expected as many of both, the dims in rising order")
    if model.latent_dim > model.hop:
        yield f"model.latent_dim = {model.latent_dim}; expected the hop, {model.hop}, or less"
    if model.level_bands and model.sample_rate <= 2 * LEVELS_FROM:
        yield (f"model.level_bands = {model.level_bands} at {model.sample_rate} Hz; expected 0, as they begin at "
               f"{LEVELS_FROM:g} Hz")
    if entropy.width % entropy.heads:
        yield f"entropy.width = {entropy.width}; expected a multiple of the heads, {entropy.heads}"
    if max(entropy.width + entropy.feed_forward, entropy.head_width, entropy.head_hidden) > MAX_INNER:
        yield (f"[entropy] width + feed_forward = {entropy.width + entropy.feed_forward}, head_width = "
               f"{entropy.head_width}, head_hidden = {entropy.head_hidden}; expected {MAX_INNER} or less")
    if not sum(config.share.values()) > 0:
        yield "[share] leaves no stage any time"
    if not sum(config.losses[name] for name in config.losses if name not in ADVERSARIAL) > 0:
        yield "[losses] gives all but adversarial and matching no weight, and the first stage has nothing else"
