"""Where the project and the tests' fixtures lie."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / 'tests' / 'fixtures'


def find_run(output: str | Path) -> Path:
    """Return the only run folder in an output folder, which may hold results.csv beside it."""
    run, = (path for path in Path(output).iterdir() if path.is_dir())
    return run
