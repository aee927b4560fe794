"""What people read about a run: report.html, the model card, comparisons."""
