"""Natural words and the rows (0 to 999) of an ImageNet-1k classifier that they name.

A word is a lemma of one or more of the 1000 classes (all its rows are kept), or an everyday word of `COARSE`, which stands for
several classes. A word that is neither is unknown: nothing is guessed. Class names come from WordNet 3.0 by way of
timm's `ImageNetInfo`; the table of everyday words and the words in `NEAREST` are our choice. The order of the rows is that of the
sorted WordNet ids (Russakovsky et al. 2015, arXiv 1409.0575).
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "assets" / "vocabulary.json"

TEMPLATES = (
    "{}",
    "a {}",
    "the {}",
    "a photo of a {}",
    "a photo of the {}",
    "a photo of {}",
    "a photo of my {}",
    "a photo of one {}",
    "a photo of many {}",
    "a photo of a small {}",
    "a photo of a large {}",
    "a good photo of a {}",
    "a bad photo of a {}",
    "a blurry photo of a {}",
    "a low resolution photo of a {}",
    "a cropped photo of the {}",
    "a bright photo of a {}",
    "a dark photo of a {}",
    "a close-up photo of a {}",
    "a color photo of a {}",
    "a black and white photo of the {}",
    "an image of a {}",
    "an image of the {}",
    "an image of {}",
    "a picture of a {}",
    "a picture of the {}",
    "a picture of two {}",
    "a photograph of a {}",
    "a drawing of a {}",
    "this is a {}",
    "this is a photo of a {}",
    "there is a {} in the photo",
    "a photo of a {}, a type of animal",
)

# Everyday words: name or names, then rows. A word that is a lemma too has the rows of both (plane: the tool and the aircraft).
COARSE = """
animal 0-397 | fish 0-6 389-397 | shark 2-4 | ray 5 6 | salmon 391 | clownfish 393 | bird 7-24 80-100 127-146 | chicken 7 8|
rooster 7 | finch 10-14 | eagle 22 | owl 24 | grouse 80-83 | parrot 87-90 | cockatoo 89 | duck 97 98 | swan 100 | stork 127 128|
heron 131-133 | egret 132 | penguin 145 | amphibian 25-32 | salamander 25-29 | newt 26 27 | frog 30-32 | toad 32 | reptile 33-68|
turtle 33-37 | sea turtle 33 34 | tortoise 37 | lizard 38-48 | gecko 38 | chameleon 40 47 | crocodile 49 | alligator 50|
dinosaur 51 | snake 52-68 | boa 61 | python 62 | cobra 63 | mamba 64 | viper 66-68 | rattlesnake 67 68 | arachnid 70-78|
spider 72-77 | insect, bug 300-326 | beetle 300-307 | butterfly 321-326 | worm 110 111 | coral 109 973|
mollusk, mollusc 112-117 | crustacean 118-126 | crab 118-121 | lobster 122 123 | mammal 101-106 147-299 330-388|
marsupial 104-106 | kangaroo 104 | whale 147 148 | dolphin 148 | seal 150 | dog, puppy 151-268 | hound 160-177 | greyhound 171|
foxhound 166 167 | wolfhound 169 170 | terrier 179-204 | wheaten terrier 202 | schnauzer 196-198 | retriever 205-209|
labrador 208 | pointer, german shorthaired, german shorthaired pointer 210 | setter 212-214 | spaniel 152 156 215-221|
japanese chin 152 | sheepdog 229 230 | pinscher 236 237 | mastiff 243 244 | bulldog 245 | husky 248 250 | leonberger 255|
corgi 263 264 | poodle 265-267 | wolf 269-271 | wild dog 273-275 | fox 277-280 | cat, domestic cat, house cat, kitten 281-285|
persian 283 | egyptian mau 285 | big cat 286 288-293 | bear 294-297 | rabbit, bunny 330 332 | rodent 333-338 | squirrel 335|
horse 339 | cow, cattle 345 | buffalo 346 347 | sheep 348 349 | goat 350 | antelope, deer 351-353 | camel 354 | sloth 364|
primate 365-384 | ape 365-369 | monkey 370-382 | lemur 383 384 | elephant 101 385 386|
car, automobile, motorcar 407 436 468 511 609 627 656 661 751 817 | truck, lorry 555 569 675 717 734 864 867 | van 656 675 734|
bus 654 779 874 | train 466 547 565 705 820 | locomotive 547 820 | railway car 565 705 | bicycle, bike 444 671 | camper 757|
motorcycle, motorbike 665 670 | wheel 479 | ship 403 510 628 724 780 913 | boat 472 484 554 576 625 814 871 914|
cruise ship 628 | sailboat, sailing boat 484 780 871 914 | airplane, aeroplane, plane 404 895 | aircraft 404 405 417 895|
jet 404 895 | fighter jet 895 | spacecraft, spaceship 812 | rocket 657 744|
vehicle 407 408 436 444 466 468 511 547 555 561 565 569 573 575 609 627 654 656 661 665 670 671 675 705 717 734 751 757 779 803
817 820 829 847 864 866 867 870 874|
building 425 449 483 497 498 580 624 660 663 668 698 727 743 762 832 | house 425 449 500 660 915 | tower 437 900 | temple 832|
bridge 821 839 888 | shop, store 415 424 454 467 509 582 788 860 865 | fence 489 716 912 | door 799 | roof 853 858|
mountain 970 980 | beach 977 978 | ocean 978 | lake 975 | landscape 970 972 975-980 | food 924-967 969 | fruit 948-957|
apple 948 | vegetable 936-946 | squash 939-942 | cabbage 936 | pepper, sweet pepper 945 | bread 930-932 | sandwich 933 934|
burger, hamburger 933 | soup 925 | pasta 959 | dessert 927-929 | potato 935 | maize 987 | drink, beverage 966 967 969 | wine 966|
coffee 967 | flower 985 986 | orchid 986 | fungus, fungi 991-997 | mushroom 992 997|
furniture 423 431 453 493 495 516 520 526 532 548 553 559 564 648 703 736 765 831 857 894 | chair 423 559 765 857|
table 532 736 | bed 431 516 520 564 831 | couch, sofa 831 | bench 703 | lamp 846 | cabinet 495 553 648 | bookshelf 453|
curtain 794 854 | carpet, rug 741 | bag 414 636 728 748 | handbag 748 | basket 588 790 | box 478 519|
bottle 440 720 737 898 907 | cup, mug 504 | bowl 659 809 | pan 567 | spoon 910 | oven 544 651 | fridge 760 | jug 899 901|
glass 441 572|
clothing, clothes 399 400 411 445 459 474 501 568 578 601 608 610 614 617 638 639 652 655 689 697 735 775 834 841 842 869|
shoe 502 514 630 770 774 | footwear 502 514 630 770 774 | sneaker 770 | boot 514 | hat 439 452 515 808 | helmet 518 560 715|
tie, necktie 451 457 906 | shirt 610 | coat 568 617 869 | sweater 474 841 | skirt 601 655 689 | dress 578 | glove 658|
swimsuit 445 638 639 842|
instrument, musical instrument 401 402 420 432 486 494 513 541 546 558 566 577 579 593 594 641 642 683 684 687 699 776 822 875
881 889|
guitar 402 546 | piano 579 881 | clock 409 530 892 | watch 531 | telephone, phone 487 528 707 | smartphone 487 | tv 851|
computer 527 590 620 681 | keyboard 508 878 | camera 732 759 | compass 635 | fan 545 | heater 811|
ball 429 430 522 574 722 768 805 852 890 | football 768 805 | gun, firearm 413 763 764 | pistol 763|
weapon 413 471 657 744 763 764 | knife 499 623 | axe, ax 596 | saw 491 | drill 740 | pen 418 563 749 | brush 696 | book 917 921|
tent 672 | sign 919 | lock 507 695
"""

# Everyday words without a class of their own kind: their rows are the nearest kin, not the thing itself.
NEAREST = frozenset(
    {"beverage", "book", "cow", "deer", "dolphin", "drink", "egyptian mau", "flower", "football", "glass", "house", "kitten"}
    | {"landscape", "motorbike", "motorcycle", "ocean", "potato", "puppy", "rocket", "smartphone", "tower"}
)

# Second names whose first meaning here is a part of the body (ear, hip, nail and nipple stay: each is a class's first name).
OMITTED = frozenset({"cell", "mole", "groin", "head"})

_ABOUT = (
    "Rows (0 to 999) of an ImageNet-1k classifier, in the order of the sorted WordNet ids, by natural word. Written by "
    "rift.vocabulary.build from the class names in timm's ImageNetInfo (WordNet lemmas) and a table of everyday words by hand. "
    "'nearest' lists the everyday words whose rows are their nearest kin and not the thing itself."
)
_DETERMINERS = r"(?:a|an|the|one|two|three|four|five|many|some|several|my)"
_QUALITIES = (
    r"(?:good|bad|blurry|low resolution|high resolution|cropped|bright|dark|close up|colou?r|black and white|clean|natural)"
)
_MEDIA = r"(?:photo|photograph|picture|image|snapshot|drawing|sketch|painting|close up)s?"
_PROMPT = re.compile(
    rf"(?:(?:this|that|it|there) is |(?:these|those|there) are )?(?:{_DETERMINERS} )?(?:{_QUALITIES} )*{_MEDIA} of "
    rf"(?:{_DETERMINERS} )?((?:small |large |big |little )?)(.+)"
)
_SENTENCE = re.compile(rf"(?:(?:this|that|it|there) is|(?:these|those|there) are) (?:{_DETERMINERS} )?(.+)")
_ARTICLE = re.compile(rf"{_DETERMINERS} (.+)")
_SUFFIX = re.compile(rf"(.+?)(?:,? (?:a|some) (?:type|kind) of .+| in (?:the|this) {_MEDIA})")
_IRREGULAR = {"mice": "mouse", "geese": "goose", "oxen": "ox", "calves": "calf"}


def build() -> dict[str, Any]:
    """Make the content of `assets/vocabulary.json` from timm's class names and `COARSE`; only this function needs timm."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    found: dict[str, set[int]] = {}
    for row in range(1000):
        for lemma in info.index_to_description(row).split(","):
            found.setdefault(_plain(lemma), set()).add(row)
    for word in OMITTED:
        found.pop(word, None)
    for words, rows_ in _coarse():
        for word in words:
            found.setdefault(word, set()).update(rows_)
    return {"about": _ABOUT, "nearest": sorted(NEAREST), "names": {word: sorted(found[word]) for word in sorted(found)}}


def _coarse() -> Iterator[tuple[list[str], list[int]]]:
    for entry in COARSE.split("|"):
        words = re.findall(r"[a-z][a-z ]*[a-z]", entry)
        ends = [[int(end) for end in part.split("-")] for part in re.findall(r"[0-9-]+", entry)]
        yield words, [row for end in ends for row in range(end[0], end[-1] + 1)]


@functools.cache
def _known() -> dict[str, tuple[int, ...]]:
    return {word: tuple(rows_) for word, rows_ in json.loads(PATH.read_text(encoding="utf-8"))["names"].items()}


def names() -> dict[str, tuple[int, ...]]:
    """Return every known word in its folded form with its rows, sorted."""
    return dict(_known())


@functools.cache
def nearest() -> frozenset[str]:
    """Return the known words whose rows are only the nearest kin of what they name (deer: three antelopes)."""
    return frozenset(json.loads(PATH.read_text(encoding="utf-8"))["nearest"])


def fold(label: str) -> str:
    """Return the canonical form of a label: lower case, no underscores, hyphens, articles or prompt, a known singular.

    `A photo of two Golden_Retrievers.` becomes `golden retriever`. An unknown word
    keeps its number. Folding twice changes nothing.
    """
    text = _plain(label)
    while (word := _lookup(text)) is None and (shorter := _shorter(text)) != text:
        text = shorter
    return text if word is None else word


def rows(label: str) -> tuple[int, ...] | None:
    """Return the classifier rows (0 to 999) that a label names, or None where the label is unknown."""
    return _known().get(fold(label))


def class_rows(labels: Sequence[str]) -> tuple[list[str], list[tuple[int, ...]], list[str]]:
    """Divide labels into the known ones, their rows in the same order, and the unknown ones, all as written."""
    found = [(label, rows(label)) for label in labels]
    known = [(label, some) for label, some in found if some is not None]
    return [label for label, _ in known], [some for _, some in known], [label for label, some in found if some is None]


def _plain(text: str) -> str:
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).replace("’", "'")
    return re.sub(r"[\s_\-‐‑–]+", " ", text).strip(' .,;:!?"')


def _lookup(text: str) -> str | None:
    """Return the known word that a plain text is, or is the plural of."""
    return next((word for word in (text, *_singulars(text)) if word in _known()), None)


def _singulars(text: str) -> Iterator[str]:
    *first, last = text.split(" ")
    endings = (("ies", "y"), ("ves", "f"), ("ves", "fe"), ("es", ""), ("s", ""))
    for word in [_IRREGULAR.get(last, "")] + [last[: -len(end)] + new for end, new in endings if last.endswith(end)]:
        if word:
            yield " ".join([*first, word])


def _shorter(text: str) -> str:
    """Take one layer of a prompt off, the outermost first; its `large` goes too unless it is part of a name (`big cat`)."""
    if match := _PROMPT.fullmatch(text):
        size, rest = match.groups()
        return size + rest if _lookup(size + rest) else _plain(rest)
    for pattern in (_SUFFIX, _SENTENCE, _ARTICLE):
        if match := pattern.fullmatch(text):
            return _plain(match[1])
    return text
