"""Write the files of a small shop as an engineer gets them: two days of orders, products, prices.

    python scripts/messy_shop.py --output downloads/messy

The customers choose as those of `lcrec synthetic` do. Times are ISO with zones and in no order,
SKUs have dashes, texts have markup, lines stand twice, columns are separated by semicolons. Day one
is `orders.csv` and `products.csv`. Of the second day are `new_orders.csv` (known customers, two
that are new, a product that nobody knows), `new_products.csv` (two new, three known), `prices.csv`
(other than the day before), and `sold_out.txt`. The same seed writes the same bytes.
"""

import csv
import datetime
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lcrec.core.config import option, parse_config
from lcrec.core.errors import run_stage
from lcrec.data.shop import Shop, make_shop
from lcrec.data.shop_texts import DEPARTMENT_OF

COMMAND = "python scripts/messy_shop.py"
START = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
DAYS = 150  # of day one's orders; the next is the second day
ZONES = [datetime.timezone(datetime.timedelta(hours=hours)) for hours in (0, 2, -5)]
BUYERS = 80  # known customers who come on the second day
NEW = 2  # products of the second day, and its new customers
UNKNOWN = "XX-404"  # in no file of products
TWICE = 9  # lines

Row = Sequence[str]


@dataclass(frozen=True)
class MessyShopConfig:
    """Settings of `python scripts/messy_shop.py`."""

    output: Path = option("the folder for the files")
    users: int = option("customers of day one", 300, minimum=BUYERS)
    items: int = option("products of day one", 300, minimum=24)
    seed: int = option("the same seed gives the same files", 0, minimum=0)


def main(argv: list[str]) -> None:
    """Write the files."""
    config = parse_config(MessyShopConfig, argv, description=__doc__ or "", prog=COMMAND)
    write_files(config)
    print(f"Wrote the files of {config.users:,} customers to {config.output}")


def write_files(config: MessyShopConfig) -> None:
    """Write the files of both days."""
    shop = make_shop(config.users, config.items + NEW, config.seed)
    rng = random.Random(config.seed)
    skus = [sku(shop, item) for item in range(len(shop.wares))]
    products = [product(shop, item, rng) for item in range(len(shop.wares))]
    first, second = orders(shop, skus, rng)
    folder = config.output
    folder.mkdir(parents=True, exist_ok=True)
    head = ("customer", "sku", "ordered_at")
    write(folder / "orders.csv", head, first + first[:TWICE])
    write(folder / "new_orders.csv", head, second + second[:TWICE])
    described = ("sku", "name", "description", "category", "price")
    write(folder / "products.csv", described, products[:-NEW])
    write(folder / "new_products.csv", described, products[-NEW:] + products[:3])
    prices = [(name, price(rng)) for name in skus[:-NEW]]
    write(folder / "prices.csv", ("sku", "price"), prices)
    sold_out = [*skus[:2], "NEVER-SEEN"]
    (folder / "sold_out.txt").write_text("\n".join(sold_out) + "\n", encoding="utf-8")


def sku(shop: Shop, item: int) -> str:
    """Return what the shop calls a product, such as TE-017-L."""
    ware = shop.wares[item]
    return f"{ware.kind.name[:2].upper()}-{item:03}-{ware.tier.name[0].upper()}"


def product(shop: Shop, item: int, rng: random.Random) -> Row:
    """Return a product's line, its texts as a web page has them."""
    ware = shop.wares[item]
    title = f"<b>{ware.title}</b> &amp; box"
    text = f"<p>{ware.description}</p><br/>"
    category = f"{DEPARTMENT_OF[ware.kind.name]} > {ware.kind.name.title()}"
    return (sku(shop, item), title, text, category, price(rng))


def price(rng: random.Random) -> str:
    """Return a price as shops write it."""
    return f"{rng.randrange(3, 90)},{rng.choice(('00', '50', '95'))} EUR"


def orders(shop: Shop, skus: list[str], rng: random.Random) -> tuple[list[Row], list[Row]]:
    """Return the lines of both days; some customers' last purchase is on the second."""
    first: list[Row] = []
    second: list[Row] = []
    known = len(skus) - NEW
    for user, sequence in enumerate(shop.sequences):
        own = [item for item in sequence if item < known]
        moments = sorted(rng.randrange(DAYS * 86_400) for _ in own)
        if user < BUYERS:
            moments[-1] = DAYS * 86_400 + rng.randrange(86_400)
        for item, seconds in zip(own, moments, strict=True):
            day = first if seconds < DAYS * 86_400 else second
            day.append(line(f"C{user:05}", skus[item], seconds, rng))
    for place, name in enumerate(("C00003", "N-2")):
        second.append(line(name, skus[known + place], (DAYS + 1) * 86_400 - 60, rng))
    second += [line("N-1", skus[item], DAYS * 86_400 + 60 * item, rng) for item in range(5)]
    second.append(line("N-2", UNKNOWN, DAYS * 86_400 + 1, rng))
    rng.shuffle(first)
    rng.shuffle(second)
    return first, second


def line(customer: str, name: str, seconds: int, rng: random.Random) -> Row:
    """Return an order's line, the moment in one of several zones."""
    moment = START + datetime.timedelta(seconds=seconds)
    return (customer, name, moment.astimezone(rng.choice(ZONES)).isoformat())


def write(path: Path, head: Row, rows: Iterable[Row]) -> None:
    """Write a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows([head, *rows])


if __name__ == "__main__":
    run_stage(main)
