"""The tools that prepare data for classifiers, and the data sets that read what they made."""

import bz2
import gzip
import importlib.util
import io
import lzma
import pickle
import shutil
import sys
import tarfile
import tracemalloc
import zipfile
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
from helpers.tools import ROOT, run_tool
from mmengine.registry import DATASETS, init_default_scope
from mmpretrain.datasets import CIFAR100
from PIL import Image

from pat_mmdet.utils import load_config

pytestmark = pytest.mark.filterwarnings("ignore:Only use 'alpha'")
TOOLS = ROOT / "tools/data"


def load(name):
    """Imports a tool, which belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(f"prepare_{name}", TOOLS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cifar10, cifar100, imagenet = (load(name) for name in ("cifar10", "cifar100", "imagenet"))


def run(tool, monkeypatch, *args):
    """Runs a tool as from the command line; gives its error."""
    monkeypatch.setattr(sys, "argv", ["tool", *map(str, args)])
    try:
        tool.main()
    except SystemExit as stop:
        message = str(stop.code)
        assert message.startswith("error: ") and "\n" not in message
        return message
    return None


def files(folder):
    return {
        path.relative_to(folder).as_posix(): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file()
    }


def jpeg(color=(200, 100, 50), size=(40, 30)):
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, "JPEG")
    return buffer.getvalue()


def data_set(config, root, split):
    """Builds a split of the data set of a config."""
    init_default_scope("mmpretrain")
    cfg = load_config(str(ROOT / f"configs/{config}.py"))[f"{split}_dataloader"].dataset
    return DATASETS.build({**cfg, "data_root": str(root)})


def test_missing_source_is_one_line(tmp_path):
    source = tmp_path / "nothing"
    output = run_tool("dataset_converters/imagenet.py", source, code=1, cwd=tmp_path)
    assert output.startswith("error: ") and output.count("\n") == 1 and str(source) in output
    assert files(tmp_path) == {}


# ------------------------------------------------------------------------------ CIFAR-100


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """An archive like that of CIFAR-100, with 3 + 2 images, and members that are none of it."""
    rng = np.random.default_rng(0)
    members = {
        name: pickle.dumps(
            dict(
                data=rng.integers(256, size=(count, 3072), dtype=np.uint8),
                fine_labels=[99, 0, 7][:count],
            )
        )
        for name, count in (("train", 3), ("test", 2))
    }
    members["meta"] = pickle.dumps(dict(fine_label_names=["a"]))
    sums = {name: cifar100.md5(content) for name, content in members.items()}
    monkeypatch.setattr(cifar100, "MD5_SUMS", sums)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    path = tmp_path / "cifar-100-python.tar.gz"
    write_tar(path, members)
    return path, members


def write_tar(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in {**members, "../../escaped": b"x", "file.txt~": b"y"}.items():
            info = tarfile.TarInfo(f"cifar-100-python/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def test_cifar100_is_unpacked_once_and_read(archive, tmp_path, monkeypatch, capsys):
    path, _ = archive
    out = tmp_path / "data/cifar100"
    assert run(cifar100, monkeypatch, path, "--out", out) is None
    assert "complete and as published (wrote train, test, meta)" in capsys.readouterr().out
    made = files(out)
    assert set(made) == {f"cifar-100-python/{name}" for name in ("train", "test", "meta")}
    assert set(files(tmp_path)) == {path.name, *(f"data/cifar100/{name}" for name in made)}
    for args in ((path,), ()):
        assert run(cifar100, monkeypatch, *args, "--out", out) is None
    assert "nothing to do" in capsys.readouterr().out
    assert files(out) == made

    for config in ("students/res18_cifar100", "students/deit_t_cifar100"):
        train, test = (data_set(config, out, split) for split in ("train", "val"))
        assert (len(train), len(test)) == (3, 2)
        samples = [train[i]["data_samples"] for i in range(3)]
        assert [sample.gt_label.item() for sample in samples] == [99, 0, 7]
        assert [sample.sample_idx for sample in samples] == [0, 1, 2]
        assert train[0]["inputs"].shape == test[0]["inputs"].shape == (3, 224, 224)


def test_cifar100_damaged_file(archive, tmp_path, monkeypatch, capsys):
    path, members = archive
    out = tmp_path / "data"
    run(cifar100, monkeypatch, path, "--out", out)
    (out / "cifar-100-python/test").write_bytes(b"damaged")
    error = run(cifar100, monkeypatch, "--out", out)
    assert error.startswith("error: test not in ") and cifar100.URL in error
    assert run(cifar100, monkeypatch, path, "--out", out) is None
    assert "(wrote test)" in capsys.readouterr().out
    assert (out / "cifar-100-python/test").read_bytes() == members["test"]


def test_wrong_archives_of_cifar100(archive, tmp_path, monkeypatch):
    path, members = archive
    out = tmp_path / "data"
    error = run(cifar100, monkeypatch, tmp_path / "none.tar.gz", "--out", out)
    assert "train, test, meta not in" in error and "none.tar.gz" in error
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a tar archive" in run(cifar100, monkeypatch, path, "--out", out)
    path.write_bytes(b"<html>not found</html>")
    assert "cannot be read as a tar archive" in run(cifar100, monkeypatch, path, "--out", out)
    write_tar(path, {"test": members["test"]})
    error = run(cifar100, monkeypatch, path, "--out", out)
    assert "is not the archive of CIFAR-100" in error and "cifar-100-python/train" in error
    write_tar(path, {**members, "train": b"another"})
    error = run(cifar100, monkeypatch, path, "--out", out)
    assert "cifar-100-python/train" in error and "is not the published file" in error
    assert not out.exists()


@contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < limit
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("open_archive", "kind"),
    [
        (gzip.open, tarfile.REGTYPE),
        (gzip.open, tarfile.GNUTYPE_LONGNAME),
        (gzip.open, tarfile.XHDTYPE),
        (bz2.open, tarfile.REGTYPE),
        (partial(lzma.open, preset=0), tarfile.REGTYPE),
    ],
)
def test_large_archives_do_not_fill_the_memory(open_archive, kind, archive, tmp_path, monkeypatch):
    path, _ = archive
    monkeypatch.setattr(cifar100, "MAX_BYTES", 2**20)
    header = tarfile.TarInfo("cifar-100-python/x")
    header.type, header.size = kind, 2**25
    with open_archive(path, "wb") as file:
        file.write(header.tobuf())
        file.write(bytes(header.size))
    with memory_below(2**24):
        error = run(cifar100, monkeypatch, path, "--out", tmp_path / "data")
    assert "holds more than 1 MB and is not the archive" in error
    assert not (tmp_path / "data").exists()


def test_sparse_members_do_not_fill_the_memory(archive, tmp_path, monkeypatch):
    path, _ = archive
    header = tarfile.TarInfo("cifar-100-python/train")
    header.type = tarfile.GNUTYPE_SPARSE
    block = bytearray(header.tobuf(tarfile.GNU_FORMAT))
    block[483:495] = b"%011o\0" % (2**33 - 1)  # its size with the zeros that are not in the file
    block[148:156] = b"%06o\0 " % tarfile.calc_chksums(block)[0]
    path.write_bytes(block + bytes(2**12))
    error = run(cifar100, monkeypatch, path, "--out", tmp_path / "data")
    assert "cifar-100-python/train has not its published size" in error


def test_unwritable_folder(archive, tmp_path, monkeypatch):
    path, _ = archive
    (tmp_path / "file").write_text("")
    error = run(cifar100, monkeypatch, path, "--out", tmp_path / "file")
    assert "cannot write to" in error and "--out" in error


def test_published_md5_sums():
    fresh = load("cifar100")
    listed = dict([*CIFAR100.train_list, *CIFAR100.test_list])
    listed[CIFAR100.meta["filename"]] = CIFAR100.meta["md5"]
    assert listed == fresh.MD5_SUMS and CIFAR100.url == fresh.URL
    assert CIFAR100.base_folder == fresh.FOLDER


# ------------------------------------------------------------------------------ CIFAR-10


def write_zip(path, names):
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, jpeg(size=(32, 32)))


def image_names(top="cifar10/", suffix="jpg"):
    return [
        f"{top}{split}/{label}/{i:04d}.{suffix}"
        for split, count in (("train", 2), ("val", 1))
        for label in cifar10.CLASSES
        for i in range(count)
    ]


@pytest.mark.parametrize("top", ["cifar10/", ""])
def test_cifar10_is_unpacked_once_and_read(top, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / "images.zip", tmp_path / "out/cifar10"
    strange = [
        "../train/cat/../../../escaped.jpg", "/train/cat/escaped.jpg/x.jpg", "train/cat/..",
        f"{top}train/cat/..\\escaped.jpg", f"{top}train/cat/._0001.jpg", f"{top}train/cow/1.jpg",
        f"{top}readme.txt", f"{top}train/cat/notes.txt", "__MACOSX/cifar10/train/cat/0.jpg",
    ]  # fmt: skip
    write_zip(path, [*strange, *image_names(top)])
    assert run(cifar10, monkeypatch, path, "--out", out) is None
    printed = capsys.readouterr().out
    assert "20 images in train, 10 images in val (30 written now)" in printed
    assert "model.method.num_data=20\n" in printed
    made = files(out)
    assert set(made) == set(image_names(""))
    assert len(files(tmp_path)) == len(made) + 1, "nothing beside the output folder"
    (out / "train/cat/0000.jpg").write_bytes(b"cut")
    (out / "val/dog/0000.jpg").unlink()
    assert run(cifar10, monkeypatch, path, "--out", out) is None
    assert "(2 written now)" in capsys.readouterr().out
    again = files(out)
    assert {name for name in made if made[name] != again[name]} == {
        "train/cat/0000.jpg",
        "val/dog/0000.jpg",
    }

    train, val = (data_set("students/res18_mini_cifar10", out, name) for name in ("train", "val"))
    assert (len(train), len(val)) == (20, 10)
    assert train.metainfo["classes"] == cifar10.CLASSES
    assert train[3]["inputs"].shape == val[0]["inputs"].shape == (3, 32, 32)
    sample = train[3]["data_samples"]
    assert (sample.gt_label.item(), sample.sample_idx) == (1, 3)


def test_wrong_zip_files_of_cifar10(tmp_path, monkeypatch):
    path, out = tmp_path / "images.zip", tmp_path / "out"
    assert "no zip file" in run(cifar10, monkeypatch, path, "--out", out)
    path.write_bytes(b"something else")
    assert "cannot be read as a zip file" in run(cifar10, monkeypatch, path, "--out", out)
    write_zip(path, ["readme.txt"])
    error = run(cifar10, monkeypatch, path, "--out", out)
    assert "no images (.jpg, .png) in train/airplane" in error and "and 17 more" in error
    write_zip(path, [name for name in image_names() if "val/ship" not in name])
    assert "no images (.jpg, .png) in val/ship; " in run(cifar10, monkeypatch, path, "--out", out)
    assert not out.exists()
    write_zip(path, image_names())
    content = bytearray(path.read_bytes())
    content[100:110] = bytes(10)
    path.write_bytes(content)
    assert "cannot be read as a zip file" in run(cifar10, monkeypatch, path, "--out", out)
    write_zip(path, image_names())
    (tmp_path / "file").write_text("")
    error = run(cifar10, monkeypatch, path, "--out", tmp_path / "file")
    assert "cannot write to" in error


def rewrite(path, find, replacement):
    """Change bytes of a zip file, as a header that says something else than is there."""
    content = path.read_bytes()
    assert find in content
    path.write_bytes(content.replace(find, replacement))


def test_zip_files_do_not_fill_memory_or_disk(tmp_path, monkeypatch):
    path, out = tmp_path / "images.zip", tmp_path / "out"
    names = image_names()

    def write(content, compression=zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(path, "w", compression) as archive:
            for name in names[:-1]:
                archive.writestr(name, b"image")
            archive.writestr(names[-1], content)

    def unpack():
        with memory_below(2**23):
            return run(cifar10, monkeypatch, path, "--out", out)

    large = bytes(2**24)
    write(large)
    assert f"the largest image ('{names[-1]}') to 16,777,216" in unpack()
    # Its header says 5 bytes.
    rewrite(path, len(large).to_bytes(4, "little"), (5).to_bytes(4, "little"))
    assert "cannot be read as a zip file (Bad CRC-32" in unpack()
    shutil.rmtree(out)
    monkeypatch.setattr(cifar10, "MAX_BYTES", 100)
    write(b"image")
    assert "at most 1,048,576 each and 100 together" in unpack()
    write(b"image", zipfile.ZIP_BZIP2)
    assert "compressed in an unusual way" in unpack()
    monkeypatch.setattr(cifar10, "MAX_LIST_BYTES", 1000)
    assert "it lists too many files" in unpack()
    assert not out.exists()


def test_the_config_names_the_classes_of_cifar10():
    cfg = load_config(str(ROOT / "configs/students/res18_mini_cifar10.py"))
    assert cfg.classes == cifar10.CLASSES == tuple(sorted(cifar10.CLASSES))
    assert cfg.data_root == "data/cifar10/"


# ------------------------------------------------------------------------------ ImageNet

WNIDS = [f"n{i:08d}" for i in range(1000)]


@pytest.fixture(scope="module")
def train_images(tmp_path_factory):
    """A training image of each class."""
    root = tmp_path_factory.mktemp("imagenet")
    content = jpeg()
    for wnid in WNIDS:
        (root / "train" / wnid).mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_1.JPEG").write_bytes(content)
    return root / "train"


@pytest.fixture
def root(tmp_path, train_images):
    """The training images and an empty folder for validation."""
    (tmp_path / "val").mkdir()
    (tmp_path / "train").symlink_to(train_images, target_is_directory=True)
    return tmp_path


def add_flat(root, count=3):
    names = [f"ILSVRC2012_val_{i:08d}.JPEG" for i in range(1, count + 1)]
    for name in names:
        (root / "val" / name).write_bytes(jpeg())
    return names


def test_imagenet_in_folders_of_classes(root, monkeypatch, capsys):
    for wnid in WNIDS:
        (root / "val" / wnid).mkdir()
        (root / "val" / wnid / "1.JPEG").write_bytes(b"not read here")
    assert run(imagenet, monkeypatch, root) is None
    printed = capsys.readouterr().out
    assert "val: 1000 images of 1000 classes\n  warning: the published set has 50000" in printed
    assert "model.method.num_data=1000\n" in printed
    assert not (root / "meta").exists()
    (root / "val" / WNIDS[3]).rename(root / "val/n12345678")
    error = run(imagenet, monkeypatch, root)
    assert "are not those of train: n00000003 is in one only, and 1 more" in error
    (root / "meta").mkdir()
    (root / "meta/val.txt").write_text("")
    assert "would be read instead of the folders of val" in run(imagenet, monkeypatch, root)


@pytest.mark.parametrize("kind", ["wnid", "number", "kaggle"])
def test_imagenet_with_labels_in_a_file(kind, root, monkeypatch, capsys):
    names = add_flat(root)
    labels = root / "labels.txt"
    text = {
        "wnid": "".join(f"{name} {WNIDS[5 * i]}\n" for i, name in enumerate(names)),
        "number": "".join(f"val/{name} {5 * i}\n" for i, name in enumerate(names)),
        "kaggle": "ImageId,PredictionString\n"
        + "".join(f"{n[:-5]},{WNIDS[5 * i]} 1 2 3 4 \n" for i, n in enumerate(names)),
    }[kind]
    labels.write_text(text + "\nILSVRC2012_val_00009999 n00000001\n")
    assert run(imagenet, monkeypatch, root, "--val-labels", labels) is None
    assert f"wrote {root / 'meta/val.txt'}" in capsys.readouterr().out
    expected = "".join(f"{name} {5 * i}\n" for i, name in enumerate(names))
    assert (root / "meta/val.txt").read_text() == expected
    made = files(root)
    assert run(imagenet, monkeypatch, root, "--val-labels", labels) is None
    assert run(imagenet, monkeypatch, root) is None
    assert "wrote" not in capsys.readouterr().out
    assert files(root) == made
    add_flat(root, 4)
    assert "does not have their labels" in run(imagenet, monkeypatch, root)
    if kind == "number":
        train, val = (data_set("students/deit_t_imagenet", root, name) for name in ("train", "val"))
        assert (len(train), len(val)) == (1000, 3)
        assert train[999]["data_samples"].gt_label.item() == 999
        assert train[999]["data_samples"].sample_idx == 999
        assert val[2]["data_samples"].gt_label.item() == 10
        assert train[0]["inputs"].shape == val[0]["inputs"].shape == (3, 224, 224)


def test_wrong_labels_of_imagenet(root, monkeypatch):
    error = run(imagenet, monkeypatch, root)
    assert "no images in" in error and "ILSVRC2012_img_val.tar" in error
    names = add_flat(root)
    assert "give a file of labels with --val-labels" in run(imagenet, monkeypatch, root)
    labels = root / "labels.txt"
    arguments = (imagenet, monkeypatch, root, "--val-labels", labels)
    assert "no file of labels" in run(*arguments)
    labels.write_text("490\n361\n171\n")
    assert "line 1" in (error := run(*arguments)) and "another order" in error
    labels.write_text(f"{names[0]} 3\n{names[1]} 1000\n")
    assert "line 2" in (error := run(*arguments)) and "'1000' is neither a wnid" in error
    labels.write_text(f"{names[0]} n99999999\n")
    assert "'n99999999' is neither" in run(*arguments)
    labels.write_text(f"{names[0]} 3\n{names[2]} 3\n")
    error = run(*arguments)
    assert f"1 of 3 images in val have no label in {str(labels)!r}, {names[1]}" in error
    assert not (root / "meta").exists()


def test_what_is_missing_of_imagenet(tmp_path, monkeypatch):
    error = run(imagenet, monkeypatch, tmp_path)
    assert "no folder" in error and "image-net.org" in error
    (tmp_path / "train/n00000001").mkdir(parents=True)
    assert "1 class folders" in (error := run(imagenet, monkeypatch, tmp_path))
    assert "and not 1000" in error
    (tmp_path / "train/cat").mkdir()
    assert "is no class of ImageNet" in run(imagenet, monkeypatch, tmp_path)
    (tmp_path / "train/cat").rmdir()
    for wnid in WNIDS:
        (tmp_path / "train" / wnid).mkdir(exist_ok=True)
    error = run(imagenet, monkeypatch, tmp_path)
    assert "no images in" in error and "unpack n00000000.tar there" in error
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/train.txt").write_text("")
    error = run(imagenet, monkeypatch, tmp_path)
    assert "would be read instead of the folders of train" in error


def test_a_list_of_imagenet_that_is_something_else(root, monkeypatch):
    add_flat(root)
    labels = root / "images.tar"
    with open(labels, "wb") as file:
        file.truncate(2**40)
    error = run(imagenet, monkeypatch, root, "--val-labels", labels)
    assert f"{str(labels)!r} is too large for a list of images" in error
