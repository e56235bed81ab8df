"""What pyproject.toml cannot say: prompts/ and recipes/*.yaml go into the wheel, in the package.

Mapping them there by `package-dir` would pack `recipes/finetune.py` as a module too, and change how
an editable install finds the package.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = {
    "_prompts": ("prompts", ("*.yaml", "*.jinja", "README.md")),
    "_recipes": ("recipes", ("*.yaml",)),
}


class BuildWithShipped(build_py):
    """Builds the package, then copies the folders of `SHIPPED` into it."""

    def run(self) -> None:
        """Build; an editable install uses the checkout's folders where they lie."""
        super().run()
        if self.editable_mode:
            return
        for package, (folder, patterns) in SHIPPED.items():
            for file in sorted(path for p in patterns for path in Path(folder).rglob(p)):
                target = Path(self.build_lib, "lcrec", package, file.relative_to(folder))
                self.mkpath(str(target.parent))
                self.copy_file(str(file), str(target))


setup(cmdclass={"build_py": BuildWithShipped})
