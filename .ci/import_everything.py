"""Imports every module of the installed package, and sees that its data files came along."""

import importlib
import pkgutil

import stunet
from stunet import presets
from stunet.report.blocks import Page
from stunet.report.page import render
from stunet.viewer.page import SCRIPTS, STYLES, asset, served_page

names = [module.name for module in pkgutil.walk_packages(stunet.__path__, "stunet.")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != "distributed":  # of the extra stunet[cluster]
            raise
expected = {"cli", "datasets", "inference", "nnunet_ext", "plans", "presets", "trainers"}
missing = expected - {name.split(".")[1] for name in names}
if "<html" not in render(Page("title", "", [])):
    raise SystemExit("not in the wheel: the templates of reports")
if missing or not presets.names():
    raise SystemExit(f"not in the wheel: {', '.join(sorted(missing)) or 'the presets'}")
if not served_page() or not all(map(asset, (*SCRIPTS, *STYLES, "niivue.LICENSES.txt"))):
    raise SystemExit("not in the wheel: the files of the viewer's page")
print(f"{len(names)} modules import")
