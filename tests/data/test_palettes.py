"""Class names and colours are those published, and masks are drawn in them."""

import pytest
import torch

from hggraph.data import palettes
from hggraph.data.palettes import colorize, voc_colors


def test_numbers_of_classes():
    assert len(palettes.CITYSCAPES_LABELS) == 19
    assert len(palettes.CAMVID) == 11 and list(palettes.CAMVID_PARTS) == [*palettes.CAMVID, "void"]
    assert len(palettes.ADE20K) == len(palettes.ADE20K_COLORS) == 150
    assert len(palettes.PASCAL_CONTEXT) == 60
    assert len(palettes.COCO_STUFF_LABELS) == 171
    assert len(palettes.NYU_40) == len(palettes.NYU_40_COLORS) == 40


def test_names_are_different_and_clean():
    for names in [
        [name for name, _ in palettes.CITYSCAPES_LABELS.values()],
        palettes.ADE20K,
        list(palettes.PASCAL_CONTEXT.values()),
        list(palettes.COCO_STUFF_LABELS.values()),
        palettes.NYU_40,
    ]:
        assert len(set(names)) == len(names)
        assert all(name == " ".join(name.split()) != "" for name in names)


def test_some_that_are_known_by_heart():
    assert palettes.CITYSCAPES_LABELS[26] == ("car", (0, 0, 142))
    assert palettes.ADE20K[0] == "wall" and palettes.ADE20K_COLORS[0] == (120, 120, 120)
    assert palettes.ADE20K[12] == "person" and palettes.ADE20K[149] == "flag"
    assert {number: palettes.PASCAL_CONTEXT[number] for number in (2, 23, 258, 284, 427, 458)} == {
        2: "aeroplane",
        23: "bicycle",
        258: "motorbike",
        284: "person",
        427: "tvmonitor",
        458: "wood",
    }
    assert list(palettes.PASCAL_CONTEXT.values())[1:] == sorted(palettes.PASCAL_CONTEXT.values())[:1] + [
        name for name in sorted(palettes.PASCAL_CONTEXT.values())[1:] if name != "background"
    ]
    things = [name for label, name in palettes.COCO_STUFF_LABELS.items() if label < 92]
    assert len(things) == 80 and (things[0], things[-1]) == ("person", "toothbrush")
    assert palettes.COCO_STUFF_LABELS[92] == "banner" and palettes.COCO_STUFF_LABELS[182] == "wood"
    assert palettes.NYU_40[:2] == ("wall", "floor") and palettes.NYU_40[39] == "otherprop"


def test_camvid_has_32_colours():
    parts = [color for colors in palettes.CAMVID_PARTS.values() for color in colors.values()]
    assert len(set(parts)) == len(parts) == 32
    assert all(channel in (0, 64, 128, 192) for color in parts for channel in color)


def test_voc_colors():
    # the published colours of aeroplane, bicycle, sheep, tvmonitor and of the border
    expected = {1: (128, 0, 0), 2: (0, 128, 0), 17: (128, 64, 0), 20: (0, 64, 128), 255: (224, 224, 192)}
    assert {number: voc_colors(256)[number] for number in expected} == expected
    assert len(set(voc_colors(256))) == 256 and voc_colors(0) == ()
    for count in (-1, 257):
        with pytest.raises(ValueError, match=f"from 0 to 256, got {count}"):
            voc_colors(count)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.int16])
def test_colorize_is_a_look_up(dtype):
    palette = [(1, 2, 3), (4, 5, 6)]
    mask = torch.tensor([[[0, 1, 255 if dtype == torch.uint8 else -1], [1, 0, 2]]], dtype=dtype)
    out = colorize(mask, palette, other=(7, 8, 9))
    assert out.shape == (1, 3, 2, 3) and out.dtype == torch.uint8 and out.is_contiguous()
    for row in range(2):
        for column in range(3):
            number = int(mask[0, row, column])
            expected = palette[number] if number in (0, 1) else (7, 8, 9)
            assert tuple(out[0, :, row, column].tolist()) == expected


def test_colorize_takes_masks_that_are_not_contiguous_or_empty():
    mask = torch.arange(6).reshape(2, 3).T
    palette = voc_colors(6)
    assert torch.equal(colorize(mask, palette), colorize(mask.contiguous(), palette))
    assert colorize(torch.zeros(0, 4, 5, dtype=torch.uint8), palette).shape == (0, 3, 4, 5)
