"""From a description of how files are written to two tables: the reader behind most formats.

A `Layout` says which column plays which role; `read_layouts` opens the files that are written so,
on DuckDB or Spark, and sifts their rows. Writes nothing but tables in DuckDB and temporary files.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ibis
from ibis.backends import BaseBackend
from ibis.expr.types import Table

from lcrec.core.errors import InputError, closest
from lcrec.prepare.files import (
    UNREADABLE,
    Delimited,
    Opened,
    bare_name,
    encoding_hint,
    find_separator,
    first_lines,
    has_mixed_line_ends,
    header,
    kind_of,
    open_delimited,
    open_json,
    open_parquet,
    with_plain_line_ends,
)
from lcrec.prepare.literals import convert_lines, evaluate, evaluate_json, is_literal, needs_python
from lcrec.prepare.rows import Roles, Sifted, TimeUnit, sift
from lcrec.prepare.tables import (
    INTERACTION_ROLES,
    ITEM_ROLES,
    REVIEW_ROLES,
    Options,
    RawTables,
    no_rows,
)

Paths = Path | Sequence[Path]
RECBOLE_TYPES = ("token", "token_seq", "float", "float_seq")
SAMPLE = 1000  # lines whose keys say which keys a JSON file has
# Usual column names per role, most specific first; compared in lower case.
USUAL_NAMES = {
    "user": "user user_id userid reviewerid reviewer_id customer_id uid",
    "item": "item item_id itemid parent_asin asin product_id productid movie_id movieid book_id "
    "business_id sku iid id",
    "time": "time timestamp unixreviewtime datetime date created_at",
    "rating": "rating ratings overall stars score",
    "title": "title item_title movie_title book_title product_title name item_name movie_name "
    "product_name business_name",
    "description": "description item_description product_description overview desc",
    "brand": "brand brand_name manufacturer store",
    "categories": "categories category genres genre class main_category product_category tags",
    "features": "features feature",
    "details": "details",
    "review_title": "review_title summary",
    "review_text": "review_text reviewtext review",
}


@dataclass(frozen=True)
class Layout:
    """How one kind of file is written and what its columns mean.

    Attributes:
        roles: role -> column, or columns whose texts are joined; empty to guess by usual names.
        how: how delimited files are written.
        delimited: the file is delimited text whatever its suffix.
        unit: the unit of numeric times.
        list_mark: what separates categories within their column.
        flags: columns that hold 1 for what the item is; their names make up the column "flags".
        atomic: the first line says name:type, as RecBole's atomic files do.
    """

    roles: Roles = field(default_factory=dict)
    how: Delimited = Delimited()
    delimited: bool = False
    unit: TimeUnit = "any"
    list_mark: str | None = None
    flags: tuple[str, ...] = ()
    atomic: bool = False


def as_paths(paths: Paths) -> tuple[Path, ...]:
    """Return one file or several as several."""
    return (paths,) if isinstance(paths, Path) else tuple(paths)


def first_of(paths: Sequence[Path]) -> Path:
    """Return what messages call the files: the first; where there is none, nothing."""
    return paths[0] if paths else Path()


def read_layouts(
    con: BaseBackend,
    interactions: Paths,
    items: Paths,
    options: Options,
    interaction_layout: Layout,
    item_layout: Layout,
) -> RawTables:
    """Read interactions and items that are written as the two layouts say.

    Args:
        interactions: the files with one row per interaction, in order; may be none.
        items: the files with one row per item; may be none.
        interaction_layout: how the former are written.
        item_layout: how the latter are written.

    Raises:
        InputError: a file cannot be read, a needed column is missing, or rows cannot be used and
            `options.bad_rows` is "error".
    """
    actions, catalogue = as_paths(interactions), as_paths(items)
    if con.name == "duckdb":
        con.raw_sql("SET TimeZone = 'UTC'")  # a date without a zone is the same on every machine
    if options.is_decoded:
        interaction_layout, item_layout = _in_utf8(interaction_layout), _in_utf8(item_layout)
    action_columns, action_roles = _action_columns(actions, options, interaction_layout)
    item_columns, item_roles = _item_columns(
        catalogue, options, item_layout, action_roles.get("item")
    )
    sifted_actions = _read(con, actions, action_columns, action_roles, interaction_layout, options)
    sifted_items = _read(con, catalogue, item_columns, item_roles, item_layout, options)
    return RawTables(
        sifted_actions.table,
        sifted_items.table,
        first_of(actions),
        first_of(catalogue),
        _shown(action_roles),
        _shown(item_roles),
        sifted_actions.lost,
        sifted_items.lost,
        unused=(unused_of(action_columns, action_roles), unused_of(item_columns, item_roles)),
        notes=tuple(
            note
            for paths, layout in ((actions, interaction_layout), (catalogue, item_layout))
            for note in _notes(con, paths, layout)
        ),
    )


def _action_columns(
    paths: Sequence[Path], options: Options, layout: Layout
) -> tuple[list[str], dict[str, str | tuple[str, ...]]]:
    """Return the columns of the interactions, and role -> column."""
    if not paths:
        return [], {}
    wanted = INTERACTION_ROLES + (REVIEW_ROLES if options.reviews else ())
    columns = _names(paths, layout)
    names = [name for name in columns if name]
    needed = ("user", "item") + (("time",) if options.order == "time" else ())
    return columns, find_columns(names, wanted, options.columns, layout.roles, paths[0], needed)


def _item_columns(
    paths: Sequence[Path], options: Options, layout: Layout, same: str | tuple[str, ...] | None
) -> tuple[list[str], dict[str, str | tuple[str, ...]]]:
    """Return the columns of the items, and role -> column; `same` is the interactions' item."""
    if not paths:
        return [], {}
    given = {role: name for role, name in options.columns.items() if role != "item"}
    columns = _names(paths, layout)
    names = [name for name in columns if name]
    same = options.columns.get("item") if same is None else same
    if "id" in options.columns:
        given["item"] = options.columns["id"]
    elif (options.columns.get("item") in names or not layout.roles) and same in names:
        given["item"] = str(same)
    kept = {name: column for name, column in options.keep.items() if column in names}
    texts = {role: name for role, name in given.items() if role in ITEM_ROLES[1:]}
    is_update = options.joins and kept and not set(texts.values()) & set(names)
    if is_update:
        given = {role: name for role, name in given.items() if role not in texts}
    try:
        roles = find_columns(names, ITEM_ROLES, given, layout.roles, paths[0], ("item",), item="id")
        if not is_update and not {"title", "description"} & set(roles):
            raise _no_column("title or description", names, paths[0], "title=...")
    except InputError as error:
        if not options.joins or not options.keep or kept:
            raise
        fields = ", ".join(options.keep.values())
        raise InputError(f"{error}; nor has it a column of the kept fields ({fields})") from None
    return columns, roles | (kept if options.joins else find_kept(names, options.keep, paths[0]))


def find_kept(names: Sequence[str], keep: Mapping[str, str], path: Path) -> dict[str, str]:
    """Return `keep`, {field: column}, each of whose columns must be there.

    Raises:
        InputError: one is not.
    """
    for column in keep.values():
        if column not in names:
            raise InputError(
                f"--keep: {path} has no column {column!r}{closest(column, names)} "
                f"(columns: {', '.join(names)})"
            )
    return dict(keep)


def unused_of(names: Sequence[str], roles: Roles) -> tuple[str, ...]:
    """Return the columns that have a name and no role."""
    used = {name for own in roles.values() for name in ((own,) if isinstance(own, str) else own)}
    return tuple(name for name in names if name and name not in used)


def _notes(con: BaseBackend, paths: Sequence[Path], layout: Layout) -> Iterator[str]:
    """Yield what was found out of delimited files, and what Spark would not say."""
    if paths and _kind(paths, layout) == "delimited":
        how = _how(paths[0], layout)
        if layout == Layout() and how.delimiter != _usual_separator(paths[0]):
            yield f"{paths[0].name}: columns are separated by {how.delimiter!r}"
        if con.name != "duckdb" and how.encoding == "utf-8" and (hint := encoding_hint(paths)):
            yield f"what cannot be read becomes \ufffd{hint}"


def find_columns(
    names: Sequence[str],
    roles: Sequence[str],
    given: Mapping[str, str],
    layout: Roles,
    path: Path,
    needed: Sequence[str],
    *,
    item: str = "item",
) -> dict[str, str | tuple[str, ...]]:
    """Return {role: column} for the roles that are given, the layout's own or can be guessed.

    Args:
        names: the columns there are.
        roles: the roles to look for.
        given: {role: column} by the person, "" for none.
        layout: the format's own; empty to guess.
        path: the file, for messages.
        needed: the roles without which the file is of no use.
        item: how the person names the item's column.

    Raises:
        InputError: a given column is not there, or a needed role has none.
    """
    lowered = {name.lower(): name for name in reversed(names)}
    found: dict[str, str | tuple[str, ...]] = {}
    for role in roles:
        name: str | tuple[str, ...] = ""
        if role in given:
            name = given[role]
            if name and name not in names:
                raise InputError(
                    f"--columns: {path} has no column {name!r} to read the {role} from"
                    f"{closest(given[role], names)} (columns: {', '.join(names)})"
                )
        elif layout:
            own = layout.get(role, ())
            there = tuple(one for one in ((own,) if isinstance(own, str) else own) if one in names)
            name = there[0] if len(there) == 1 else there
        else:
            # What a person took for one thing is not guessed to be another as well.
            usual_names = [usual for usual in USUAL_NAMES[role].split() if usual in lowered]
            taken = {given[other] for other in roles if other in given}
            name = next(
                (lowered[usual] for usual in usual_names if lowered[usual] not in taken), ""
            )
        if name:
            found[role] = name
    for role in needed:
        if role not in found:
            remedy = f"{item if role == 'item' else role}=..."
            if role == "time":
                remedy += ", or take the order of the rows with --order file"
            raise _no_column(role, names, path, remedy)
    return found


def _no_column(role: str, names: Sequence[str], path: Path, remedy: str) -> InputError:
    return InputError(
        f"{path}: no {role} column was found among {', '.join(names)}; name it with "
        f"--columns {remedy}"
    )


def _shown(roles: Roles) -> dict[str, str]:
    return {role: name if isinstance(name, str) else "+".join(name) for role, name in roles.items()}


def _kind(paths: Sequence[Path], layout: Layout) -> str:
    kinds = {"delimited"} if layout.delimited else {kind_of(path) for path in paths}
    if len(kinds) > 1:
        raise InputError(
            f"{paths[0]} and {len(paths) - 1} more: files of different kinds "
            f"({', '.join(sorted(kinds))}) cannot be read together"
        )
    return kinds.pop()


def _how(path: Path, layout: Layout) -> Delimited:
    if layout != Layout():
        return layout.how
    return Delimited(find_separator(path, _usual_separator(path)))


def _usual_separator(path: Path) -> str:
    return "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","


def _in_utf8(layout: Layout) -> Layout:
    return replace(layout, how=replace(layout.how, encoding="utf-8"))


def _names(paths: Sequence[Path], layout: Layout) -> list[str]:
    """Return the columns of the files; for JSON the keys that the first lines have."""
    kind = _kind(paths, layout)
    if kind == "delimited":
        how = _how(paths[0], layout)
        names = list(how.names) if how.names else header(paths, how)
        if layout.atomic:
            names = [_untyped(name, paths[0]) for name in names]
        return [*names, *(["flags"] if layout.flags else [])]
    if kind == "parquet":
        opened = open_parquet(ibis.duckdb.connect(), [paths[0]], None)
        return list(opened.table.drop(UNREADABLE).columns)
    keys: dict[str, None] = {}
    lines = [line for line in first_lines(paths[0], SAMPLE) if line.strip()]
    read = evaluate if _written_as_literals(lines) else evaluate_json
    for line in lines:
        keys |= dict.fromkeys(read(line) or ())
    if not keys:
        raise InputError(
            f"{paths[0]}: the file is empty or its first {SAMPLE:,} lines hold no JSON object; "
            f"expected one per line{encoding_hint(paths)}"
        )
    # What the format knows but no early line has may still come.
    for own in layout.roles.values():
        for name in (own,) if isinstance(own, str) else own:
            optional = name not in {layout.roles.get(role) for role in ("user", "item", "time")}
            keys |= {name: None} if optional else {}
    return list(keys)


def _untyped(field: str, path: Path) -> str:
    """Return the name in an atomic file's header field, whose type must be known."""
    name, colon, kind = field.rpartition(":")
    if not colon:
        raise InputError(
            f"{path}, line 1: field {field!r} has no type; atomic files say name:type, "
            f"the type one of {', '.join(RECBOLE_TYPES)} (for plain files: --format table)"
        )
    if kind not in RECBOLE_TYPES:
        raise InputError(
            f"{path}, line 1: field {field!r} has the unknown type {kind!r}"
            f"{closest(kind, RECBOLE_TYPES)} (types: {', '.join(RECBOLE_TYPES)})"
        )
    return name


def _written_as_literals(lines: Sequence[bytes]) -> bool:
    return bool(lines) and is_literal(lines[0])


def _read(
    con: BaseBackend,
    paths: Sequence[Path],
    names: Sequence[str],
    roles: Roles,
    layout: Layout,
    options: Options,
) -> Sifted:
    """Open the files, load the columns that have a role, and sift the rows."""
    if not paths:
        return Sifted(no_rows(con), {})
    used: dict[str, None] = {}
    for own in roles.values():
        used |= dict.fromkeys((own,) if isinstance(own, str) else own)
    kind = _kind(paths, layout)
    limit = options.limit if "user" in roles else None
    if kind == "delimited":
        there = [name for name in names if name != "flags" or not layout.flags]
        # DuckDB takes names that differ in case only for the same; what nobody asks for may go.
        taken = {name.casefold() for name in used}
        for place, name in enumerate(there):
            if name not in used:
                there[place] = "" if name.casefold() in taken else name
                taken.add(name.casefold())
        if con.name != "duckdb":
            paths = _with_plain_line_ends(paths, options)
        opened = open_delimited(con, paths, there, _how(paths[0], layout), limit)
        if layout.flags:
            opened = replace(opened, table=_with_flags(opened.table, layout.flags))
    elif kind == "parquet":
        opened = open_parquet(con, paths, list(used), limit)
    elif _written_as_literals([line for line in first_lines(paths[0], SAMPLE) if line.strip()]):
        opened = _open_converted(con, paths, list(used), options, limit, evaluate)
    elif con.name == "duckdb" and needs_python(paths):
        opened = _open_converted(con, paths, list(used), options, limit, evaluate_json)
    else:
        opened = open_json(con, paths, list(used), limit)
    list_mark = _list_mark(opened, paths, roles, layout)
    return sift(con, opened, roles, paths, options, unit=layout.unit, list_mark=list_mark)


def _list_mark(opened: Opened, paths: Sequence[Path], roles: Roles, layout: Layout) -> str | None:
    """Return what separates categories: in RecBole's sequences a space, where none has a comma."""
    name = roles.get("categories")
    if not layout.atomic or f"{name}:token_seq" not in header(paths, _how(paths[0], layout)):
        return layout.list_mark
    return None if opened.table[name].contains(",").any().execute() else " "


def _with_plain_line_ends(paths: Sequence[Path], options: Options) -> list[Path]:
    """Return the files, for those whose lines end in several ways a copy: Spark knows one way."""
    plain = []
    for path in paths:
        if has_mixed_line_ends(path):
            folder = options.spill_folder("lines that end in several ways are copied first")
            folder = Path(tempfile.mkdtemp(dir=folder))
            with_plain_line_ends(path, folder / bare_name(path))
            path = folder / bare_name(path)
        plain.append(path)
    return plain


def _with_flags(table: Table, flags: Sequence[str]) -> Table:
    words = [ibis.ifelse(table[flag] == "1", flag, ibis.null("string")) for flag in flags]
    return table.mutate(flags=ibis.array(words).filter(lambda word: word.notnull()).join(", "))


def _open_converted(
    con: BaseBackend,
    paths: Sequence[Path],
    names: Sequence[str],
    options: Options,
    limit: int | None,
    evaluate_line: Callable[[bytes], dict[str, Any] | None],
) -> Opened:
    if con.name != "duckdb":
        raise InputError(
            f"{paths[0]}: lines of Python literals are read with --engine duckdb only; prepare "
            "this data there, or convert it to JSON lines first"
        )
    target = options.spill_folder("lines that DuckDB cannot read are converted first")
    target = target / f"{paths[0].name}.parquet"
    convert_lines(paths, names, target, limit, evaluate=evaluate_line)
    opened = open_parquet(con, [target], names)
    unreadable = ibis.and_(*(opened.table[name].isnull() for name in names))
    return Opened(opened.table.mutate(**{UNREADABLE: unreadable}), stored=opened.stored)
