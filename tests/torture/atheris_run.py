"""The targets of part 7 under atheris, which looks for inputs that lead to new code, in a process
each: `python -m tests.torture.atheris_run`, bounded as by `bound`."""

import os
import re
import subprocess
import sys

from tests.torture.bound import SECONDS, Bound

_TARGET = "TORTURE_TARGET"
_RUNS = re.compile(r"Done (\d+) runs")


def _run(name: str) -> None:
    """In a process of its own: libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["tapwright"]):
        from tests.torture import targets

    atheris.Setup(sys.argv, targets.test_of(name).hypothesis.fuzz_one_input)
    atheris.Fuzz()


def main() -> int:
    if name := os.environ.get(_TARGET):
        _run(name)
        return 0
    from tests.torture.targets import TARGETS

    bound = Bound("atheris")
    seconds = max(1, int(float(os.environ[SECONDS]) / len(TARGETS)))
    command = [sys.executable, "-m", "tests.torture.atheris_run"]
    failed = []
    for name in TARGETS:
        done = subprocess.run(
            [*command, f"-seed={bound.seed % (1 << 32)}", f"-max_total_time={seconds}"],
            env={**os.environ, _TARGET: name},
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
        )
        runs = _RUNS.search(done.stderr)
        bound.tries += int(runs[1]) if runs else 0
        if done.returncode or not runs:
            failed.append(name)
            print(f"{name}: {done.returncode}\n{done.stdout[-4000:]}{done.stderr[-4000:]}")
    bound.tell(
        7,
        f"atheris: inputs for the {len(TARGETS)} readers, by what code they reach",
        f"failed: {', '.join(failed)}" if failed else "documented errors alone",
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
