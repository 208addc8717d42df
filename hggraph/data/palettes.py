"""Published class names and colours of the data sets, and colours for masks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "ADE20K",
    "ADE20K_COLORS",
    "BINARY_COLORS",
    "CAMVID",
    "CAMVID_PARTS",
    "CITYSCAPES_LABELS",
    "COCO_STUFF_LABELS",
    "NYU_40",
    "NYU_40_COLORS",
    "PASCAL_CONTEXT",
    "Color",
    "colorize",
    "voc_colors",
]

Color = tuple[int, int, int]  # red, green, blue from 0 to 255


def voc_colors(count: int) -> tuple[Color, ...]:
    """Return the colours of the PASCAL VOC development kit: the bits of a number spread over red, green and blue.

    Args:
        count: How many, from 0 to 256; the first is black, and all are different.

    Raises:
        ValueError: if `count` is outside.

    Example:
        >>> voc_colors(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    if not 0 <= count <= 256:
        raise ValueError(f"`count` must be from 0 to 256, got {count}.")
    return tuple((_spread(number), _spread(number >> 1), _spread(number >> 2)) for number in range(count))


def colorize(mask: Tensor, palette: Sequence[Color], *, other: Color = (0, 0, 0)) -> Tensor:
    """Return a mask in the colours of its classes.

    Args:
        mask: Classes, any whole numbers, shape ``(..., H, W)``.
        palette: A colour for each class from 0.
        other: The colour of everything else, such as pixels that are ignored.

    Returns:
        Colours from 0 to 255, shape ``(..., 3, H, W)``, uint8.

    Example:
        >>> colorize(torch.tensor([[1, 255]]), [(0, 0, 0), (9, 8, 7)])[:, 0].T.tolist()
        [[9, 8, 7], [0, 0, 0]]
    """
    colors = torch.tensor([*palette, other], dtype=torch.uint8, device=mask.device)
    classes = mask.as_subclass(Tensor).long()
    known = (classes >= 0) & (classes < len(palette))
    return colors[torch.where(known, classes, len(palette))].movedim(-1, -3).contiguous()


def _spread(bits: int) -> int:
    """Put bits 0, 3, 6 of a number at places 7, 6, 5."""
    return sum(((bits >> 3 * place) & 1) << (7 - place) for place in range(3))


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


def _colors(text: str) -> tuple[Color, ...]:
    return tuple((int(word[:2], 16), int(word[2:4], 16), int(word[4:], 16)) for word in text.split())


BINARY_COLORS: tuple[Color, ...] = ((0, 0, 0), (255, 255, 255))

# Cityscapes: label id of the *_labelIds.png files -> name and colour, of the 19 classes that are evaluated, in order;
# the other ids from 0 to 33 are not.
CITYSCAPES_LABELS: dict[int, tuple[str, Color]] = {
    7: ("road", (128, 64, 128)),
    8: ("sidewalk", (244, 35, 232)),
    11: ("building", (70, 70, 70)),
    12: ("wall", (102, 102, 156)),
    13: ("fence", (190, 153, 153)),
    17: ("pole", (153, 153, 153)),
    19: ("traffic light", (250, 170, 30)),
    20: ("traffic sign", (220, 220, 0)),
    21: ("vegetation", (107, 142, 35)),
    22: ("terrain", (152, 251, 152)),
    23: ("sky", (70, 130, 180)),
    24: ("person", (220, 20, 60)),
    25: ("rider", (255, 0, 0)),
    26: ("car", (0, 0, 142)),
    27: ("truck", (0, 0, 70)),
    28: ("bus", (0, 60, 100)),
    31: ("train", (0, 80, 100)),
    32: ("motorcycle", (0, 0, 230)),
    33: ("bicycle", (119, 11, 32)),
}

# CamVid: the 11 classes of SegNet's copy, their colours there, and the colours of those of the 32 original classes
# that each is made of.
CAMVID: dict[str, Color] = {
    "sky": (128, 128, 128),
    "building": (128, 0, 0),
    "pole": (192, 192, 128),
    "road": (128, 64, 128),
    "pavement": (60, 40, 222),
    "tree": (128, 128, 0),
    "sign": (192, 128, 128),
    "fence": (64, 64, 128),
    "car": (64, 0, 128),
    "pedestrian": (64, 64, 0),
    "bicyclist": (0, 128, 192),
}
CAMVID_PARTS: dict[str, dict[str, Color]] = {
    "sky": {"Sky": (128, 128, 128)},
    "building": {
        "Building": (128, 0, 0),
        "Archway": (192, 0, 128),
        "Bridge": (0, 128, 64),
        "Tunnel": (64, 0, 64),
        "Wall": (64, 192, 0),
    },
    "pole": {"Column_Pole": (192, 192, 128), "TrafficCone": (0, 0, 64)},
    "road": {"Road": (128, 64, 128), "LaneMkgsDriv": (128, 0, 192), "LaneMkgsNonDriv": (192, 0, 64)},
    "pavement": {"Sidewalk": (0, 0, 192), "ParkingBlock": (64, 192, 128), "RoadShoulder": (128, 128, 192)},
    "tree": {"Tree": (128, 128, 0), "VegetationMisc": (192, 192, 0)},
    "sign": {"SignSymbol": (192, 128, 128), "Misc_Text": (128, 128, 64), "TrafficLight": (0, 64, 64)},
    "fence": {"Fence": (64, 64, 128)},
    "car": {
        "Car": (64, 0, 128),
        "SUVPickupTruck": (64, 128, 192),
        "Truck_Bus": (192, 128, 192),
        "Train": (192, 64, 128),
        "OtherMoving": (128, 64, 64),
    },
    "pedestrian": {
        "Pedestrian": (64, 64, 0),
        "Child": (192, 128, 64),
        "CartLuggagePram": (64, 0, 192),
        "Animal": (64, 128, 64),
    },
    "bicyclist": {"Bicyclist": (0, 128, 192), "MotorcycleScooter": (192, 0, 192)},
    "void": {"Void": (0, 0, 0)},
}

# ADE20K's scene parsing benchmark (SceneParse150); labels 1 to 150, 0 is other.
ADE20K = _names("""
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door,
    table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field,
    armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard,
    chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway,
    case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower,
    book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine,
    hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane,
    dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship,
    fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag,
    minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher,
    screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
""")
ADE20K_COLORS = _colors("""
    787878 b47878 06e6e6 503232 04c803 787850 8c8c8c cc05ff e6e6e6 04fa07 e005ff ebff07 96053d 787846 08ff33 ff0652
    8fff8c ccff04 ff3307 cc4603 0066c8 3de6fa ff0633 0b66ff ff0747 ff09e0 0907e6 dcdcdc ff095c 7009ff 08ffd6 07ffe0
    ffb806 0aff47 ff290a 07ffff e0ff08 6608ff ff3d06 ffc207 ff7a08 00ff14 ff0829 ff0599 0633ff eb0cff a09614 00a3ff
    8c8c8c fa0a0f 14ff00 1fff00 ff1f00 ffe000 99ff00 0000ff ff4700 00ebff 00adff 1f00ff 0bc8c8 ff5200 00fff5 003dff
    00ff70 00ff85 ff0000 ffa300 ff6600 c2ff00 008fff 33ff00 0052ff 00ff29 00ffad 0a00ff adff00 00ff99 ff5c00 ff00ff
    ff00f5 ff0066 ffad00 ff0014 ffb8b8 001fff 00ff3d 0047ff ff00cc 00ffc2 00ff52 000aff 0070ff 3300ff 00c2ff 007aff
    00ffa3 ff9900 00ff0a ff7000 8fff00 5200ff a3ff00 ffeb00 08b8aa 8500ff 00ff5c b800ff ff001f 00b8ff 00d6ff ff0070
    5cff00 00e0ff 70e0ff 46b8a0 a300ff 9900ff 47ff00 ff00a3 ffcc00 ff008f 00ffeb 85ff00 ff00eb f500ff ff007a fff500
    0abed4 d6ff00 00ccff 1400ff ffff00 0099ff 0029ff 00ffcc 2900ff 29ff00 ad00ff 00f5ff 4700ff 7a00ff 00ffb8 005cff
    b8ff00 0085ff ffd600 19c2c2 66ff00 5c00ff
""")

# PASCAL-Context: label of the full annotation (0 to 459) -> the background and the 59 classes that are evaluated. In
# this order, that of the labels, lie the PNG files that the usual converters write.
_PASCAL_CONTEXT_LABELS = (
    *(0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144),
    *(158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355),
    *(360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)
PASCAL_CONTEXT: dict[int, str] = dict(
    zip(
        _PASCAL_CONTEXT_LABELS,
        _names("""
    background, aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, building, bus, cabinet,
    car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, door, fence, floor, flower, food, grass,
    ground, horse, keyboard, light, motorbike, mountain, mouse, person, plate, platform, pottedplant, road, rock,
    sheep, shelves, sidewalk, sign, sky, snow, sofa, table, track, train, tree, truck, tvmonitor, wall, water,
    window, wood
"""),
        strict=True,
    )
)

# COCO-Stuff: names of the labels 1 to 182, without the 11 that were never annotated; 0 is unlabelled.
_NEVER_ANNOTATED = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
COCO_STUFF_LABELS: dict[int, str] = {
    label: name
    for label, name in enumerate(
        _names("""
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, street sign,
    stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, hat,
    backpack, umbrella, shoe, eye glasses, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite,
    baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife,
    spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch,
    potted plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote, keyboard, cell
    phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase, scissors, teddy bear, hair
    drier, toothbrush, hair brush, banner, blanket, branch, bridge, building-other, bush, cabinet, cage, cardboard,
    carpet, ceiling-other, ceiling-tile, cloth, clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt,
    door-stuff, fence, floor-marble, floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other,
    fruit, furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal, mirror-stuff, moss,
    mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic, platform, playingfield, railing,
    railroad, river, road, rock, roof, rug, salad, sand, sea, shelf, sky-other, skyscraper, snow, solid-other,
    stairs, stone, straw, structural-other, table, tent, textile-other, towel, tree, vegetable, wall-brick,
    wall-concrete, wall-other, wall-panel, wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind,
    window-other, wood
"""),
        start=1,
    )
    if label not in _NEVER_ANNOTATED
}

# NYU-Depth-v2: the 40 classes of Gupta et al. (CVPR 2013), spelled as there, in ScanNet's colours; labels 1 to 40.
NYU_40 = _names("""
    wall, floor, cabinet, bed, chair, sofa, table, door, window, bookshelf, picture, counter, blinds, desk, shelves,
    curtain, dresser, pillow, mirror, floor mat, clothes, ceiling, books, refridgerator, television, paper, towel,
    shower curtain, box, whiteboard, person, night stand, toilet, sink, lamp, bathtub, bag, otherstructure,
    otherfurniture, otherprop
""")
NYU_40_COLORS = _colors("""
    aec7e8 98df8a 1f77b4 ffbb78 bcbd22 8c564b ff9896 d62728 c5b0d5 9467bd c49c94 17becf b24c4c f7b6d2 42bc66 dbdb8d
    8c39c5 cab934 33b0cb c83683 5cc13d 4e47b7 ac7252 ff7f0e 5ba38a 99629c 8c9965 9edae5 647d9a b27f87 78b980 926fc2
    2ca02c 708090 60cfd1 e377c2 d55cb0 5e6ad3 5254a3 645590
""")
