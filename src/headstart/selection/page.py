"""`choose.html`: one self-contained file with the candidates, their comparison and the command."""

from typing import Any

from headstart.html import environment
from headstart.results import Candidate, Choice, PairedComparison


def choose_page(choice: Choice) -> str:
    """The page as HTML."""
    low = min(candidate.accuracy_ci95[0] for candidate in choice.candidates)
    high = max(candidate.accuracy_ci95[1] for candidate in choice.candidates)
    margin = max(0.05 * (high - low), 0.002)
    low, high = max(0.0, low - margin), min(1.0, high + margin)
    rows = [_row(choice, candidate, low=low, high=high) for candidate in choice.candidates]
    sections = [_section(comparison) for comparison in choice.comparisons]
    links = [
        ("choice", "Choice"),
        ("candidates", "Candidates"),
        *(
            (f"comparison{number}", f"Against {found.first}")
            for number, found in enumerate(choice.comparisons, start=1)
        ),
        ("glossary", "Glossary"),
    ]
    page = environment().get_template("choose.html")
    return page.render(choice=choice, rows=rows, sections=sections, ends=(low, high), links=links)


def _row(choice: Choice, candidate: Candidate, *, low: float, high: float) -> dict[str, Any]:
    """bar: low end, value and high end of the accuracy in percent of the scale."""
    ends = (candidate.accuracy_ci95[0], candidate.accuracy, candidate.accuracy_ci95[1])
    return {
        "candidate": candidate,
        "verdict": choice.verdict(candidate),
        "bar": [100 * (end - low) / (high - low) for end in ends],
        "speeds": [_rate(candidate.predict_images_per_s), _rate(candidate.train_images_per_s)],
        "parameters": f"{candidate.parameters / 1e6:.1f} M",
        "size": f"{candidate.file_bytes / 2**20:.1f} MiB",
    }


def _section(comparison: PairedComparison) -> dict[str, Any]:
    """bar: low end, value and high end of the difference in percent of the scale; limit: end of the scale in points."""
    low, high = comparison.ci95
    limit = max(abs(low), abs(high), 0.01) * 1.1
    return {
        "comparison": comparison,
        "bar": [50 + 50 * value / limit for value in (low, comparison.difference, high)],
        "limit": 100 * limit,
    }


def _rate(images_per_s: float) -> str:
    return f"{images_per_s:.3g}" if images_per_s < 100 else f"{images_per_s:,.0f}"
