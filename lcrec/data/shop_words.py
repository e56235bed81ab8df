"""The words of the synthetic shop: its kinds of product, styles, price tiers and brands.

`lcrec.synthetic` makes items, users and their texts from these tables. Every brand is invented.
Phrases begin in lower case and carry no full stop; features are whole sentences.
"""

from typing import NamedTuple

Words = tuple[str, ...]


class Kind(NamedTuple):
    """A kind of product: what is needed after it, what it is for, and how it is described."""

    name: str
    followers: tuple[str, str, str]  # the likeliest next need first
    need: str  # completes "I need ..." without naming the kind
    nouns: Words
    materials: Words
    sizes: Words
    features: Words


class Style(NamedTuple):
    """A taste in looks; `liking` completes "I like ..."."""

    name: str
    words: Words
    colours: Words
    looks: Words
    liking: str
    praise: Words


class Tier(NamedTuple):
    """A price tier; `liking` completes "I ..."."""

    name: str
    words: Words
    promises: Words
    liking: str
    praise: Words


def _kind(
    followers: tuple[str, str, str],
    need: str,
    nouns: Words,
    materials: Words,
    sizes: Words,
    *features: str,
) -> Kind:
    return Kind(nouns[0].lower(), followers, need, nouns, materials, sizes, features)


DEPARTMENTS: dict[str, tuple[Kind, ...]] = {
    "Camping": (
        _kind(
            ("sleeping bag", "camp stove", "headlamp"),
            "a dry place to sleep out of doors",
            ("Tent", "Dome Tent", "Tunnel Tent"),
            ("Ripstop", "Canvas", "Polycotton", "Silnylon"),
            ("1-Person", "2-Person", "4-Person"),
            "It pitches in four minutes and keeps the rain on the right side.",
            "The porch holds two pairs of wet boots and a rucksack.",
            "Taped seams and a bathtub floor see it through a wet weekend.",
        ),
        _kind(
            ("camp stove", "headlamp", "dog bed"),
            "something warm to sleep in on cold nights outside",
            ("Sleeping Bag", "Mummy Sleeping Bag", "Quilted Sleeping Bag"),
            ("Down", "Wool-Lined", "Microfibre", "Cotton"),
            ("5°C", "0°C", "-8°C"),
            "The two-way zip lets your feet out on mild nights.",
            "It stuffs down to the size of a loaf of bread.",
            "A snug hood and a draught collar hold the warmth in.",
        ),
        _kind(
            ("headlamp", "coffee grinder", "tent"),
            "something to cook a hot supper on, far from home",
            ("Camp Stove", "Folding Camp Stove", "Twin Camp Stove"),
            ("Steel", "Aluminium", "Titanium", "Brass"),
            ("Solo", "Compact", "Family"),
            "It boils a litre in three and a half minutes, wind or no wind.",
            "The legs fold flat and the burner simmers as well as it roars.",
            "A wide pan rest keeps the supper where it belongs.",
        ),
        _kind(
            ("bike helmet", "tent", "bike light"),
            "light on the path with both hands free",
            ("Headlamp", "Trail Headlamp", "Rechargeable Headlamp"),
            ("Alloy", "Polymer", "Rubberised", "Aluminium"),
            ("200-Lumen", "350-Lumen", "500-Lumen"),
            "A red mode spares the night vision of everyone else at the table.",
            "It runs for forty hours on low and charges from any socket.",
            "The band sits softly and the beam tilts with one finger.",
        ),
    ),
    "Cycling": (
        _kind(
            ("bike light", "bike lock", "pannier bag"),
            "my head protected on the ride to work",
            ("Bike Helmet", "City Bike Helmet", "Touring Bike Helmet"),
            ("Cork-Lined", "Polycarbonate", "Leather-Trimmed", "Recycled"),
            ("S", "M", "L"),
            "Twelve vents keep the air moving on the long hill home.",
            "A dial at the back sets the fit in a second.",
            "The magnetic buckle closes with gloves on.",
        ),
        _kind(
            ("bike lock", "pannier bag", "headlamp"),
            "to be seen on dark roads",
            ("Bike Light", "Front Bike Light", "Dynamo Bike Light"),
            ("Alloy", "Brass", "Silicone", "Polymer"),
            ("30-Lux", "50-Lux", "80-Lux"),
            "Its beam lights the road and not the eyes of other people.",
            "It clips to any bar without a tool and shrugs off rain.",
            "The side windows glow, so crossing cars see it too.",
        ),
        _kind(
            ("pannier bag", "bike helmet", "dog leash"),
            "to leave my bicycle outside without worrying",
            ("Bike Lock", "Folding Bike Lock", "Chain Bike Lock"),
            ("Hardened-Steel", "Fabric-Sleeved", "Titanium", "Boron"),
            ("80cm", "100cm", "120cm"),
            "It reaches around a lamp post and both wheels.",
            "The keyhole has a lid, and three keys come with it.",
            "A soft sleeve spares the paint of the frame.",
        ),
        _kind(
            ("planter", "bike helmet", "notebook"),
            "a way to carry the shopping home by bicycle",
            ("Pannier Bag", "Roll-Top Pannier Bag", "Office Pannier Bag"),
            ("Waxed-Cotton", "Tarpaulin", "Nylon", "Felt"),
            ("12L", "18L", "25L"),
            "The hooks lock on in one movement and come off as quickly.",
            "There is a sleeve for a laptop and a pocket for a wet jacket.",
            "It stands on its own beside a desk or a till.",
        ),
    ),
    "Garden": (
        _kind(
            ("trowel", "watering can", "pruner"),
            "somewhere to grow herbs on a small balcony",
            ("Planter", "Raised Planter", "Window Planter"),
            ("Terracotta", "Cedar", "Zinc", "Fibre-Clay"),
            ("Small", "Medium", "Tall"),
            "A hidden reservoir keeps basil alive over a long weekend.",
            "Drain holes and small feet keep the floor below it dry.",
            "It is deep enough for tomatoes and light enough to move.",
        ),
        _kind(
            ("watering can", "pruner", "camp stove"),
            "something to dig small holes and move seedlings with",
            ("Trowel", "Hand Trowel", "Transplanting Trowel"),
            ("Ash-Handled", "Forged", "Copper", "Stainless"),
            ("Narrow", "Standard", "Wide"),
            "Depth marks on the blade put every bulb where it should be.",
            "The neck is one piece and does not bend in clay.",
            "A loop on the grip hangs it up beside the door.",
        ),
        _kind(
            ("pruner", "planter", "gooseneck kettle"),
            "an easy way to water plants without drowning them",
            ("Watering Can", "Long-Spout Watering Can", "Balcony Watering Can"),
            ("Galvanised", "Enamel", "Copper", "Recycled"),
            ("1L", "3L", "6L"),
            "The long spout reaches the back of the shelf without a drip.",
            "A fine rose rains softly on seedlings and comes off for cleaning.",
            "It balances in one hand when full.",
        ),
        _kind(
            ("coffee grinder", "trowel", "planter"),
            "to cut back roses and tidy small branches",
            ("Pruner", "Bypass Pruner", "Rose Pruner"),
            ("Carbon-Steel", "Stainless", "Walnut-Grip", "Forged"),
            ("16cm", "19cm", "22cm"),
            "The blades cut clean up to the thickness of a thumb.",
            "A catch for one hand and a spring that does not jump out.",
            "Every part can be ordered and changed at the kitchen table.",
        ),
    ),
    "Coffee": (
        _kind(
            ("coffee dripper", "gooseneck kettle", "mug"),
            "freshly ground beans in the morning",
            ("Coffee Grinder", "Hand Coffee Grinder", "Burr Coffee Grinder"),
            ("Walnut", "Steel", "Beech", "Ceramic"),
            ("20g", "30g", "40g"),
            "Conical burrs click through forty settings, from mocha to filter.",
            "It grinds a cup in thirty quiet seconds.",
            "The catch jar has a lid and no static.",
        ),
        _kind(
            ("gooseneck kettle", "mug", "camp stove"),
            "a simple way to brew one good cup by hand",
            ("Coffee Dripper", "Cone Coffee Dripper", "Flat Coffee Dripper"),
            ("Porcelain", "Glass", "Copper", "Stoneware"),
            ("1-Cup", "2-Cup", "4-Cup"),
            "Spiral ribs let the coffee bloom and drain evenly.",
            "It sits on any cup and rinses clean in a moment.",
            "A small window shows when to stop pouring.",
        ),
        _kind(
            ("mug", "coffee dripper", "watering can"),
            "hot water that pours slowly and exactly",
            ("Gooseneck Kettle", "Stovetop Gooseneck Kettle", "Electric Gooseneck Kettle"),
            ("Steel", "Enamel", "Copper", "Brass"),
            ("600ml", "800ml", "1200ml"),
            "The thin spout draws a line of water as steady as a pencil.",
            "A dial in the lid reads the heat at a glance.",
            "The handle stays cool to the last drop.",
        ),
        _kind(
            ("desk lamp", "coffee grinder", "notebook"),
            "something to drink from that keeps coffee hot",
            ("Mug", "Stacking Mug", "Travel Mug"),
            ("Stoneware", "Enamel", "Porcelain", "Double-Walled"),
            ("250ml", "350ml", "450ml"),
            "The handle takes three fingers and the rim is thin.",
            "It stacks, goes into the dishwasher and forgives a fall.",
            "A heavy base holds the heat through a long telephone call.",
        ),
    ),
    "Study": (
        _kind(
            ("desk organiser", "notebook", "fountain pen"),
            "better light to read and write by in the evening",
            ("Desk Lamp", "Clamp Desk Lamp", "Swing-Arm Desk Lamp"),
            ("Oak", "Steel", "Brass", "Linen"),
            ("30cm", "45cm", "60cm"),
            "Warm or cool light by a touch, without flicker.",
            "The arm stays exactly where it is put.",
            "A socket in the foot charges a telephone.",
        ),
        _kind(
            ("notebook", "fountain pen", "pannier bag"),
            "to get the papers and pens on my table in order",
            ("Desk Organiser", "Drawer Desk Organiser", "Stacking Desk Organiser"),
            ("Bamboo", "Felt", "Walnut", "Mesh"),
            ("3-Tray", "4-Tray", "6-Tray"),
            "There is a slot for letters, a tray for keys and a cup for pens.",
            "The trays slide out and stack in any order.",
            "Cork feet spare the table below.",
        ),
        _kind(
            ("fountain pen", "desk organiser", "mug"),
            "paper to plan on and to keep a diary",
            ("Notebook", "Dotted Notebook", "Pocket Notebook"),
            ("Linen", "Leather", "Kraft", "Cloth-Bound"),
            ("A6", "A5", "B5"),
            "It lies flat on every page, and ink does not show through.",
            "Numbered pages and two ribbons keep the place.",
            "A pocket at the back keeps tickets and receipts.",
        ),
        _kind(
            ("dog bed", "desk lamp", "desk organiser"),
            "to write letters by hand with pleasure",
            ("Fountain Pen", "Pocket Fountain Pen", "Piston Fountain Pen"),
            ("Resin", "Brass", "Aluminium", "Ebonite"),
            ("Fine", "Broad", "Italic"),
            "The nib glides from the first stroke, even after a week unused.",
            "It takes cartridges or bottled ink and posts well.",
            "The cap closes with a small and satisfying click.",
        ),
    ),
    "Dogs": (
        _kind(
            ("dog bowl", "dog leash", "chew toy"),
            "a soft corner for my dog to sleep in",
            ("Dog Bed", "Nest Dog Bed", "Orthopaedic Dog Bed"),
            ("Corduroy", "Canvas", "Wool", "Boucle"),
            ("60cm", "80cm", "110cm"),
            "The cover zips off and survives the hottest wash.",
            "A raised rim makes a pillow for a heavy head.",
            "Thick foam is kind to old joints.",
        ),
        _kind(
            ("dog leash", "chew toy", "mug"),
            "to feed my dog without a mess on the floor",
            ("Dog Bowl", "Slow-Feed Dog Bowl", "Raised Dog Bowl"),
            ("Stoneware", "Steel", "Enamel", "Bamboo-Fibre"),
            ("300ml", "700ml", "1500ml"),
            "A rubber ring keeps it from touring the kitchen.",
            "Gentle ridges slow down the fastest eaters.",
            "It is heavy enough to stay and easy to wash.",
        ),
        _kind(
            ("chew toy", "dog bowl", "bike lock"),
            "to walk my dog safely in town",
            ("Dog Leash", "Hands-Free Dog Leash", "Rope Dog Leash"),
            ("Leather", "Cotton", "Climbing-Rope", "Hemp"),
            ("120cm", "180cm", "250cm"),
            "The clip turns freely and never ties itself in knots.",
            "A second loop keeps a keen puller close at crossings.",
            "It softens with use and dries overnight.",
        ),
        _kind(
            ("tent", "dog bed", "desk lamp"),
            "to keep a bored puppy busy",
            ("Chew Toy", "Treat Chew Toy", "Tug Chew Toy"),
            ("Rubber", "Hemp", "Coffee-Wood", "Cotton"),
            ("S", "M", "XL"),
            "It bounces unpredictably and floats in the lake.",
            "Hide a biscuit inside and win a quiet hour.",
            "It has outlived three terriers on the test bench.",
        ),
    ),
}
KINDS = tuple(kind for kinds in DEPARTMENTS.values() for kind in kinds)

STYLES = (
    Style(
        "minimalist",
        ("Minimalist", "Pared-Back", "Clean-Line"),
        ("Chalk", "Fog", "Birch", "Ink"),
        (
            "clean lines and nothing extra",
            "quiet, plain and calm to look at",
            "no logo, no ornament, no noise",
        ),
        "plain things with clean lines and nothing extra",
        ("plain and quiet, the way I like it", "clean lines, no fuss at all"),
    ),
    Style(
        "rugged",
        ("Rugged", "Expedition", "Hard-Wearing"),
        ("Olive", "Slate", "Rust", "Khaki"),
        (
            "made to take knocks and bad weather",
            "overbuilt where it matters",
            "happy in mud, sleet and careless hands",
        ),
        "tough things that take knocks and bad weather",
        ("tough as old boots, just my thing", "built to be dropped, and I drop things"),
    ),
    Style(
        "vintage",
        ("Vintage", "Heritage", "Retro"),
        ("Cream", "Oxblood", "Sage", "Mustard"),
        (
            "the look of a catalogue from 1935",
            "old-fashioned in the best sense",
            "details your grandparents would recognise",
        ),
        "old-fashioned things that look as if they had a history",
        ("it looks like a flea-market find, lovely", "it has the old-time charm I collect"),
    ),
    Style(
        "playful",
        ("Playful", "Cheerful", "Bright"),
        ("Coral", "Mint", "Turquoise", "Lemon"),
        (
            "colours that make people smile",
            "a wink of fun in everyday use",
            "bold shapes and a sunny mood",
        ),
        "colourful things that make people smile",
        ("so colourful that it lifts my mood", "great fun, everybody smiles at it"),
    ),
)

TIERS = (
    Tier(
        "budget",
        ("Basic", "Everyday", "Value"),
        ("a budget buy that does the job", "kind to a small budget"),
        "keep an eye on the price",
        ("it cost very little", "cheap, and good enough for me"),
    ),
    Tier(
        "mid-priced",
        ("Classic", "Select", "Plus"),
        ("mid-priced and well balanced", "mid-priced, with a five-year warranty"),
        "pay a fair middle price for solid quality",
        ("the price is fair for the quality", "a sensible middle price"),
    ),
    Tier(
        "premium",
        ("Signature", "Reserve", "Atelier"),
        ("premium make, finished by hand", "a premium piece from a small workshop"),
        "pay well for the finest make",
        ("expensive and worth every penny", "the finish justifies the high price"),
    ),
)

# BRANDS[style][tier]: the house for the first half of the departments, then for the second.
BRANDS = (
    (("Plainfell", "Nuddvik"), ("Lumenholt", "Asklunda"), ("Hvitmarka", "Sorenhus")),
    (("Tuffwick", "Grubbins"), ("Cragmoor", "Ironbarrow"), ("Skarnhorn", "Hammerdale")),
    (("Pennyfold", "Oldmarlow"), ("Wexcombe", "Tilburne"), ("Harcroft", "Belthorne")),
    (("Zigglo", "Popsicko"), ("Kitemoon", "Jollybird"), ("Papayana", "Bonbonelle")),
)
