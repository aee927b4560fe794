"""What the commands print of results."""

import pytest

from headstart.cli.print_results import calibration_in_words


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (0.0, "no calibration error detected (up to 12.9% would be chance)"),
        (0.0004, "no calibration error detected (up to 12.9% would be chance)"),
        (0.0312, "calibration error 3.1% (up to 12.9% would be chance)"),
    ],
)
def test_a_calibration_error_is_a_share_beside_that_of_chance(error: float, expected: str) -> None:
    assert calibration_in_words(error, by_chance=0.129) == expected
