"""One small patch per guarantee that breaks it; `python -m tests.mutants` shows that its tests see it."""
