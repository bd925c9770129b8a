"""Label files: what is read, and the one line that is told about what cannot be."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from search.data.labels import check_two_classes, read_labels, read_list
from search.errors import UserError

SHARED = Path(__file__).resolve().parents[3].parent / "shared" / "data"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with a.jpg, b.jpg, c.jpg and deep/d.jpg; their content does not matter here."""
    folder = tmp_path / "images"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.jpg", "b.jpg", "c.jpg", "deep/d.jpg"):
        (folder / name).touch()
    return folder


def write(folder: Path, content: str | bytes, name: str = "labels.txt") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def error_of(labels: Path, images: Path, groups: Path | None = None, **options: bool) -> str:
    with pytest.raises(UserError) as raised:
        read_labels(labels, images, groups, **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "content",
    [
        "img_name,target\na.jpg,0\nb.jpg,1\n",
        "img_path,target\na.jpg,0\nb.jpg,1",
        "target,img_name\n0,a.jpg\n1,b.jpg\n",
        "img_name\ttarget\na.jpg\t0\nb.jpg\t1\n",
        "\ufeffimg_name,target\r\na.jpg,0\r\nb.jpg,1\r\n",
        "img_name,target\ra.jpg,0\rb.jpg,1\r",
        "\n".join(["img_name, target", "", "a.jpg, 0", "", 'b.jpg," 1"', "", ""]),
        'img_name,target\n"a.jpg",0\n"b.jpg","1"\n',
        "img_name,target\na.jpg,0\nb.jpg,1\na.jpg,0\n./a.jpg,0\n",
    ],
    ids=["plain", "path", "reverse", "tab", "bom-crlf", "cr", "blanks", "quoted", "repeated"],
)
def test_reads_every_form_alike(content: str, images: Path, tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, content), images)
    expected = pd.DataFrame(
        {
            "img_name": ["a.jpg", "b.jpg"],
            "path": [str(images / "a.jpg"), str(images / "b.jpg")],
            "target": [0, 1],
            "group": ["a.jpg", "b.jpg"],
            "method": ["", ""],
        }
    )
    pd.testing.assert_frame_equal(table, expected)


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="/\\:\n\r\0"), min_size=1, max_size=20)
    .filter(lambda name: name.strip() and name not in {".", ".."})
    .filter(lambda name: len(name.encode()) < 100),
    min_size=1,
    max_size=8,
    unique=True,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    names=NAMES,
    targets=st.lists(st.integers(0, 1), min_size=8, max_size=8),
    delimiter=st.sampled_from(",\t"),
    line_end=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
    reverse=st.booleans(),
    header=st.sampled_from(["img_name", "img_path"]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory,
    names: list[str],
    targets: list[int],
    delimiter: str,
    line_end: str,
    bom: bool,
    reverse: bool,
    header: str,
) -> None:
    folder = tmp_path_factory.mktemp("round-trip")
    rows = [(header, "target"), *zip(names, map(str, targets), strict=False)]
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=line_end)
    writer.writerows(row[::-1] if reverse else row for row in rows)
    for name in names:
        (folder / name).touch()
    labels = folder.with_suffix(".txt")
    labels.write_bytes(b"\xef\xbb\xbf" * bom + stream.getvalue().encode())
    table = read_labels(labels, folder)
    assert table["img_name"].tolist() == names
    assert table["target"].tolist() == targets[: len(names)]
    assert all(Path(path).is_file() for path in table["path"])


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("img_name,target\na.jpg,0\n\nb.jpg,2\n", "line 4: target must be 0 or 1, found '2'"),
        ("img_name,target\na.jpg,\n", "line 2: target must be 0 or 1, found ''"),
        ("img_name,target\na.jpg,1.0\n", "line 2: target must be 0 or 1, found '1.0'"),
        ("name,label\na.jpg,0\n", "line 1: header must be img_name,target or img_path,target"),
        ("a.jpg,0\nb.jpg,1\n", "found 'a.jpg,0'"),
        ("img_name;target\na.jpg;0\n", "found 'img_name;target'"),
        ("img_name,target,score\na.jpg,0,1\n", "found 'img_name,target,score'"),
        ("img_name,img_path\na.jpg,0\n", "line 1: header must be"),
        ("img_name\na.jpg\n", "line 1: header must be img_name,target"),
        ("", "line 1: header must be"),
        ("img_name,target\n\n", "must list at least one image"),
        ("img_name,target\na,b.jpg,0\n", "line 2: must have 2 fields, found 3; quote"),
        ("img_name,target\na.jpg\n", "line 2: must have 2 fields, found 1"),
        ('img_name,target\na.jpg,0\n"b.jpg,1\n', "line 3: fields must be plain or quoted in full"),
        ('img_name,target\na.jpg,0\n"b\n.jpg",1\nc.jpg,2\n', "line 3: a field must end on its own"),
        ("img_name,target\n ,0\n", "line 2: an image must have a name"),
        (b"img_name,target\na.jpg,0\n\xe9.jpg,1\n", "line 3: text must be UTF-8, found byte 0xe9"),
        ("img_name,target\na.jpg,0\n".encode("utf-16"), "line 1: text must be UTF-8"),
        (
            "img_name,target\na.jpg,0\nb.jpg,1\na.jpg,1\n.\\a.jpg,1\n",
            "line 4: an image must have one target, found 'a.jpg' with 1 here and 0 on line 2 "
            "(images in conflict: 1)",
        ),
    ],
)
def test_wrong_content_is_told_with_its_line(
    content: str | bytes, expected: str, images: Path, tmp_path: Path
) -> None:
    labels = write(tmp_path, content)
    message = error_of(labels, images)
    assert message.startswith(str(labels))
    assert expected in message


@pytest.mark.parametrize(
    "name",
    [
        "../a.jpg",
        "..",
        "deep/../../a.jpg",
        "deep/../a.jpg",
        "/etc/passwd",
        "..\\a.jpg",
        "deep\\..\\..\\a.jpg",
        "C:\\a.jpg",
        "c:/a.jpg",
        "C:a.jpg",
        "\\\\server\\a.jpg",
    ],
)
def test_names_cannot_leave_the_folder(name: str, images: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, f"img_name,target\na.jpg,0\n{name},1\n")
    assert (
        f"line 3: names must be relative to the image folder and without '..', found '{name}'"
        in (error_of(labels, images))
    )


@pytest.mark.parametrize("name", ["deep/d.jpg", "deep\\d.jpg", "./deep//d.jpg"])
def test_folders_in_front_of_names(name: str, images: Path, tmp_path: Path) -> None:
    table = read_labels(write(tmp_path, f"img_path,target\n{name},1\n"), images)
    assert table["path"].tolist() == [str(images / "deep" / "d.jpg")]
    assert table["img_name"].tolist() == [name]


def test_names_with_dots_stay(images: Path, tmp_path: Path) -> None:
    for name in ("..a.jpg", "a..jpg", "...", "deep../e.jpg"):
        (images / name).parent.mkdir(exist_ok=True)
        (images / name).touch()
        assert len(read_labels(write(tmp_path, f"img_name,target\n{name},1\n"), images)) == 1


def test_linked_folders_and_files_are_followed(images: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(images, target_is_directory=True)
    (images / "e.jpg").symlink_to(images / "a.jpg")
    (images / "dangling.jpg").symlink_to(images / "nowhere.jpg")
    labels = write(tmp_path, "img_name,target\ne.jpg,1\ndangling.jpg,0\n")
    table = read_labels(labels, link, skip_missing=True)
    assert table["path"].tolist() == [str(link / "e.jpg")]


def test_absent_images(images: Path, tmp_path: Path) -> None:
    absent = [f"x{number}.jpg" for number in range(5)]
    lines = [
        "img_name,target",
        "a.jpg,0",
        *(f"{name},1" for name in absent),
        "no/e.jpg,1",
        "deep,1",
    ]
    labels = write(tmp_path, "\n".join(lines))
    message = error_of(labels, images)
    assert "7 of 8 are absent: x0.jpg, x1.jpg, x2.jpg, ...; " in message
    assert "--skip-missing" in message
    lines = list[str]()
    table = read_labels(labels, images, skip_missing=True, tell=lines.append)
    assert lines == [
        f"7 of 8 images listed in {labels.name} are absent and left out (--skip-missing): "
        "x0.jpg, x1.jpg, x2.jpg, ..."
    ]
    assert table["img_name"].tolist() == ["a.jpg"]
    assert table.index.tolist() == [0]


def test_all_images_absent_is_an_error_even_when_skipping(images: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, "img_name,target\nx.jpg,0\n")
    message = error_of(labels, images, skip_missing=True)
    assert "1 of 1 are absent: x.jpg; check that it is the right folder" in message


def test_missing_files_and_folders(images: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, "img_name,target\na.jpg,0\n")
    cases = {
        f"{tmp_path / 'no.txt'} must be a file, found nothing": (tmp_path / "no.txt", images),
        f"{images} must be a file, found a folder": (images, images),
        f"{tmp_path / 'no'} must be a folder of images, found nothing": (labels, tmp_path / "no"),
        f"{labels} must be a folder of images, found a file": (labels, labels),
    }
    for expected, (label_file, folder) in cases.items():
        assert expected in error_of(label_file, folder)


@pytest.mark.parametrize(
    "content",
    [
        "img_name,group\nb.jpg,y\nz.jpg,q\na.jpg,x\nb.jpg,y\n",
        "group\timg_path\ny\tb.jpg\nx\t.\\a.jpg\n",
    ],
)
def test_groups_are_joined_by_name(content: str, images: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, "img_name,target\na.jpg,0\nb.jpg,1\n")
    table = read_labels(labels, images, write(tmp_path, content, "groups.csv"))
    assert table["group"].tolist() == ["x", "y"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("img_name,group\nb.jpg,y\n", "2 of 3 have none: a.jpg, c.jpg; add lines for them"),
        ("img_name,group\na.jpg, \n", "line 2: an image must have a group, found none"),
        ("img_name,target\na.jpg,1\n", "line 1: header must be img_name,group or img_path,group"),
        ("img_name,group\na.jpg,x\na.jpg,y\n", "line 3: an image must have one group"),
        (
            "img_name,group,way\na.jpg,x,swap\n",
            "header must be img_name,group or img_path,group, and may have method, found",
        ),
        ("img_name,method\na.jpg,swap\n", "line 1: header must be img_name,group"),
        ("img_name,group,method\na.jpg,x\n", "line 2: must have 3 fields, found 2"),
        (
            "img_name,group,method\nb.jpg,x,swap\nb.jpg,x,splice\n",
            "line 3: an image must have one method, found 'b.jpg' with splice here and swap on",
        ),
        (
            "img_name,group,method\nc.jpg,x,swap\nb.jpg,x,swap\na.jpg,x,swap\n",
            "line 4: a real image must have no method, or 'real', found 'a.jpg' with 'swap'",
        ),
        (
            "img_name,group,method\na.jpg,x,\nb.jpg,x,Real\nc.jpg,x,swap\n",
            "line 3: a fake must not have the method 'real', found 'b.jpg' with 'Real'",
        ),
    ],
)
def test_wrong_group_files(content: str, expected: str, images: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, "img_name,target\na.jpg,0\nb.jpg,1\nc.jpg,1\n")
    groups = write(tmp_path, content, "groups.csv")
    message = error_of(labels, images, groups)
    assert message.startswith(str(groups))
    assert expected in message


@pytest.mark.parametrize(
    "content",
    [
        "img_name,group,method\na.jpg,x,\nb.jpg,y,swap\nc.jpg,y, splice \n",
        "method\timg_path\tgroup\nswap\tb.jpg\ty\nReal\ta.jpg\tx\nsplice\tc.jpg\ty\n",
    ],
    ids=["empty", "real"],
)
def test_a_group_file_may_name_the_methods(content: str, images: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, "img_name,target\na.jpg,0\nb.jpg,1\nc.jpg,1\n")
    table = read_labels(labels, images, write(tmp_path, content, "groups.csv"))
    assert table["group"].tolist() == ["x", "y", "y"]
    assert table["method"].tolist() == ["", "swap", "splice"]


def test_groups_need_not_cover_skipped_images(images: Path, tmp_path: Path) -> None:
    labels = write(tmp_path, "img_name,target\na.jpg,0\nx.jpg,1\n")
    groups = write(tmp_path, "img_name,group\na.jpg,g\n", "groups.csv")
    assert read_labels(labels, images, groups, skip_missing=True)["group"].tolist() == ["g"]


@pytest.mark.parametrize(
    "content",
    [
        "img_name\nb.jpg\na.jpg\nb.jpg\n",
        "img_path\nb.jpg\na.jpg",
        "target,img_name\n1,b.jpg\n,a.jpg\n",
    ],
)
def test_unlabelled_lists(content: str, images: Path, tmp_path: Path) -> None:
    lines = list[str]()
    table = read_list(write(tmp_path, content), images, tell=lines.append)
    repeats = ["1 of 3 lines of labels.txt name an image once more and are left out: b.jpg"]
    assert lines == (repeats if content.count("b.jpg") > 1 else [])
    assert table.columns.tolist() == ["img_name", "path", "group"]
    assert table["img_name"].tolist() == ["b.jpg", "a.jpg"]


def test_wrong_header_of_a_list_names_all_that_would_do(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match="img_name or img_path or img_name,target or img_path,target"
    ):
        read_list(write(tmp_path, "file\na.jpg\n"), images)


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        ([1, 1], "only fake (1) ones among 2"),
        ([0], "only real (0) ones among 1"),
        ([], "no image among 0"),
    ],
)
def test_one_class_alone_is_refused(targets: list[int], found: str) -> None:
    table = pd.DataFrame({"target": pd.Series(targets, dtype="int64")})
    with pytest.raises(
        UserError,
        match=re.escape(f"the set must hold both real (0) and fake (1) images, found {found}"),
    ):
        check_two_classes(table, "the set")


def test_two_classes_pass() -> None:
    check_two_classes(pd.DataFrame({"target": [0, 1]}), "the set")


@pytest.mark.skipif(not SHARED.exists(), reason=f"no real data in {SHARED}")
def test_real_data() -> None:
    faces, sample = SHARED / "dfdc-faces", SHARED / "multiffdi-sample"
    table = read_labels(
        faces / "trainset_label.txt", faces / "trainset", faces / "trainset_group.csv"
    )
    assert table["target"].value_counts().to_dict() == {1: 5600, 0: 1400}
    assert table["group"].nunique() < len(table)
    alone = read_labels(sample / "trainset_label.txt", sample / "trainset")
    with pytest.raises(UserError, match="only fake"):
        check_two_classes(alone, "the training set")
