"""What bench.run found, as tables in Markdown and as a picture."""

from pathlib import Path

from audiocodec import stages

WAYS = ("encode", "decode")
_CODERS = {False: "EnCodec", True: "EnCodec, entropy coding"}


def markdown(result: dict) -> str:
    """All of it, as tables."""
    layout = f"{result['channels']} x " if result["channels"] > 1 else ""
    about = (f"nac {result['nac']}, model {result['model']} ({result['weights']}), {result['machine']}; "
             f"{result['device']}, {_counted(result['threads'], 'thread')}; {result['audio']} audio, {layout}"
             f"{result['sample_rate']} Hz; {_counted(result['repeats'], 'repeat')} after a warm-up")
    tables = [
        [about],
        _files(result), _encodec(result), *(_shares(result, way) for way in WAYS), _streaming(result),
        _commands(result)]
    return "\n\n".join("\n".join(table) for table in tables if table)


def _files(result: dict) -> list[str]:
    return _table(["clip, s", "kbps", "true kbps", "direction", "seconds (fastest to slowest)", "x real time"],
                  [[f"{file['length']:g}", f"{file['kbps']:g}", f"{file['true_kbps']:.2f}", way, _spread(file[way]),
                    f"{file[way]['times_real_time']:.1f}"] for file in result["files"] for way in WAYS])


def _encodec(result: dict) -> list[str]:
    rows = [[f"{file['length']:g}", f"{rival['kbps']:g}", _CODERS[rival["entropy"]], way, _spread(rival[way]),
             f"{rival[way]['times_real_time']:.1f}", f"{rival[way]['seconds'] / file[way]['seconds']:.1f}",
             "" if rival["entropy"] else f"{rival[way]['seconds'] / file['plain'][way]['seconds']:.1f}"]
            for file in result["files"] for rival in file.get("encodec", []) for way in WAYS]
    return _table(["clip, s", "kbps", "codec", "direction", "seconds (fastest to slowest)", "x real time",
                   "times nac's time", "times nac's without entropy coding"], rows) if rows else []


def _shares(result: dict, way: str) -> list[str]:
    """Of the longest clip, for every rate."""
    files = longest(result)
    names = list(dict.fromkeys(stage for file in files for stage in file[way]["shares"]))
    return _table([f"share of {way} time, {files[0]['length']:g} s", *(f"{file['kbps']:g} kbps" for file in files)],
                  [[stage, *(f"{file[way]['shares'].get(stage, 0):.1%}" for file in files)] for stage in names])


def _streaming(result: dict) -> list[str]:
    return _table(
        ["packets of one frame", "codebooks", "true kbps", "frame, ms", "median, ms", "p95", "p99", "worst",
         "delay, ms"],
        [[f"{row['kbps']:g} kbps", str(row["codebooks"]), f"{row['packet_kbps']:.2f}", f"{row['frame_ms']:.1f}",
          *(f"{row[name]:.2f}" for name in ("median_ms", "p95_ms", "p99_ms", "worst_ms")), f"{row['delay_ms']:.1f}"]
         for row in result["streaming"]])


def _commands(result: dict) -> list[str]:
    return _table(["command", "first sample, s", "seconds (fastest to slowest)", "peak memory, MB"],
                  [[row["command"], _known(row["first_sample"], 2), _spread(row), _known(row["peak_mb"], 0)]
                   for row in result["commands"]])


def longest(result: dict) -> list[dict]:
    """The files of the longest clip, one for each rate."""
    length = max(file["length"] for file in result["files"])
    return [file for file in result["files"] if file["length"] == length]


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _known(number: float | None, digits: int) -> str:
    return "" if number is None else f"{number:.{digits}f}"


def _spread(times: dict) -> str:
    return f"{times['seconds']:.2f} ({times['fastest']:.2f} to {times['slowest']:.2f})"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (head, aligned, *rows)]


# Picture


def draw(result: dict, path: Path) -> None:
    """Write a PNG: the stages' times, and the speed against clip length and against bit rate. Needs matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure((15, 4.2), layout="constrained")
    times, by_length, by_rate = figure.subplots(1, 3)
    _draw_stages(times, longest(result))
    lines = {}
    for file in result["files"]:
        for way in WAYS:
            lines.setdefault((way, file["kbps"]), []).append((file["length"], file[way]["times_real_time"]))
    kinds = sorted({kbps for _, kbps in lines})
    for (way, kbps), points in lines.items():
        by_length.plot(*zip(*points), marker="o", markersize=4, color=f"C{kinds.index(kbps)}",
                       linestyle="-" if way == "encode" else "--", label=f"{way}, {kbps:g} kbps")
    _label(by_length, "Speed against clip length", "clip, s")
    _draw_rates(by_rate, longest(result))
    figure.savefig(path, format="png", dpi=110)


def _draw_stages(axes, files: list[dict]) -> None:
    """A bar for each rate and direction, from the top down, of all stages one after another."""
    bars = [(f"{way}, {file['kbps']:g} kbps", file[way]) for way in WAYS for file in files]
    names = list(dict.fromkeys((*stages.ENCODE[:-1], *stages.DECODE)))
    left = [0.0] * len(bars)
    for at, name in enumerate(names):
        widths = [times["seconds"] * times["shares"].get(name, 0) for _, times in bars]
        if any(widths):
            color = "0.75" if name == stages.REST else f"C{at % 10}"
            axes.barh([label for label, _ in bars], widths, left=left, color=color, label=name,
                      hatch="//" if at >= 10 and name != stages.REST else None, edgecolor="white", linewidth=0.5)
        left = [before + width for before, width in zip(left, widths)]
    axes.invert_yaxis()
    axes.set_title(f"Stages, {files[0]['length']:g} s clip", fontsize=11)
    axes.set_xlabel("seconds")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))


def _draw_rates(axes, files: list[dict]) -> None:
    from matplotlib.ticker import LogLocator

    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for file in files:
        for way in WAYS:
            lines.setdefault(("nac", way), []).append((file["kbps"], file[way]["times_real_time"]))
            for rival in file.get("encodec", []):
                lines.setdefault((_CODERS[rival["entropy"]], way), []).append(
                    (rival["kbps"], rival[way]["times_real_time"]))
    codecs = list(dict.fromkeys(codec for codec, _ in lines))
    for (codec, way), points in sorted(lines.items(), key=lambda line: codecs.index(line[0][0])):
        axes.plot(*zip(*sorted(points)), marker="o", markersize=4, color=f"C{codecs.index(codec)}",
                  linestyle="-" if way == "encode" else "--", label=f"{codec}, {way}")
    if len(codecs) > 1:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_yticks([], minor=True)
    _label(axes, f"Speed against bit rate, {files[0]['length']:g} s clip", "kbps")


def _label(axes, title: str, quantity: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.set_xscale("log")
    axes.set_xticks(sorted({x for line in axes.lines for x in line.get_xdata()}), minor=False)
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(quantity)
    axes.set_ylabel("x real time")
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
