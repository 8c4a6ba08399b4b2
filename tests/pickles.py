"""Pickles that do something when they are read: one for each way that people have come up with.

All of them make an empty file at the same place, which tells that they were run.
PYTEST_DONT_REWRITE: test modules import it before pytest could.
"""

import builtins
import code
import collections
import cProfile
import ctypes
import functools
import importlib
import io
import marshal
import operator
import os
import pathlib
import pickle
import profile
import runpy
import shutil
import subprocess
import tarfile
import timeit
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Does:
    """Reduced to a call."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self._call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self._call


class Sets:
    """Calls a function by its state: what BUILD does to an object that has `__setstate__`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return types.SimpleNamespace, (), {"inner": Does(*self._call[:1], *self._call[1])}


class Key:
    """Hidden as the key of a table."""

    def __init__(self, does: Does) -> None:
        self._does = does

    def __reduce__(self) -> Any:
        return self._does.__reduce__()

    def __hash__(self) -> int:
        return 1


def attacks(mark: Path, folder: Path) -> dict[str, Any]:
    """By name: what makes the file `mark` when it is unpickled; `folder` is for scripts that are pointed to."""
    text, script = str(mark), folder / "script.py"
    python = f"open({text!r}, 'w').close()"
    script.write_text(python)
    shell = f"touch '{text}'"
    (folder / "inner.pt").write_bytes(pickle.dumps(Does(os.system, shell)))
    chain = Does(getattr, Does(importlib.import_module, "os"), "system")
    compiled = marshal.dumps(compile(python, "x", "exec"))
    made = Does(marshal.loads, compiled), {"__builtins__": Does(importlib.import_module, "builtins")}
    reduced = np.empty(1, dtype=object)
    reduced[0] = Does(os.system, shell)
    return {
        "os.system": Does(os.system, shell),
        "os.popen": Does(os.popen, shell),
        "os.mkdir": Does(os.mkdir, text),
        "subprocess.call": Does(subprocess.call, ["touch", text]),
        "subprocess.Popen": Does(subprocess.Popen, ("touch", text)),
        "subprocess.check_output": Does(subprocess.check_output, ["touch", text]),
        "builtins.eval": Does(eval, python),
        "builtins.exec": Does(exec, python),
        "builtins.open": Does(open, text, "w"),
        "builtins.compile": Does(exec, Does(compile, python, "x", "exec")),
        "builtins.__import__": Does(operator.call, Does(getattr, Does(builtins.__import__, "os"), "system"), shell),
        "builtins.map": Does(list, Does(map, os.system, [shell])),
        "getattr chain": Does(operator.call, chain, shell),
        "operator.attrgetter": Does(operator.call, Does(operator.attrgetter("mkdir"), Does(__import__, "os")), text),
        "operator.methodcaller": Does(operator.methodcaller("touch"), pathlib.PosixPath(text)),
        "functools.reduce": Does(functools.reduce, os.mkdir, [text, 511]),
        "functools.partial": Does(operator.call, Does(functools.partial, os.system, shell)),
        "pathlib.Path.write_text": Does(pathlib.Path.write_text, pathlib.PosixPath(text), "x"),
        "shutil.copy": Does(shutil.copy, str(script), text),
        "runpy.run_path": Does(runpy.run_path, str(script)),
        "timeit.timeit": Does(timeit.timeit, python, "pass", timeit.default_timer, 1),
        "profile.run": Does(profile.run, python, str(folder / "profile")),
        "cProfile.run": Does(cProfile.run, python, str(folder / "profile")),
        "code.runsource": Does(code.InteractiveInterpreter.runsource, Does(code.InteractiveInterpreter), python),
        "types.FunctionType": Does(
            operator.call,
            Does(operator.call, Does(getattr, Does(importlib.import_module, "types"), "FunctionType"), *made),
        ),
        "ctypes.CDLL": Does(operator.call, Does(getattr, Does(ctypes.CDLL, None), "system"), shell.encode()),
        "pickle.loads": Does(pickle.loads, pickle.dumps(Does(os.system, shell))),
        "torch.load": Does(_torch_load, str(folder / "inner.pt")),
        "torch._utils._rebuild_tensor_v2": Does(
            torch._utils._rebuild_tensor_v2, Does(os.system, shell), 0, (1,), (1,)
        ),
        "torch._utils._rebuild_parameter": Does(
            torch._utils._rebuild_parameter, Does(os.system, shell), False, collections.OrderedDict()
        ),
        "torch.utils.collect_env": Does(_collect_env(), ["touch", text]),
        "numpy array of objects": reduced,
        "numpy.testing": Does(_runstring(), python, {}),
        "defaultdict": collections.defaultdict(None, {"weight": Does(os.system, shell)}),
        "OrderedDict state": Does(collections.OrderedDict, state={"x": Does(os.system, shell)}),
        "state of an object": Sets(os.system, shell),
        "key of a table": {Key(Does(os.system, shell)): 1},
        "among weights": {"state_dict": {"weight": torch.zeros(2), "bias": Does(os.system, shell)}},
        "instance opcode": Raw(f"(S{shell!r}\nios\nsystem\n.".encode()),
        "object opcode": Raw(f"(cos\nsystem\nS{shell!r}\no.".encode()),
        "reduce after a stop": Raw(f"cos\nsystem\n(S{shell!r}\ntR0}}.".encode()),
    }


class Raw(bytes):
    """Instructions written by hand."""


def files(mark: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file: every attack bare, and the plainest one in every container and protocol."""
    for name, attack in attacks(mark, folder).items():
        yield name, attack if isinstance(attack, Raw) else pickle.dumps(attack, 2)
    plain = attacks(mark, folder)["os.system"]
    for protocol in range(6):
        yield f"protocol {protocol}", pickle.dumps(plain, protocol)
    for name, save in CONTAINERS.items():
        yield name, save({"weight": torch.zeros(2), "bias": plain})


def _saved(**how: Any) -> Callable[[Any], bytes]:
    def save(content: Any) -> bytes:
        file = io.BytesIO()
        torch.save(content, file, **how)
        return file.getvalue()

    return save


def _tar(content: Any) -> bytes:
    """As torch wrote files before 0.1.10."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, member in (("storages", 0), ("tensors", 0), ("pickle", content), ("sys_info", {})):
            data = pickle.dumps(member, 2)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def _nested(content: Any) -> bytes:
    """A zip whose data is a zip."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/version", "3")
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
        archive.writestr("archive/data/0", _saved()(content))
    return file.getvalue()


def _behind_numbers(content: Any) -> bytes:
    """A pickle after the end of a sound one."""
    return _saved(_use_new_zipfile_serialization=False)({"weight": torch.zeros(2)}) + pickle.dumps(content, 2)


def _persistent(content: Any) -> bytes:
    """Where a file has the place of a tensor's numbers."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, given: Any) -> Any:
            return ("storage", Key(given)) if isinstance(given, Does) else None

    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        data = io.BytesIO()
        Pickler(data, 2).dump([content["bias"]])
        archive.writestr("archive/data.pkl", data.getvalue())
        archive.writestr("archive/version", "3")
    return file.getvalue()


CONTAINERS: dict[str, Callable[[Any], bytes]] = {
    "zip": _saved(),
    "legacy": _saved(_use_new_zipfile_serialization=False),
    "tar": _tar,
    "nested zip": _nested,
    "behind numbers": _behind_numbers,
    "persistent id": _persistent,
}


def _torch_load(file: str) -> Any:
    return torch.load(file, weights_only=False)


def _collect_env() -> Any:
    from torch.utils import collect_env

    return collect_env.run


def _runstring() -> Any:
    from numpy.testing._private import utils

    return utils.runstring
