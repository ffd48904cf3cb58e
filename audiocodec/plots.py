"""Pictures for `nac eval`, by matplotlib where it is installed: quality against rate, and spectrograms."""

import io
import math

import numpy as np

from audiocodec.scores import METRICS, Row

_WINDOW, _HOP = 512, 480  # samples of a spectrogram
_RANGE = 80  # dB that a spectrogram shows


def rate_curves(summary: list[Row], names: list[str]) -> bytes | None:
    """Every metric against the true kbps as PNG, one row of panels for each kind; None without matplotlib."""
    if not has_matplotlib():
        return None
    from matplotlib.figure import Figure

    panels: dict[str, list[tuple[str, list[Row]]]] = {}  # of each kind, the scores that apply
    for name in names:
        for kind in dict.fromkeys(line["kind"] for line in summary):
            lines = [line for line in summary if line["kind"] == kind and math.isfinite(line[name])]
            panels.setdefault(kind, []).extend([(name, lines)] if lines else [])
    width = max(1, *map(len, panels.values()))
    figure = Figure((3.6 * width, 3.2 * len(panels)), layout="constrained")
    for row, (kind, drawn) in zip(figure.subplots(len(panels), width, squeeze=False), panels.items()):
        for axes, (name, lines) in zip(row, drawn):
            _draw(axes, lines, name, f"{kind}: {METRICS[name].title}")
        for axes in row[len(drawn):]:
            axes.set_axis_off()
    return _png(figure)


def _draw(axes, lines: list[Row], name: str, title: str) -> None:
    """One curve for each family of codecs, which are named after the first word of their names."""
    for family in dict.fromkeys(_family(line["codec"]) for line in lines):
        points = sorted((line["kbps"], line[name], line[f"{name}_interval"])
                        for line in lines if _family(line["codec"]) == family)
        kbps, means, intervals = np.array(points).T
        axes.errorbar(kbps, means, np.nan_to_num(intervals), marker="o", markersize=4, capsize=2, label=family)
    axes.set_title(title, fontsize=10)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("kbps")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=9)


def _family(codec: str) -> str:
    return f"{codec.split()[0]}, fixed books" if codec.endswith(" books") else codec.split()[0]


def spectrogram(samples: np.ndarray, sample_rate: int) -> bytes | None:
    """Samples (N,) as PNG, time to the right and 0 Hz below, 80 dB from bright to dark; None without matplotlib."""
    if not has_matplotlib():
        return None
    from matplotlib import colormaps
    from PIL import Image

    padded = np.pad(samples, (0, max(0, _WINDOW - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, _WINDOW)[::_HOP]
    power = np.abs(np.fft.rfft(frames * np.hanning(_WINDOW))) ** 2 / (_WINDOW / 4) ** 2
    level = 10 * np.log10(np.maximum(power, 1e-12)).T[::-1]
    shades = np.clip((level + 20) * (255 / _RANGE) + 255, 0, 255).astype(np.uint8)
    image = Image.fromarray(shades, "L").convert("P")        # a palette makes a quarter of the bytes of full colours
    image.putpalette((colormaps["magma"](np.arange(256))[:, :3] * 255).astype(np.uint8).tobytes())
    target = io.BytesIO()
    image.save(target, "PNG", optimize=True)
    return target.getvalue()


def has_matplotlib() -> bool:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def _png(figure) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=110)
    return target.getvalue()
