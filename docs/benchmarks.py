"""Measure everything in benchmarks.md anew and write the page: `make benchmarks RECORDINGS=FOLDER`, or this script.

Stopped, it goes on where it was: the timings of these weights are kept, and so is every score.
"""

import argparse
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from audiocodec import bench_report, weights

HERE = Path(__file__).parent
PAGE = HERE / "benchmarks.md"
NAC = [sys.executable, "-m", "audiocodec"]
BENCH = "--seconds 1,10,60 -k 1.5,6,24 --repeats 3 --compare encodec"
EVAL = "--kinds speech,music --best --peers opus:6,8,10,12,16"
CODECS = 15  # that EVAL has
SECONDS_A_SCORE = 2.5  # of one core, for a clip and a codec
BENCH_MINUTES = 10


def main() -> None:
    options = _options()
    options.work.mkdir(parents=True, exist_ok=True)
    minutes = 2 * options.clips * CODECS * SECONDS_A_SCORE / 60 / options.jobs
    print(f"About {BENCH_MINUTES} minutes of timing, which need a quiet machine, then {minutes:.0f} minutes of scoring "
          f"({SECONDS_A_SCORE} s for each clip and codec, {options.jobs} at a time).", flush=True)
    write("nac bench", BENCH, time_all(options.work / "bench.json", options.work / "speed.png"))
    shutil.copy(options.work / "speed.png", HERE / "speed.png")
    scores = score_all(options)
    about = f"{EVAL} --clips {options.clips}, on recordings that were not trained on"
    write("nac eval", about, (scores / "summary.md").read_text(encoding="utf-8").strip())
    shutil.copy(scores / "curves.png", HERE / "quality.png")


def time_all(kept: Path, picture: Path) -> str:
    """The tables of `nac bench`, whose result is kept for as long as the weights are the same."""
    identity = weights.identity(weights.find("nac-24k")).hex()
    if not kept.exists() or json.loads(kept.read_text())["weights"] != identity:
        command = [*NAC, "bench", *shlex.split(BENCH), "--plot", str(picture), "--json"]
        kept.write_bytes(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return bench_report.markdown(json.loads(kept.read_text()))


def score_all(options: argparse.Namespace) -> Path:
    """The folder of `nac eval`, which itself goes on where it was stopped."""
    out = options.work / "scores"
    command = [*NAC, "eval", str(options.recordings), *shlex.split(EVAL), "--clips", str(options.clips),
               "-j", str(options.jobs), "--out", str(out)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def write(command: str, about: str, text: str) -> None:
    PAGE.write_text(fill(PAGE.read_text(encoding="utf-8"), command, about, text), encoding="utf-8")


def fill(page: str, command: str, about: str, text: str) -> str:
    """The page with another text between a command's marks, and in the first of them what it was run with."""
    pattern = rf"<!-- {command}: .*? -->\n\n.*?\n\n<!-- end -->"
    filled = f"<!-- {command}: {about} -->\n\n{text}\n\n<!-- end -->"
    page, count = re.subn(pattern, lambda _: filled, page, flags=re.DOTALL)
    if count != 1:
        raise SystemExit(f"{PAGE}: the marks of {command} are not there")
    return page


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure everything in docs/benchmarks.md anew, and write the page.")
    parser.add_argument("recordings", type=Path, help="folders named speech and music, not trained on")
    parser.add_argument("--clips", type=int, default=40, help="of each kind [40]")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes that score [2]")
    parser.add_argument("--work", type=Path, default=HERE.parent / "build" / "benchmarks",
                        help="what is kept in between [build/benchmarks]")
    return parser.parse_args()


if __name__ == "__main__":
    main()
