"""Coverage-guided fuzzing of one reader: ``python -m tests.fuzz TARGET [SECONDS]``.

Inputs that reach new code are added to ``tests/fuzz/corpus/TARGET``. An input that causes an
untyped error is written to ``tests/fuzz/found`` and ends the run with an error.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["timmscope", "timmscope_registry"]):
    from tests.fuzz.corpus_files import CORPUS, FOUND, write_seeds
    from tests.fuzz.targets import run


def main(name: str, seconds: int) -> None:
    folder = CORPUS / name
    write_seeds(name)
    FOUND.mkdir(exist_ok=True)
    flags = [f"-max_total_time={seconds}", "-max_len=4096", f"-artifact_prefix={FOUND}/{name}-"]
    flags += ["-rss_limit_mb=4096", "-timeout=20", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(folder), *flags], lambda data: run(name, data))
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 60)
