"""Commands beside the methods: `python -m lcrec.baselines compare`, `tune`, `fuse` and the like."""
