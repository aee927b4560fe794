"""From files on disk to batches: scan, check, split, decode, order."""
