"""From AnnData to what the training loop reads."""
