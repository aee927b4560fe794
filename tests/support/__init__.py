"""What several test files use: places, drawn data, small runs, model files, servers, a browser."""

from pathlib import Path

TESTS = Path(__file__).parents[1]
REPOSITORY = TESTS.parent
GOLDEN = TESTS / "golden"
