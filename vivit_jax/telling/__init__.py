"""What a run tells while it goes: lines and bars, an ETA, curves, and the facts of it in `run.json`."""
