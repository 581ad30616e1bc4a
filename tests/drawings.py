"""A folder of drawings: houses and trees, as JPEG and PNG of many sizes. Run as a script: `drawings.py FOLDER [N]`."""

import sys
from pathlib import Path

import numpy as np

KINDS = ("houses", "trees")


def draw_folder(folder: Path, n: int, *, seed: int = 0, labelled: bool = True) -> Path:
    """Writes `n` drawings, the two kinds in turn, each into the folder of its kind where they are labelled."""
    for i in range(n):
        rng = np.random.default_rng((seed, i))
        kind = KINDS[i % 2]
        where = folder / kind if labelled else folder
        where.mkdir(parents=True, exist_ok=True)
        drawing = draw(kind, rng)
        if rng.random() < 0.5:
            drawing.save(where / f"{kind}-{i:05}.jpg", quality=90)
        else:
            drawing.save(where / f"{kind}-{i:05}.png")
    return folder


def draw(kind, rng):
    """One drawing, of sides from 48 to 120 pixels."""
    from PIL import Image, ImageDraw

    width, height = (int(side) for side in rng.integers(48, 121, 2))
    sky = tuple(int(c) for c in rng.integers((150, 190, 220), (200, 230, 256)))
    image = Image.new("RGB", (width, height), sky)
    pen, side = ImageDraw.Draw(image), min(width, height)
    x, y = width / 2 + side * rng.uniform(-0.1, 0.1), height / 2 + side * rng.uniform(0.2, 0.3)
    pen.rectangle((0, y, width, height), fill=tuple(int(c) for c in rng.integers((60, 130, 40), (110, 180, 80))))
    size = side * rng.uniform(0.3, 0.4)
    if kind == "houses":
        wall = tuple(int(c) for c in rng.integers((200, 180, 120), (256, 230, 200)))
        roof = tuple(int(c) for c in rng.integers((150, 30, 20), (220, 80, 60)))
        pen.rectangle((x - size / 2, y - 0.7 * size, x + size / 2, y), fill=wall)
        pen.polygon([(x - 0.65 * size, y - 0.7 * size), (x + 0.65 * size, y - 0.7 * size), (x, y - 1.3 * size)], roof)
        pen.rectangle((x - size / 8, y - 0.4 * size, x + size / 8, y), fill=(90, 60, 40))
    else:
        crown = tuple(int(c) for c in rng.integers((20, 80, 20), (80, 140, 60)))
        pen.rectangle((x - size / 10, y - 0.7 * size, x + size / 10, y), fill=(100, 70, 40))
        pen.ellipse((x - size / 2, y - 1.4 * size, x + size / 2, y - 0.5 * size), fill=crown)
    return image


if __name__ == "__main__":
    draw_folder(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2000)
