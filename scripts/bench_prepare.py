"""Bench: raw dumps to a data folder, at the size people have.

    python scripts/bench_prepare.py
    python scripts/bench_prepare.py --parts python gz --scale 0.1

Makes synthetic dumps and runs `python -m lcrec.prepare` on them, each part a process of its own:

    gz       10,000,000 reviews of 500,000 items as gzipped JSON lines, by the schema of Amazon 2018
             (reviews and their metadata), the texts of reviews left out of the result
    parquet  50,000,000 interactions with 1,000,000 items as Parquet files, by the columns of
             Amazon 2023
    python   1,000,000 reviews as in gz, and the same done by the published rule in plain Python:
             read line by line, a set of interactions, rounds of counting until none goes, dicts of
             lists sorted by time

`--scale` makes all of them smaller, for a try. The last line is JSON: seconds, processor_seconds
(of all cores, which a busy machine does not lengthen) and peak_mb (largest resident memory) of each
part; of python also vs_python, how many times faster the stage is.
Making the dumps takes several minutes and is not counted; they lie in TMPDIR (up to 6 GB).
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path

import duckdb

from lcrec.core.provenance import read_provenance
from lcrec.prepare.text import clean_text

PARTS = ("gz", "parquet", "python")
SIZES = {"gz": 10_000_000, "parquet": 50_000_000, "python": 1_000_000}
# Few users act often and few items are bought often: the id grows with a power of a random number.
SKEW = 1.6
FILES = 8  # of Parquet
WORDS = "light strong small paper desk color case easy good black print steel soft ring home blue"
CORE = 5


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the sizes (default: 1)")
    parser.add_argument("--plain", nargs=3, metavar="PATH", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        plain_python(*map(Path, args.plain))
        return
    result: dict[str, float] = {}
    for part in args.parts:
        rows = int(SIZES[part] * args.scale)
        with tempfile.TemporaryDirectory(prefix="lcrec-bench-") as name:
            result |= measure(part, rows, Path(name))
        print(json.dumps(result), flush=True)


def measure(part: str, rows: int, folder: Path) -> dict[str, float]:
    """Make a part's dumps and return its figures."""
    users, items = rows // 10, rows // (50 if part == "parquet" else 20)
    log, catalogue = make_dumps(folder, rows, users, items, parquet=part == "parquet")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 2**20
    print(f"{part}: {rows:,} interactions, {items:,} items, {size:,.0f} MB", flush=True)
    output = folder / "out" / "Bench"
    flags = ["--interactions", *map(str, log), "--items", str(catalogue), "--output", str(output)]
    kind = "table" if part == "parquet" else "amazon2018"
    seconds, processor, peak = run(
        "-m", "lcrec.prepare", "--format", kind, "--reviews", "drop", *flags
    )
    record = read_provenance(output)
    assert record is not None
    print(
        f"{part}: {record['interactions']:,} interactions kept, {seconds:.1f} s, {processor:.1f} s "
        f"of processors, {peak:,.0f} MB"
    )
    name = f"{part}{SIZES[part] // 10**6}m"
    result = {
        f"{name}_seconds": round(seconds, 1),
        f"{name}_processor_seconds": round(processor, 1),
        f"{name}_peak_mb": round(peak),
    }
    if part != "python":
        return result
    plain, plain_processor, plain_peak = run(
        __file__, "--plain", str(log[0]), str(catalogue), str(folder / "plain")
    )
    found = json.loads((folder / "plain" / "counts.json").read_text())
    assert found == [record[name] for name in ("users", "items", "interactions")], found
    print(
        f"python: the plain way takes {plain:.1f} s, {plain_processor:.1f} s of processors, "
        f"{plain_peak:,.0f} MB"
    )
    return result | {
        "plain1m_seconds": round(plain, 1),
        "plain1m_processor_seconds": round(plain_processor, 1),
        "vs_python": round(plain / seconds, 2),
    }


def make_dumps(
    folder: Path, rows: int, users: int, items: int, *, parquet: bool
) -> tuple[list[Path], Path]:
    """Write interactions and items; return their files."""
    con = duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(folder / "spill")})

    def drawn(stream: int, count: int) -> str:
        # Not hash(i, stream): DuckDB joins hashes so that two streams would go hand in hand.
        uniform = f"(hash(16 * i + {stream}) / 18446744073709551616.0)"
        return f"CAST(floor(pow({uniform}, {SKEW}) * {count}) AS BIGINT)"

    user = f"printf('A%013X', {drawn(8, users)})"
    item = f"printf('B%09d', {drawn(9, items)})"
    second = "1300000000 + hash(16 * i + 10) % 230000000"
    words = f"string_split('{WORDS}', ' ')"
    text = " || ' ' || ".join(
        f"{words}[CAST(1 + hash(16 * i + {n}) % 16 AS BIGINT)]" for n in range(8)
    )
    if parquet:
        log = []
        for number in range(FILES):
            log.append(folder / f"part-{number}.parquet")
            begin, end = rows * number // FILES, rows * (number + 1) // FILES
            con.sql(f"SELECT {user} AS user_id, {item} AS parent_asin, 5.0 AS rating, "
                    f"1000 * ({second}) AS timestamp FROM range({begin}, {end}) t(i)"
                    ).write_parquet(str(log[-1]))  # fmt: skip
        catalogue = folder / "items.parquet"
        con.sql(f"SELECT printf('B%09d', i) AS parent_asin, {text} AS title, "
                f"[{text}, 'It&#39;s <b>new</b>'] AS description, 'Acme' AS store "
                f"FROM range({items}) t(i)").write_parquet(str(catalogue))  # fmt: skip
        return log, catalogue
    log = [folder / "Bench.json.gz"]
    con.sql(f"COPY (SELECT 5.0 AS overall, true AS verified, '09 1, 2016' AS reviewTime, "
            f"{user} AS reviewerID, {item} AS asin, 'A. Reader' AS reviewerName, "
            f"{text} AS reviewText, 'Five Stars' AS summary, {second} AS unixReviewTime "
            f"FROM range({rows}) t(i)) TO '{log[0]}' (FORMAT json, COMPRESSION gzip)")  # fmt: skip
    catalogue = folder / "meta_Bench.json.gz"
    con.sql(f"COPY (SELECT ['Office', 'Desk'] AS category, [{text}, 'It&#39;s <b>new</b>'] AS "
            f"description, {text} AS title, 'Acme' AS brand, printf('B%09d', i) AS asin FROM "
            f"range({items}) t(i)) TO '{catalogue}' (FORMAT json, COMPRESSION gzip)")  # fmt: skip
    return log, catalogue


def run(*words: str) -> tuple[float, float, float]:
    """Run Python; return its wall and processor time in seconds and peak resident memory in MB."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=Path(__file__).parents[1])
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(words[:2])} failed")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def plain_python(log: Path, catalogue: Path, output: Path) -> None:
    """Do the same with sets, dicts and loops over every row, and write what comes of it."""
    titles = {}
    with gzip.open(catalogue, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            title, description = clean_text(row["title"]), clean_text(row["description"])
            if title or description:
                titles[row["asin"]] = {"title": title, "description": description}
    interactions = set()
    with gzip.open(log, "rt", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            if row["asin"] in titles:
                interactions.add((row["reviewerID"], row["asin"], row["unixReviewTime"]))
    first: dict[tuple[str, str], int] = {}
    for user, item, moment in interactions:
        if moment < first.get((user, item), sys.maxsize):
            first[user, item] = moment
    while True:
        users, items = Counter(user for user, _ in first), Counter(item for _, item in first)
        kept = {
            (user, item): moment
            for (user, item), moment in first.items()
            if users[user] >= CORE and items[item] >= CORE
        }
        if len(kept) == len(first):
            break
        first = kept
    sequences = defaultdict(list)
    for (user, item), moment in first.items():
        sequences[user].append((moment, item))
    numbers: dict[str, int] = {}
    result: dict[str, list[int]] = {}
    for user in sorted(sequences, key=lambda user: (min(sequences[user])[0], user)):
        ordered = [item for _, item in sorted(sequences[user])]
        result[str(len(result))] = [numbers.setdefault(item, len(numbers)) for item in ordered]
    output.mkdir()
    (output / "Bench.inter.json").write_text(json.dumps(result))
    texts = {number: titles[item] for item, number in numbers.items()}
    (output / "Bench.item.json").write_text(json.dumps(texts))
    counts = [len(result), len(numbers), len(first)]
    (output / "counts.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main()
