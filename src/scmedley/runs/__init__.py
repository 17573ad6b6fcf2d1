"""The folder that a run or an experiment writes: lock, record, paths, reading."""
