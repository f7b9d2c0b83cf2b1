"""Files as users bring them: tables with columns of several kinds, and folders of photos."""

import csv

import numpy as np
from PIL import Image

MIXED = {"income": "continuous", "smoker": "binary", "visits": "count", "town": "category"}


def write_table(path, kinds, missing=0.0, num=120, seed=0):
    """Writes a .csv with columns of these kinds, by name, and labels `group` that they depend on."""
    rng = np.random.default_rng(seed)
    draw = {
        "continuous": lambda k: f"{2_000 + 500 * k + 300 * rng.normal():.2f}",
        "binary": lambda k: "yes" if rng.random() < 0.2 + 0.3 * k else "no",
        "count": lambda k: 2 + rng.poisson(2 + 3 * k),
        "category": lambda k: ("Bern", "Basel", "Chur")[rng.choice(3, p=(0.6 - 0.2 * k, 0.2, 0.2 + 0.2 * k))],
    }
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*kinds, "group"])
        for _ in range(num):
            k = rng.integers(3)
            row = ["" if rng.random() < missing else draw[kind](k) for kind in kinds.values()]
            writer.writerow([*row, "abc"[k]])


def write_photos(folder, num, size=8, seed=0):
    """Writes small images in colour, of two kinds."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    for index in range(num):
        colour = (200, 80, 40) if index % 2 else (40, 80, 200)
        levels = np.clip(rng.normal(colour, 30, (size, size, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(levels).save(folder / f"{index}.png")
