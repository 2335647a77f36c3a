"""Coverage-guided fuzzing of one target: python tests/fuzz/atheris_run.py TARGET SECONDS.

It needs atheris (3.0.0: wheels for Linux on x86-64 and CPython 3.11 to 3.13, so not in the dev
extra): ``pip install atheris==3.0.0``. It ends by itself after SECONDS, or at the first exception
that is no CompatError, whose input is left as ``crash-*`` in the working folder.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["compatctl", "zipfile", "csv", "yaml", "json"]):
    import fuzz_targets


def main() -> None:
    """Write the seeds as the first corpus and fuzz."""
    name, seconds = sys.argv[1], int(sys.argv[2])
    corpus = Path(tempfile.mkdtemp(prefix=f"corpus-{name}-"))
    for number, data in enumerate(fuzz_targets.TARGETS[name].seeds()):
        (corpus / str(number)).write_bytes(data)
    options = [f"-max_total_time={seconds}", "-timeout=20", "-rss_limit_mb=6000", "-max_len=65536"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], lambda data: fuzz_targets.run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
