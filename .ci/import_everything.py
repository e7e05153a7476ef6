"""Imports every module of the installed package, and sees that its data files came along."""

import importlib
import pkgutil

import stunet
from stunet import presets
from stunet.report.blocks import Page
from stunet.report.page import render

names = [module.name for module in pkgutil.walk_packages(stunet.__path__, "stunet.")]
for name in names:
    importlib.import_module(name)
expected = {"cli", "datasets", "inference", "nnunet_ext", "plans", "presets", "trainers"}
missing = expected - {name.split(".")[1] for name in names}
if "<html" not in render(Page("title", "", [])):
    raise SystemExit("not in the wheel: the templates of reports")
if missing or not presets.names():
    raise SystemExit(f"not in the wheel: {', '.join(sorted(missing)) or 'the presets'}")
print(f"{len(names)} modules import")
