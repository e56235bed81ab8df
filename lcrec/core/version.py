"""The version of the kit, written here and nowhere else."""

__version__ = "0.1.0"
