"""The methods, one file each: a subclass of `Baseline`, listed in `lcrec.baselines.METHODS`."""
