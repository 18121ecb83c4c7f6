"""Classes that are filled picture by picture: what is kept, what is refused, and that nothing of a file's name is trusted."""

from __future__ import annotations

import secrets

import pytest

from rift import archive, dataset, drafts, upload
from rift.archive import Limits
from rift.errors import DataError, SettingError
from rift.runs import Lab
from tests.uploads import picture, unpacked


@pytest.fixture
def lab(tmp_path) -> Lab:
    return Lab(tmp_path / "lab")


def filled(lab, each: int = 4) -> str:
    key = secrets.token_hex(16)
    for place in range(2):
        assert drafts.add(lab, key, place, [(f"{i}.png", picture(10 * place + i)) for i in range(each)]) == []
    return key


def test_a_draft_is_found_again_and_used_as_an_upload_would_be(lab, tmp_path):
    key = filled(lab)
    drafts.rename(lab, key, 0, "cat"), drafts.rename(lab, key, 1, "dog")
    draft = drafts.read(Lab(lab.root), key)
    assert [(one.name, len(one.pictures)) for one in draft.classes] == [("cat", 4), ("dog", 4)]
    images = drafts.use(lab, key, "pets")
    files = {f"{kind}/{i}.png": picture(10 * k + i) for k, kind in enumerate(("cat", "dog")) for i in range(4)}
    same = upload.read(unpacked(tmp_path / "pets", files), tmp_path / "other")
    assert images.digest == same.digest and images.name == "pets" and dataset.split(images, 0)
    assert drafts.picture(lab, key, draft.classes[0].pictures[0].hash, 8).shape == (8, 8, 3)
    assert not [path for path in (lab.root / "drafts").iterdir() if path.name.startswith((".use", ".loose"))]


def test_bad_pictures_are_named_and_the_good_ones_kept(lab):
    key = secrets.token_hex(16)
    good = picture(1)
    remarks = drafts.add(
        lab, key, 0, [("good.png", good), ("a/b\\evil<img>.gif", b"GIF89a"), ("cut.png", picture(2)[:60]), ("again.png", good)]
    )
    assert [(one.file, one.code) for one in remarks] == [
        ("evil<img>.gif", "data.image"),
        ("cut.png", "data.image"),
        ("again.png", "data.duplicate"),
    ]
    assert "a GIF" in remarks[0].message and "in this class already" in remarks[2].message
    assert drafts.read(lab, key).classes[0].remarks == remarks, "and they are still told after a reload"
    (twin,) = drafts.add(lab, key, 1, [("good.png", good)])
    assert "in the class 'Class 1' already" in twin.message
    draft = drafts.read(lab, key)
    assert [one.name for one in draft.classes[0].pictures] == ["good.png"] and draft.classes[1].pictures == []


def test_classes_are_added_removed_cleared_and_named(lab):
    key = filled(lab)
    drafts.append(lab, key)
    assert [one.name for one in drafts.read(lab, key).classes] == ["Class 1", "Class 2", "Class 3"]
    drafts.remove(lab, key, 0)
    assert [len(one.pictures) for one in drafts.read(lab, key).classes] == [4, 0]
    drafts.remove(lab, key, 0)
    draft = drafts.read(lab, key)
    assert len(draft.classes) == 2 and draft.count == 0, "two are left, the emptied one stays"
    assert [path.name for path in (lab.root / "drafts" / key).iterdir()] == ["draft.json"], "and no picture of them"
    for _ in range(4):
        drafts.append(lab, key)
    for act, words in (
        (lambda: drafts.append(lab, key), "6 classes already"),
        (lambda: drafts.rename(lab, key, 0, " \u200b "), "needs a name"),
        (lambda: drafts.rename(lab, key, 0, drafts.read(lab, key).classes[1].name.upper()), "Another class is called"),
    ):
        with pytest.raises(DataError, match=words):
            act()
    with pytest.raises(SettingError, match="no class 7"):
        drafts.add(lab, key, 6, [])
    assert drafts.rename(lab, key, 0, "x" * 500) == "x" * 59 + "…"


def test_what_cannot_be_used_is_told_and_nothing_is_stored(lab):
    with pytest.raises(DataError, match="no picture yet"):
        drafts.use(lab, secrets.token_hex(16))
    key = secrets.token_hex(16)
    drafts.add(lab, key, 0, [(f"{i}.png", picture(i)) for i in range(4)])
    with pytest.raises(DataError) as caught:
        drafts.use(lab, key)
    assert caught.value.code == "data.one_class" and list(lab.data.iterdir()) == []
    assert drafts.read(lab, key).count == 4, "the draft is still there"


def test_classes_named_like_parts_or_folders_are_just_classes(lab):
    key = filled(lab)
    drafts.rename(lab, key, 0, "train"), drafts.rename(lab, key, 1, "../../test/x")
    images = drafts.use(lab, key)
    assert images.classes == ("../../test/x", "train") and set(images.given.tolist()) == {""}


def test_a_draft_grows_no_further_than_an_upload_may(lab):
    key = filled(lab)
    for limits, code in ((Limits(files=9), "data.too_many"), (Limits(upload_bytes=archive.MB // 1000), "data.bomb")):
        with pytest.raises(DataError) as caught:
            drafts.add(lab, key, 0, [(f"{i}.png", picture(100 + i)) for i in range(2)], limits)
        assert caught.value.code == code
    assert drafts.read(lab, key).count == 8


def test_a_key_or_a_hash_from_outside_leads_nowhere(lab):
    """Each finds something there that could be read."""
    key = filled(lab)
    draft = (lab.root / "drafts" / key / "draft.json").read_bytes()
    for folder in (lab.root, lab.root / "drafts", lab.root / "aside", lab.root / "drafts/a/b"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "draft.json").write_bytes(draft)
        (folder / "secret").write_bytes(picture(2))
    for wrong in ("..", "../aside", "", ".", "a/b", "a/../../aside"):
        assert drafts.read(lab, wrong).count == 0, wrong
        with pytest.raises(DataError):
            drafts.picture(lab, wrong, "secret", 8)
    with pytest.raises(DataError):
        drafts.picture(lab, key, "../secret", 8)


def test_only_the_newest_drafts_are_kept(lab, monkeypatch):
    monkeypatch.setattr(drafts, "KEPT", 2)
    keys = [filled(lab, each=1) for _ in range(4)]
    assert [drafts.read(lab, key).count for key in keys] == [0, 0, 2, 2]


def test_a_table_and_its_pictures_dropped_together_are_read_as_a_folder(lab, tmp_path):
    loose = unpacked(tmp_path / "loose", {f"{i}.png": picture(i) for i in range(8)})
    (loose / "t.csv").write_text("file,label\n" + "".join(f"pic {i}.png,{'ab'[i % 2]}\n" for i in range(8)))
    files = [(f"C:\\Users\\me\\pic {i}.png", loose / f"{i}.png") for i in range(8)] + [("../labels.csv", loose / "t.csv")]
    with drafts.gathered(lab, files) as folder:
        images = upload.read(folder, lab.data, name="labels")
    assert images.classes == ("a", "b") and len(images) == 8 and not folder.exists()
    with drafts.gathered(lab, [("x.png", loose / "0.png"), ("y/x.png", loose / "1.png"), ("..", loose / "2.png")]) as folder:
        assert sorted(path.name for path in folder.iterdir()) == ["2 x.png", "picture", "x.png"]
