"""Settings: one frozen dataclass per stage, filled from flat YAML and the command line, strictly.

Each stage's dataclass stands in the stage's own module, so an option is changed in one place.
Here is what reads them: `--config FILE.yaml` first, then flags, which win. An unknown key, a wrong
type or a value outside the choices is an `InputError` that names file, line and key.
"""

import argparse
import dataclasses
import sys
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import yaml

from lcrec.core.artifacts import read_text
from lcrec.core.errors import InputError, closest
from lcrec.core.outputs import check_output, is_model
from lcrec.core.shipped import find_recipe, find_templates

T = TypeVar("T")
REQUIRED = dataclasses.MISSING
MOST_NODES = 100_000  # values in a YAML file, aliases written out
MODELS = ("base", "encoder")  # settings whose text names a model, on the hub or in a folder
LARGEST_INT = 2**31 - 1  # scikit-learn's seeds have 32 bits, and catalogues 32-bit ids


def option(
    help: str,
    default: Any = REQUIRED,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    words: bool = False,
    writes: str | None = None,
) -> Any:
    """Declare a field of a stage's dataclass.

    Args:
        help: one line for `--help`; the default is appended by the parser.
        default: the value when neither YAML nor flag gives one; without it the flag is required.
        minimum: the smallest number allowed, inclusive; in a list, of each number.
        maximum: the largest, likewise.
        words: of a list, that the command line gives it as words without a flag; one such list at
            most.
        writes: of a path, that the stage writes there, and in what form (see
            `lcrec.core.outputs.check_output`); the dataclass derives from `Writes` then.
    """
    metadata = {
        "help": help,
        "minimum": minimum,
        "maximum": maximum,
        "words": words,
        "writes": writes,
    }
    if isinstance(default, list):
        items = list(default)
        return dataclasses.field(default_factory=lambda: list(items), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writes:
    """The setting of every stage that writes."""

    overwrite: bool = option(
        "replace what lies at the output, though this stage did not make it", False
    )


def settings_of(kind: type[T], config: Any, **chosen: Any) -> T:
    """Return settings of a kind: those chosen, and the fields of the same names of a config."""
    names = [field.name for field in dataclasses.fields(kind) if field.init]  # type: ignore[arg-type]
    given = {name: getattr(config, name) for name in names if hasattr(config, name)}
    return kind(**given | chosen)


class UniqueKeyLoader(yaml.SafeLoader):
    """`yaml.SafeLoader` that refuses a key written twice; PyYAML would keep the last silently.

    It also refuses a document whose aliases stand for more than `MOST_NODES` values: a kilobyte of
    aliases of aliases can stand for billions.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._nodes = 0  # composed so far, each alias counted as all that it stands for
        self._sizes: dict[int, int] = {}  # the same of each finished node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose the next node, raising `InputError` with the line of an alias too many."""
        alias = self.check_event(yaml.AliasEvent)
        line = self.peek_event().start_mark.line + 1
        before = self._nodes
        node = super().compose_node(parent, index)
        if alias and id(node) not in self._sizes:
            raise InputError(f"{self.name}, line {line}: an alias stands within what it stands for")
        self._nodes += self._sizes[id(node)] if alias else 1
        if not alias:
            self._sizes[id(node)] = self._nodes - before
        if self._nodes > MOST_NODES:
            raise InputError(
                f"{self.name}, line {line}: with its aliases the file stands for more than "
                f"{MOST_NODES:,} values; write out what is needed"
            )
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping, raising `InputError` with the line of the second key."""
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue  # no hashable key; the parent class refuses it, naming the line
            if key_node.value in seen:
                mark = key_node.start_mark
                raise InputError(
                    f"{mark.name}, line {mark.line + 1}: key {key_node.value!r} is written twice; "
                    "keep one of them"
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class TextLoader(UniqueKeyLoader):
    """A loader that leaves every value but null as it is written, as a flag has it.

    YAML 1.1 reads `no` as false, `010` as 8, `1:30` as 90 and `2020-01-31` as a date.
    """


TextLoader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].endswith((":null", ":merge"))]
    for first, pairs in UniqueKeyLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: Path, loader_type: type[UniqueKeyLoader] = UniqueKeyLoader) -> Any:
    """Read one YAML document safely.

    Raises:
        InputError: the file is missing, is no UTF-8 or no YAML, or writes a key twice.
    """
    text = read_text(path)
    try:
        loader = loader_type(text)
        loader.name = str(path)
        return loader.get_single_data()
    except InputError:
        raise
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise InputError(
            f"{path}: not valid YAML (character U+{error.character:04X} in line {line} may not "
            "stand in a text file)"
        ) from None
    except Exception as error:  # besides YAMLError, whatever a bad date or number raises
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        written = "".join(text.split("\n")[mark.line : mark.line + 1]).strip() if mark else ""
        reason = getattr(error, "problem", None) or error
        shown = f" in {written!r:.60}" if written else ""
        raise InputError(f"{path}{where}: not valid YAML ({reason}{shown})") from None


def console_command(prog: str) -> str:
    """Return a command as the console script has it: `lcrec X` for `python -m lcrec.X`."""
    return prog.replace("python -m lcrec.", "lcrec ", 1)


def parse_config(
    config_type: type[T],
    argv: list[str],
    *,
    prog: str,
    description: str | None = None,
    example: str = "",
) -> T:
    """Fill `config_type` from `--config FILE.yaml` and flags; a flag overrides the file.

    Args:
        config_type: a dataclass whose fields were made by `option`. Field types may be str, int,
            float, bool, Path, a list of one of them, a Literal of strings, or any of these
            `| None`.
        argv: the command line without the program's name.
        prog: the command as provenance has it, shown as `console_command` writes it.
        description: what the stage does, shown by `--help`; None: what the module of the settings
            says.
        example: flags of one worked example, shown behind `prog` at the end of `--help`.

    Raises:
        InputError: an unknown key or flag, a wrong type, a missing required value, an output that
            may not be written to.
    """
    fields = {field.name: field for field in dataclasses.fields(config_type)}  # type: ignore[arg-type]
    if overwrite := fields.pop("overwrite", None):
        fields["overwrite"] = overwrite  # which `Writes` puts first
    hints = typing.get_type_hints(config_type)
    stage, prog = prog, console_command(prog)
    if description is None:
        description = sys.modules[config_type.__module__].__doc__ or ""
    parser = _argument_parser(fields, hints, description, prog, example)
    given, unknown = parser.parse_known_args(argv)
    flags = {name: value for name, value in vars(given).items() if value is not None}
    config_file = flags.pop("config", None)
    flagged = [word for word in unknown if word.startswith("-")]
    for name, field in fields.items():
        if field.metadata.get("words"):
            # argparse leaves over the words that stand behind a flag and its value.
            flags[name] = [*flags[name], *([] if flagged else unknown)]
            unknown = flagged
            if not flags[name]:
                del flags[name]
    if unknown:
        known = ["--config", *("--" + name.replace("_", "-") for name in fields)]
        raise InputError(
            f"unknown argument {unknown[0]!r}{closest(unknown[0].split('=')[0], known)} "
            f"(all of them: {prog} --help)"
        )

    values: dict[str, Any] = {}
    if config_file is not None:
        path = find_recipe(config_file)
        document = read_yaml(path)
        if not isinstance(document, dict):
            raise InputError(f"{path}: expected 'key: value' lines, found {document!r:.200}")
        written = read_yaml(path, TextLoader)
        for key, value in document.items():
            if key not in fields:
                raise InputError(f"{path}: unknown key {key!r}{closest(str(key), fields)}")
            if _strip_optional(hints[key])[0] is not bool:
                value = written[key]  # as a flag would have it
            values[key] = _convert(value, hints[key], fields[key], f"{path}: {key}")
            if isinstance(values[key], Path):
                values[key] = find_templates(values[key], path)
    for name, value in flags.items():
        values[name] = _convert(value, hints[name], fields[name], _shown(name, fields[name]))

    for name, field in fields.items():
        if name not in values and not _has_default(field):
            raise InputError(f"{_shown(name, field)} is required: {field.metadata['help']}")
    config: Any = config_type(**values)
    outputs = [name for name, field in fields.items() if field.metadata.get("writes")]
    for name in outputs:
        if getattr(config, name) is not None:
            check_output(
                getattr(config, name),
                stage,
                fields[name].metadata["writes"],
                overwrite=config.overwrite,
                flag=_shown(name, fields[name]),
                inputs=paths_read(config, outputs),
            )
    return config


def paths_read(config: Any, outputs: Collection[str] = ("output",)) -> list[Path]:
    """Return all paths that settings name, but for `outputs`, and the folders of their models."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in MODELS and value is not None and is_model(Path(value)):
            found.append(Path(value))
        elif field.name not in outputs:
            values = value if isinstance(value, list) else [value]
            found += [own for own in values if isinstance(own, Path)]
    return found


def config_dict(config: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """Return the settings that shape a result, as plain JSON values; those in `without` do not.

    Paths and lists of them are left out: what a stage read is recorded by its hash, and where a
    result lies, or what lay there, does not change it.
    """
    hints = typing.get_type_hints(type(config))
    return {
        field.name: getattr(config, field.name)
        for field in dataclasses.fields(config)
        if _strip_optional(hints[field.name])[0] not in (Path, list[Path])
        and field.name not in {"overwrite", *without}
    }


def refuse_settings(config: Any, keep: set[str], why: str) -> None:
    """Refuse settings that this use of a stage would ignore.

    Args:
        keep: the names of the settings that this use heeds; the rest must be at their defaults.
        why: what to tell the user after the flag and its value.

    Raises:
        InputError: a setting outside `keep` has another value than its default.
    """
    for field in dataclasses.fields(config):
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        value = getattr(config, field.name)
        if field.name not in keep and value != default:
            shown = " ".join(map(str, value)) if isinstance(value, list) else value
            raise InputError(f"--{field.name.replace('_', '-')} {shown}: {why}")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are an `InputError`."""

    def error(self, message: str) -> typing.NoReturn:
        """Raise `InputError` with what argparse says."""
        raise InputError(f"{message} (all arguments: {self.prog} --help)")


def _argument_parser(
    fields: dict[str, Any], hints: dict[str, Any], description: str, prog: str, example: str
) -> argparse.ArgumentParser:
    required = [
        _value_shown(name, field, hints)
        for name, field in fields.items()
        if not _has_default(field)
    ]
    parser = Parser(
        prog=prog,
        # argparse would put all options here, and the required ones, which YAML can give, in
        # brackets.
        usage=" ".join([prog, *required, "[option ...]"]).replace("%", "%%"),
        description=description,
        epilog=f"example:\n  {prog} {example}".replace("%", "%%") if example else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE.yaml", help="read settings from a flat YAML file")
    for name, field in fields.items():
        kind, _ = _strip_optional(hints[name])
        text = field.metadata["help"]
        if not _has_default(field):
            text += " (required)"
        elif field.default_factory is not dataclasses.MISSING:
            text += f" (default: {' '.join(map(str, field.default_factory()))})"
        elif field.default is True:
            text += " (on by default)"
        # What happens without a value stands in the help itself.
        elif field.default is not None and field.default is not False:
            text += f" (default: {field.default})"
        text, flag = text.replace("%", "%%"), _shown(name, field)
        if field.metadata.get("words"):
            parser.add_argument(name, nargs="*", help=text, metavar=flag)
        elif kind is bool:
            action = argparse.BooleanOptionalAction
            parser.add_argument(flag, action=action, default=None, help=text)
        else:
            nargs = "+" if typing.get_origin(kind) is list else None
            parser.add_argument(flag, nargs=nargs, default=None, help=text, metavar=_metavar(kind))
    return parser


def _has_default(field: Any) -> bool:
    return field.default is not REQUIRED or field.default_factory is not dataclasses.MISSING


def _metavar(kind: Any) -> str:
    """Return what stands for a value in the help."""
    if typing.get_origin(kind) is list:
        return "ITEM"
    if typing.get_origin(kind) is typing.Literal:
        return "{" + ",".join(typing.get_args(kind)) + "}"
    return {int: "N", float: "X", Path: "PATH"}.get(kind, "TEXT")


def _value_shown(name: str, field: Any, hints: dict[str, Any]) -> str:
    """Return a required field as the usage line has it, such as `--data PATH`."""
    kind, _ = _strip_optional(hints[name])
    shown = _shown(name, field)
    if field.metadata.get("words"):
        return f"{shown} [{shown} ...]"
    return f"{shown} {_metavar(kind)}" + " ..." * (typing.get_origin(kind) is list)


def _shown(name: str, field: Any) -> str:
    """Return a field as the command line has it."""
    return name.upper() if field.metadata.get("words") else "--" + name.replace("_", "-")


def _strip_optional(hint: Any) -> tuple[Any, bool]:
    """Return the type without `None`, and whether `None` was allowed."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        rest = [arm for arm in typing.get_args(hint) if arm is not type(None)]
        return rest[0], len(rest) < len(typing.get_args(hint))
    return hint, False


def _convert(value: Any, hint: Any, field: Any, where: str) -> Any:
    """Check `value` against the field's type; text is read as a number where one is wanted."""
    kind, optional = _strip_optional(hint)
    if value is None:
        if optional:
            return None
        raise InputError(f"{where}: a value is needed ({field.metadata['help']})")
    result = _convert_kind(value, kind, where)
    minimum, maximum = field.metadata.get("minimum"), field.metadata.get("maximum")
    for number in result if isinstance(result, list) else [result]:
        if minimum is not None and number < minimum:
            raise InputError(f"{where}: {number} is too small; the least allowed is {minimum}")
        if maximum is not None and number > maximum:
            raise InputError(f"{where}: {number} is too large; the most allowed is {maximum}")
    return result


def _convert_kind(value: Any, kind: Any, where: str) -> Any:
    def wrong() -> InputError:  # made where it is raised: a value may be long
        return InputError(f"{where}: expected {_kind_name(kind)}, found {value!r:.200}")

    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        if value not in choices:
            raise InputError(
                f"{where}: {value!r} is none of {', '.join(choices)}{closest(str(value), choices)}"
            )
        return value
    if typing.get_origin(kind) is list:
        if not isinstance(value, list):
            raise wrong()
        (item_kind,) = typing.get_args(kind)
        return [_convert_kind(item, item_kind, where) for item in value]
    if kind is bool:
        if not isinstance(value, bool):
            raise wrong()
        return value
    if kind in (int, float):
        try:
            number = kind(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong() from None
        if number != number or number in (float("inf"), float("-inf")):
            raise wrong()
        if kind is int and abs(number) > LARGEST_INT:
            raise InputError(f"{where}: {number} is too large; the most allowed is {LARGEST_INT}")
        return number
    if kind in (str, Path):
        if not isinstance(value, str):
            raise wrong()
        if kind is Path and value == "":
            raise InputError(f"{where}: the path is empty")
        return kind(value)
    raise TypeError(f"{where}: fields of type {kind} are not supported")


def _kind_name(kind: Any) -> str:
    if typing.get_origin(kind) is list:
        return "a list"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(kind, "a path")
