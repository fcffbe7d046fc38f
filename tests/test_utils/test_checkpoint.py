"""Checkpoints are read without running code, and weights are loaded whole or not at all."""

import os
import pickle
import random
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MMLogger
from torch import nn

from pat_mmdet.utils import load_weights, read_checkpoint
from pat_mmdet.utils.checkpoint import PickledObject


@pytest.fixture(autouse=True)
def torchs_own_default(monkeypatch):
    """Other tests of the process may have switched safe loading on for all of torch."""
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)


def save(content, path, **options):
    torch.save(content, path, **options)
    return str(path)


@pytest.fixture(params=["zip", "legacy"])
def good(request, tmp_path):
    state = dict(weight=torch.randn(50, 40))
    options = {} if request.param == "zip" else dict(_use_new_zipfile_serialization=False)
    return save({"state_dict": state, "meta": dict(epoch=3)}, tmp_path / "good.pth", **options)


def test_good_checkpoint_is_read(good):
    checkpoint = read_checkpoint(good)
    assert checkpoint["meta"] == {"epoch": 3} and checkpoint["state_dict"]["weight"].shape[0] == 50


@pytest.mark.parametrize("path", ["nowhere/x.pth", "", "."])
def test_missing_checkpoint(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"checkpoint {path!r} does not exist"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_truncated_checkpoint(good, tmp_path, share):
    whole = (tmp_path / "good.pth").read_bytes()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(whole[: int(share * len(whole))])
    size = cut.stat().st_size
    with pytest.raises(ValueError, match=rf"cut.pth' \({size} bytes\) cannot be read") as error:
        read_checkpoint(str(cut))
    assert "truncated" in str(error.value) and "\n" not in str(error.value)
    assert error.value.__suppress_context__


def test_flipped_bits_are_found(tmp_path):
    """Torch compares no checksums: most of these files it reads with other weights."""
    path = tmp_path / "good.pth"
    expected = torch.randn(2000)
    torch.save({"state_dict": {"weight": expected}, "meta": {}}, path)
    content, draw = path.read_bytes(), random.Random(0)
    refused = 0
    for _ in range(80):
        flipped = bytearray(content)
        flipped[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            # A bit of the padding between records changes nothing.
            assert torch.equal(read_checkpoint(str(path))["state_dict"]["weight"], expected)
        except ValueError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 70


def test_empty_checkpoint(tmp_path):
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match=r"empty.pth' \(0 bytes\) cannot be read.*truncated"):
        read_checkpoint(str(tmp_path / "empty.pth"))


TEXTS = {
    "html": "<!DOCTYPE html><html>not found</html>",
    "git-lfs": "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 123\n",
    "memo": "hello world\n",
    "stack": "this is text\n",
}


@pytest.mark.parametrize("kind", TEXTS)
def test_text_file_is_no_checkpoint(tmp_path, kind):
    (tmp_path / "page.pth").write_text(TEXTS[kind])
    with pytest.raises(ValueError, match=r"page.pth'.*no torch checkpoint") as error:
        read_checkpoint(str(tmp_path / "page.pth"))
    assert "foreign code" not in str(error.value), "there is no pickled object in it"


class Plain:
    """An object without weights."""


def test_objects_become_inert_placeholders(tmp_path):
    content = {
        "state_dict": {"weight": torch.arange(3)},
        "history": HistoryBuffer([1.0], [1]),
        "score": np.float64(0.5),
        "array": np.arange(3),
        "function": os.path.join,
        "meta": {"classes": ("cat", "dog"), "epoch": 3},
    }
    known = set(torch.serialization.get_safe_globals())
    loaded = read_checkpoint(save(content, tmp_path / "c.pth"))
    assert loaded["state_dict"]["weight"].tolist() == [0, 1, 2]
    assert loaded["meta"] == content["meta"]
    for key in ("history", "score", "array"):
        assert isinstance(loaded[key], PickledObject), key
        assert not hasattr(loaded[key], "__dict__")
    assert issubclass(loaded["function"], PickledObject)
    assert set(torch.serialization.get_safe_globals()) == known, "the next file is read as strictly"


def test_needed_objects_are_refused(tmp_path):
    path = save({"history": HistoryBuffer()}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c.pth' is refused.*foreign code.*HistoryBuffer.*alone"):
        read_checkpoint(path, allow_objects=False)


def test_pickled_network(tmp_path):
    path = save({"model": Plain()}, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="holds a pickled Plain instead of weights"):
        load_weights(nn.Linear(2, 1), path)
    with pytest.raises(ValueError, match="holds a Plain, not a dict"):
        read_checkpoint(save(Plain(), tmp_path / "c.pth"))


class Trap:
    """Makes a folder when it is unpickled; its state and items do the same."""

    def __init__(self, folder):
        self.folder = folder

    def __setstate__(self, state):
        os.mkdir(state["folder"])

    def __setitem__(self, key, value):
        os.mkdir(value)

    def append(self, value):
        os.mkdir(value)


def call(function, *args):
    """An object that calls a function when it is unpickled."""
    return type("Call", (), {"__reduce__": lambda self: (function, args)})()


def opcodes(text):
    """Pickle opcodes by their names; ``c:module:name`` is a global, ``'text'`` a string."""
    out = b""
    for word in text.split():
        if word.startswith("c:"):
            _, owner, name = word.split(":")
            out += pickle.GLOBAL + f"{owner}\n{name}\n".encode()
        elif word.startswith("'"):
            raw = word.strip("'").encode()
            out += pickle.BINUNICODE + len(raw).to_bytes(4, "little") + raw
        else:
            out += getattr(pickle, word)
    return out


def zipped(folder, pickled):
    """A checkpoint whose object is given as pickle opcodes."""
    path = folder / "raw.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("raw/data.pkl", pickled)
        file.writestr("raw/version", "3\n")
    return str(path)


MAKE_TRAP = """'__import__("os").mkdir("{}")' TUPLE1"""
HOSTILE_PICKLES = {  # {} is a folder that must not appear
    "system": "c:os:system 'mkdir' TUPLE1 REDUCE",
    "eval": f"c:builtins:eval {MAKE_TRAP} REDUCE",
    "exec": f"c:builtins:exec {MAKE_TRAP} REDUCE",
    "new object": "c:subprocess:Popen 'mkdir' TUPLE1 NEWOBJ",
    "method of a call": (
        "c:builtins:getattr c:builtins:__import__ 'os' TUPLE1 REDUCE 'mkdir' TUPLE2 REDUCE "
        "'{}' TUPLE1 REDUCE"
    ),
    "call of a result": "c:functools:partial c:pathlib:Path TUPLE1 REDUCE '{}' TUPLE1 REDUCE",
    "call in arguments": f"c:builtins:print c:builtins:eval {MAKE_TRAP} REDUCE TUPLE1 REDUCE",
    "state": f"c:{__name__}:Trap EMPTY_TUPLE NEWOBJ EMPTY_DICT 'folder' '{{}}' SETITEM BUILD",
    "state of a class": f"c:{__name__}:Trap EMPTY_DICT 'folder' '{{}}' SETITEM BUILD",
    "item": f"c:{__name__}:Trap EMPTY_TUPLE NEWOBJ 'key' '{{}}' SETITEM",
    "append": f"c:{__name__}:Trap EMPTY_TUPLE NEWOBJ '{{}}' APPEND",
    "item of a class": f"c:{__name__}:Trap 'key' '{{}}' SETITEM",
    "torch.load": "c:torch:load '{}' TUPLE1 REDUCE",
    "rebuild by a foreign function": (
        f"c:torch._tensor:_rebuild_from_type_v2 MARK c:builtins:eval c:torch:Tensor {MAKE_TRAP} "
        "EMPTY_DICT TUPLE REDUCE"
    ),
    "rebuild of a foreign type": (
        f"c:torch._utils:_rebuild_wrapper_subclass MARK c:{__name__}:Trap c:torch:float32 "
        "EMPTY_TUPLE EMPTY_TUPLE NONE c:torch:strided c:torch:device 'cpu' TUPLE1 REDUCE NEWFALSE "
        "TUPLE REDUCE"
    ),
    "parameter of a foreign object": (
        f"c:torch._utils:_rebuild_parameter MARK c:{__name__}:Trap EMPTY_TUPLE NEWOBJ NEWFALSE "
        "EMPTY_DICT TUPLE REDUCE"
    ),
    "persistent id": f"MARK 'module' c:{__name__}:Trap '{{}}' TUPLE BINPERSID",
    "persistent id of an object": f"c:{__name__}:Trap EMPTY_TUPLE NEWOBJ BINPERSID",
    "extension": "EXT1",
}


def assert_inert(value):
    """Fails for anything but tensors, plain data and placeholders."""
    assert isinstance(value, (PickledObject, torch.Tensor, str, int, float, tuple, list, dict))


@pytest.mark.parametrize("kind", HOSTILE_PICKLES)
def test_hostile_pickle_runs_nothing(kind, tmp_path):
    trap = tmp_path / "trap"
    hostile = HOSTILE_PICKLES[kind].replace("{}", str(trap))
    content = pickle.PROTO + b"\x02" + opcodes(f"EMPTY_DICT 'k' {hostile} SETITEM STOP")
    path = zipped(tmp_path, content)
    try:
        assert_inert(read_checkpoint(path)["k"])
    except ValueError as error:
        assert "raw.pth'" in str(error) and "will likely succeed" not in str(error)
    assert not trap.exists()


def test_hostile_pickles_are_hostile(tmp_path):
    """The traps work where nothing guards against them."""
    for kind in ("eval", "exec", "method of a call", "call in arguments", "state", "item"):
        trap = tmp_path / "trap"
        pickle.loads(opcodes(f"{HOSTILE_PICKLES[kind].replace('{}', str(trap))} STOP"))
        trap.rmdir()


def tar(path, content):
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            (path.parent / name).write_bytes(pickle.dumps(content, protocol=2))
            file.add(path.parent / name, name)


def legacy(path, content):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def plain_pickle(path, content):
    path.write_bytes(pickle.dumps(content, protocol=2))


def script(path, content):
    torch.jit.script(nn.Linear(1, 1)).save(str(path))


@pytest.mark.parametrize("write", [tar, legacy, plain_pickle, script])
def test_other_formats_run_nothing(write, tmp_path, monkeypatch):
    trap = tmp_path / "trap"
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: trap.mkdir())
    hostile = type("Hostile", (), {"__reduce__": lambda self: (os.mkdir, (str(trap),))})()
    write(tmp_path / "f.pth", {"state_dict": {}, "extra": hostile})
    with pytest.raises(ValueError, match=r"f.pth'.*(is refused|cannot be read)"):
        read_checkpoint(str(tmp_path / "f.pth"))
    assert not trap.exists()


@pytest.mark.parametrize(
    ("function", "legacy_format", "name"),
    [(os.mkdir, False, "posix.mkdir"), (print, True, "print"), (eval, True, "eval")],
)
def test_refused_function_is_named(function, legacy_format, name, tmp_path):
    content = {"extra": call(function, "never")}
    path = save(content, tmp_path / "f.pth", _use_new_zipfile_serialization=not legacy_format)
    with pytest.raises(ValueError, match=f"is refused.*foreign code .*GLOBAL {name} ") as error:
        read_checkpoint(path)
    assert not any(text in str(error.value) for text in ("will likely succeed", "Please", "\n"))


def test_compressed_checkpoint_is_refused(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("archive/data/0", bytes(10_000_000))
    with pytest.raises(ValueError, match=r"bomb.pth' is refused: its content is compressed"):
        read_checkpoint(str(path))


@pytest.mark.parametrize("content", [[torch.zeros(2)], torch.zeros(2), 3, None])
def test_file_without_a_dict(tmp_path, content):
    path = save(content, tmp_path / "list.pth")
    with pytest.raises(ValueError, match=f"list.pth' holds a {type(content).__name__}, not a dict"):
        read_checkpoint(path)


@pytest.fixture
def downloads(monkeypatch, tmp_path):
    """The URLs that were asked for; each gives a file with weights."""
    urls = []

    def download(url, path, digest=None):
        urls.append((url, digest))
        save({"weight": torch.zeros(2)}, path)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return urls


@pytest.mark.parametrize(
    ("source", "url"),
    [
        ("https://x.org/a-0123abcd.pth", "https://x.org/a-0123abcd.pth"),
        ("torchvision://resnet18", "https://download.pytorch.org/models/resnet18-"),
        ("open-mmlab://detectron2/resnet50_caffe", "https://download.openmmlab.com/pretrain/"),
    ],
)
def test_download_is_checked_and_cached(source, url, downloads):
    for _ in range(2):
        assert read_checkpoint(source)["weight"].tolist() == [0, 0]
    ((found, digest),) = downloads
    assert found.startswith(url) and f"-{digest}." in found


def test_download_that_fails(downloads, monkeypatch):
    def refuse(*args):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    with pytest.raises(FileNotFoundError, match=r"https://x.org/a.pth' cannot be downloaded.*path"):
        read_checkpoint("https://x.org/a.pth")


def test_unknown_name_of_a_model_zoo(downloads):
    with pytest.raises(ValueError, match=r"no model 'resnet19'; similar names: .*resnet18"):
        read_checkpoint("torchvision://resnet19")
    assert not downloads


def network(width=4):
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width), nn.Linear(width, 2))


def states(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


@pytest.mark.parametrize("nested", [False, True])
def test_weights_are_loaded(tmp_path, nested):
    source, target = network(), network()
    source[1].running_mean.fill_(3.0)
    state = states(source)
    path = save({"state_dict": state, "meta": {}} if nested else state, tmp_path / "w.pth")
    load_weights(target, path)
    assert all(torch.equal(value, state[key]) for key, value in target.state_dict().items())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_weights_are_refused(tmp_path, value):
    path = str(tmp_path / "broken.pth")
    torch.save(dict(weight=torch.full((2, 3), value), bias=torch.zeros(2)), path)
    with pytest.raises(ValueError, match=r"broken.pth' gives Linear 1 tensors .*\(weight\)"):
        load_weights(nn.Linear(3, 2), path)


def test_names_of_weights_are_text(tmp_path):
    path = save({"state_dict": {**nn.Linear(2, 3).state_dict(), 7: torch.zeros(1)}}, tmp_path / "i")
    with pytest.raises(ValueError, match=r"has 7 in place of the name of a weight"):
        load_weights(nn.Linear(2, 3), path)


def test_missing_keys_are_counted_and_named(tmp_path):
    target = nn.Sequential(*(nn.Linear(2, 2) for _ in range(6)))
    state = {key: value for key, value in states(target).items() if key.startswith(("0", "1.w"))}
    before = states(target)
    path = save(state, tmp_path / "w.pth")
    message = (
        r"w.pth' does not fit Sequential: 9 of 12 keys are missing \(1.bias, 2.weight, 2.bias, "
        r"3.weight, 3.bias, …\), 0 have another shape. Use"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(target, path)
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_other_shapes_are_named(tmp_path):
    meta = dict(dataset_meta=dict(classes=("cat", "dog")))
    path = save({"state_dict": states(network(5)), "meta": meta}, tmp_path / "w.pth")
    message = (
        r"0 of 9 keys are missing, 7 have another shape \(0.weight \(5, 3, 1, 1\) instead of "
        r"\(4, 3, 1, 1\), 0.bias.*\), and it was trained on 2 classes\. Use"
    )
    with pytest.raises(ValueError, match=message):
        load_weights(network(), path)


def test_weights_of_another_architecture(tmp_path):
    path = save(states(nn.LSTM(2, 2)), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"8 of 9 keys are missing \(0.weight, 0.bias.*number of"):
        load_weights(network(), path)


def test_unexpected_keys_are_named_in_the_log(tmp_path):
    log = tmp_path / "log.txt"
    MMLogger.get_instance("keys", logger_name="keys", log_file=str(log))

    def printed():
        text = log.read_text()
        log.write_text("")
        return text

    source, target = network(), network()
    extra = {"mask.weight": torch.zeros(1), "distill.beta": torch.zeros(1)}
    path = save({"state_dict": {**states(source), **extra}}, tmp_path / "w.pth")
    load_weights(target, path)
    assert torch.equal(target[0].weight, source[0].weight)
    text = printed()
    assert "unexpected key" in text and "mask.weight, distill.beta" in text

    load_weights(target, path, allow_unused=["distill."])
    text = printed()
    assert "mask.weight" in text and "distill" not in text
    load_weights(target, path, allow_unused=("distill.", "mask."))
    assert "unexpected" not in printed()


def test_allowed_keys_may_not_be_missing(tmp_path):
    state = states(network())
    state.pop("0.weight")
    with pytest.raises(ValueError, match=r"1 of 9 keys are missing \(0.weight\)"):
        load_weights(network(), save(state, tmp_path / "w.pth"), allow_unused=["0."])


def test_batch_norm_without_num_batches_tracked(tmp_path):
    state = states(network())
    state.pop("1.num_batches_tracked")
    load_weights(network(), save(state, tmp_path / "w.pth"))
