"""The training loop, its learning-rate schedules and its checkpoints."""
