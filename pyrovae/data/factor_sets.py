"""Images of which every factor of variation is known: drawn sprites, and digits that were turned and scaled."""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

SPRITE_SIZE = 32
SPRITE_SHAPES = ("square", "ellipse", "heart")
SPRITE_SCALES = (5.1, 6.1, 7.1, 8.1)  # half of an ellipse's length, in pixels; no edge meets the middle of a pixel
NUM_ORIENTATIONS = 6  # of a quarter turn, after which a square is the same again
NUM_PLACES = 12  # along each side, a pixel apart
SPRITE_FACTORS = {
    "shape": len(SPRITE_SHAPES),
    "scale": len(SPRITE_SCALES),
    "orientation": NUM_ORIENTATIONS,
    "x": NUM_PLACES,
    "y": NUM_PLACES,
}

DIGIT_ANGLES = tuple(range(-60, 61, 15))  # degrees, counter-clockwise
DIGIT_SCALES = (0.5, 0.625, 0.75, 0.875, 1.0)
DIGIT_FACTORS = {"digit": 10, "orientation": len(DIGIT_ANGLES), "scale": len(DIGIT_SCALES)}
CHUNK = 5_000  # images at a time


def sprites() -> tuple[Tensor, Tensor]:
    """Returns every sprite, one for each combination of the levels of `SPRITE_FACTORS`.

    A white shape on black: a square, an ellipse of axes 2:1 or a heart, with a pixel lit if its middle is inside.

    Returns:
        The images, `(10368, 1, 32, 32)`, `uint8` of 0 and 255, and the factors, `(10368, 5)`, int64 from 0.
    """
    factors = torch.cartesian_prod(*(torch.arange(num) for num in SPRITE_FACTORS.values()))
    drawn = (sprite_depth() >= 0).byte().mul(255)
    # Each place is a window of one larger picture: the further to the right the sprite, the further left the window.
    places = drawn.unfold(1, SPRITE_SIZE, 1).unfold(2, SPRITE_SIZE, 1).flip(1, 2).transpose(1, 2)
    return places.reshape(-1, 1, SPRITE_SIZE, SPRITE_SIZE), factors


def sprite_depth() -> Tensor:
    """Returns for the middle of each pixel a number that is positive inside a sprite and negative outside.

    There is one for each shape, scale and orientation, in the middle of a picture that has room for all its places:
    `(72, 43, 43)`.
    """
    shape, scale, orientation = torch.cartesian_prod(*map(torch.arange, list(SPRITE_FACTORS.values())[:3])).unbind(1)
    width = SPRITE_SIZE + NUM_PLACES - 1
    axis = torch.arange(width, dtype=torch.float64) - (width - 1) / 2
    across, up = axis[None, None], -axis[None, :, None]
    angle = (math.pi / 2 / NUM_ORIENTATIONS * orientation.double())[:, None, None]
    size = torch.tensor(SPRITE_SCALES, dtype=torch.float64)[scale][:, None, None]
    u, v = (across * angle.cos() + up * angle.sin()) / size, (up * angle.cos() - across * angle.sin()) / size
    p, q = 1.25 * u, 1.25 * v  # the curve of the heart is a quarter wider than 1
    depths = (
        0.75 - torch.maximum(u.abs(), v.abs()),
        1 - u.square() - (2 * v).square(),
        p.square() * q**3 - (p.square() + q.square() - 1) ** 3,
    )
    return torch.stack(depths)[shape, torch.arange(len(shape))]


def turned_and_scaled(images: Tensor, digits: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Returns each image turned and scaled about its middle by levels drawn at random, and its factors.

    Args:
        images: The images, `(num, channels, height, width)`, `uint8`.
        digits: The label of each, `(num,)`.
        generator: Draws the levels.

    Returns:
        The images, and the factors `(num, 3)` of `DIGIT_FACTORS`, int64 from 0.
    """
    num = len(images)
    angles = torch.randint(len(DIGIT_ANGLES), (num,), generator=generator)
    scales = torch.randint(len(DIGIT_SCALES), (num,), generator=generator)
    degrees, factor = torch.tensor(DIGIT_ANGLES)[angles], torch.tensor(DIGIT_SCALES)[scales]
    parts = (part.split(CHUNK) for part in (images, degrees, factor))
    moved = torch.cat([moved_images(*part) for part in zip(*parts, strict=True)])
    return moved, torch.stack((digits.long(), angles, scales), 1)


def moved_images(images: Tensor, degrees: Tensor, scale: Tensor) -> Tensor:
    """Returns images turned counter-clockwise by `degrees` and then scaled about their middles, `uint8`.

    What comes from outside an image is 0, and levels between pixels are interpolated linearly.
    """
    angle = torch.deg2rad(degrees.float())
    cos, sin, zero = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(scale)
    # Where each pixel of the result is taken from: the inverse, in coordinates whose y points down.
    inverse = torch.stack((torch.stack((cos, -sin, zero), -1), torch.stack((sin, cos, zero), -1)), 1)
    grid = affine_grid(inverse, list(images.shape), align_corners=False)
    return grid_sample(images.float(), grid, align_corners=False).round().clamp(0, 255).byte()
