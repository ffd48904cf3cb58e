"""Run commands, each one's output into the next, and print how long they took.

A script of its own, since what it starts would inherit the peak memory of a large process.

    python -I -S launcher.py FIRST_BYTES '[["nac", "--help"]]'

It prints seconds in all, seconds until FIRST_BYTES bytes have come out of the last one (nan for 0), and peak memory
in bytes, added up over the commands (nan where the system does not tell). Its status is that of the first to fail.
"""
import json
import os
import subprocess
import sys
import time


def main(first_bytes: int, commands: list[list[str]]) -> int:
    processes, source, start = [], subprocess.DEVNULL, time.perf_counter()
    for command in commands:
        process = subprocess.Popen(command, stdin=source, stdout=subprocess.PIPE)
        if processes:
            source.close()
        processes.append(process)
        source = process.stdout
    first = float("nan")
    if first_bytes and len(source.read(first_bytes)) == first_bytes:
        first = time.perf_counter() - start
    while source.read(1 << 16):
        pass
    peaks, status = [], 0
    for process in processes:
        code, peak = _wait(process)
        peaks.append(peak)
        status = status or code
    print(time.perf_counter() - start, first, sum(peaks))
    return status


def _wait(process: subprocess.Popen) -> tuple[int, float]:
    """Status and peak memory."""
    if not hasattr(os, "wait4"):
        return process.wait(), float("nan")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), json.loads(sys.argv[2])))
