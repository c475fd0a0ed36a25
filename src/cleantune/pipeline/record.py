"""The record of a run: its complete configuration, and what it was computed with."""

from __future__ import annotations

import platform
from importlib import metadata

import tomli_w

from cleantune.config.run import Config, config_to_dict, load_toml
from cleantune.errors import UserError
from cleantune.methods.protocol import Phase
from cleantune.pipeline.inputs import RunInputs, fingerprint
from cleantune.storage.files import write_text
from cleantune.storage.run_dir import RunDir
from cleantune.utils import cpu


def write_config(run_dir: RunDir, config: Config, phases: tuple[Phase, ...], inputs: RunInputs) -> None:
    """Write config.toml with every learning rate as a number, and a record of the inputs.

    Raises:
        UserError: The folder has a run on other data or with another model.
    """
    table = config_to_dict(config)
    for phase in phases:
        rate = phase.stage.backbone_learning_rate
        if rate is not None and phase.name in table["method"]:
            table["method"][phase.name]["backbone_learning_rate"] = rate
    current, path = fingerprint(inputs), run_dir.path / RunDir.CONFIG
    if path.is_file() and load_toml(path).get("record", {}).get("fingerprint", current) != current:
        raise UserError(
            f"{path}: data, model or precision are not those of the interrupted run; start again with --overwrite"
        )
    record = {"fingerprint": current, "data_fingerprint": inputs.data.fingerprint, "versions": versions()}
    run_dir.write_compute(inputs.compute.to_dict())
    write_text(path, tomli_w.dumps(table | {"record": record}))


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on, of Python, and the processor's name."""
    names = ("cleantune", "torch", "transformers", "datasets", "numpy", "scikit-learn", "pillow", "kornia")
    machine = {"python": platform.python_version(), "processor": cpu.cpu_name()}
    return machine | {name: metadata.version(name) for name in names}
