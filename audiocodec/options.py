"""Options that take lists, for `nac eval` and `nac bench`. Imports little, so that `nac --help` stays quick."""

import importlib
import re
from pathlib import Path

import click

from audiocodec import limits

METRICS = ("mel", "si_sdr", "pesq", "stoi", "visqol")  # as in scores.py and peers.py; a test ties them together
PEERS = ("opus", "mp3")
KINDS = ("speech", "music", "sfx", "other")
_PEER = re.compile(r"[a-z]\w*:[\d.,]+")


class EvalCommand(click.Command):
    """Lets --peers take several values, as in --peers opus:6,12 mp3:32."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        spread: list[str] = []
        for arg in args:
            if len(spread) > 1 and spread[-2] == "--peers" and _PEER.fullmatch(spread[-1]) and _PEER.fullmatch(arg):
                spread.append("--peers")
            spread.append(arg)
        return super().parse_args(context, spread)


def numbers(context, parameter, text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",") if number]
    except ValueError:
        raise click.BadParameter(f"{text!r}; expected numbers with commas between them") from None


def rates(context, parameter, text: str) -> list[float]:
    """Rates at which nac can code, in kbps, one at least."""
    return _within(limits.MIN_KBPS, limits.MAX_KBPS, numbers(context, parameter, text), text)


def optional_rates(context, parameter, text: str) -> list[float]:
    """As `rates`, or none."""
    return rates(context, parameter, text) if text.strip() else []


def lengths(context, parameter, text: str) -> list[float]:
    """Of clips in seconds, one at least."""
    return _within(1, 3600, numbers(context, parameter, text), text)


def _within(least: float, most: float, found: list[float], text: str) -> list[float]:
    if not found or not all(least <= number <= most for number in found):
        raise click.BadParameter(f"{text!r}; expected numbers from {least:g} to {most:g}")
    return list(dict.fromkeys(found))


def picture(context, parameter, path: Path | None) -> Path | None:
    """A PNG that can be drawn, found out before the hours that lead up to it."""
    if path is None:
        return None
    if path.suffix.lower() != ".png" or not path.parent.is_dir():
        raise click.BadParameter(f"'{path}'; expected a name that ends in .png, in a folder that exists")
    try:
        importlib.import_module("matplotlib")
    except ImportError:
        raise click.UsageError("A picture needs a package: pip install matplotlib") from None
    return path


def counts(context, parameter, text: str) -> list[int]:
    """Numbers of codebooks, or none."""
    found = numbers(context, parameter, text)
    if not all(number.is_integer() for number in found):
        raise click.BadParameter(f"{text!r}; expected whole numbers with commas between them")
    return [int(number) for number in _within(1, limits.MAX_BOOKS, found, text)] if found else []


def peers(context, parameter, texts: tuple[str, ...]) -> list[tuple[str, float]]:
    """Names of codecs and their rates in kbps."""
    found = []
    for text in texts:
        name, _, rates = text.partition(":")
        if name not in PEERS or not rates:
            raise click.BadParameter(f"{text!r}; expected {' or '.join(f'{peer}:KBPS,KBPS,...' for peer in PEERS)}")
        found += [(name, kbps) for kbps in numbers(context, parameter, rates)]
    return list(dict.fromkeys(found))


def kinds(context, parameter, text: str) -> list[str]:
    return _names(text, KINDS)


def metrics(context, parameter, text: str | None) -> list[str] | None:
    return None if text is None else _names(text, METRICS)


def _names(text: str, allowed: tuple[str, ...]) -> list[str]:
    names = list(dict.fromkeys(text.split(",")))
    unknown = [name for name in names if name not in allowed]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r}; expected some of {','.join(allowed)}")
    return names
