"""The shortest decimal form of float32 numbers, many at a time.

Text of a float32 that is read as a float64 needs up to nine digits, that of the same number taken
as a float64 seventeen. NumPy finds the short form number by number, which is most of the time it
takes to write a file of scores; here it is found for an array.

Reads and writes nothing. Public names: `shortest`.
"""

import numpy as np

# Between these, one of the scales below is a power of ten that a float64 holds exactly, at least 1.
LEAST, MOST = 1e-13, 1e6
POWERS = 10.0 ** np.arange(-13, 7)
EXPONENTS = 10.0 ** np.arange(0, 23)
TIE = 1e-6  # so close to halfway between two decimals, the product below may err in which is nearer


def shortest(numbers: np.ndarray) -> np.ndarray:
    """Return the float64 whose shortest text is the shortest that reads as each float32.

    Equal to `numbers.astype("U32").astype(np.float64)`, bit for bit.

    Args:
        numbers: float32, any shape; NaN and infinities stay what they are.
    """
    flat = np.ascontiguousarray(numbers, dtype=np.float32).ravel()
    result = flat.astype(np.float64)
    sizes = np.abs(result)
    places = np.flatnonzero((sizes >= LEAST) & (sizes < MOST))
    hard = np.flatnonzero(np.isfinite(sizes) & (sizes > 0) & ((sizes < LEAST) | (sizes >= MOST)))
    left = [hard]
    values = result[places]
    exponents = np.searchsorted(POWERS, np.abs(values), side="right") - 14
    # Six digits of a decimal survive the way through a float32, so no shorter form need be tried:
    # it would be these six with zeros at the end. Nine always suffice.
    for digits in (6, 7, 8, 9):
        scales = EXPONENTS[digits - 1 - exponents]
        scaled = values * scales
        rounded = np.rint(scaled)
        candidates = rounded / scales  # of two exact numbers, so it is the decimal's own float64
        fits = candidates.astype(np.float32) == flat[places]
        # A power of two has a neighbour below at half the distance: a decimal further away may
        # fit where the nearest does not.
        doubtful = np.abs(np.abs(scaled - rounded) - 0.5) < TIE
        doubtful |= (np.frexp(values)[0] == 0.5 * np.sign(values)) & (candidates != values)
        left.append(places[doubtful])
        done = fits & ~doubtful
        result[places[done]] = candidates[done]
        going_on = ~fits & ~doubtful
        places, values, exponents = places[going_on], values[going_on], exponents[going_on]
    remaining = np.concatenate([*left, places])
    if len(remaining):
        result[remaining] = flat[remaining].astype("U32").astype(np.float64)
    return result.reshape(np.shape(numbers))
