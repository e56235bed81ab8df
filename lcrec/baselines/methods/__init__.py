"""The methods, one file each: subclasses of `Baseline`, listed in `METHODS` of `base`."""
