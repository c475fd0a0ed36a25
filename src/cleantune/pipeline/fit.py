"""The main job: data and a model in; a robust model, the list of probably wrong labels and a report out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from torch import Tensor

from cleantune.config.data import DataConfig
from cleantune.config.run import Config, ModelConfig, RunConfig, config_to_dict, configure, load_toml, read_config
from cleantune.config.schema import describe_fields, merge, nest, parse_assignment
from cleantune.data import Data
from cleantune.distributed.process_group import SINGLE_PROCESS, ProcessGroup, init_distributed
from cleantune.errors import UserError, did_you_mean
from cleantune.features.precision import Precision
from cleantune.methods import METHODS
from cleantune.methods.protocol import Method, Phase
from cleantune.pipeline import artifacts
from cleantune.pipeline.cached_views import cached_views, views_to_cache
from cleantune.pipeline.export import save_models
from cleantune.pipeline.finished_run import Baseline, FinishedRun
from cleantune.pipeline.inputs import (
    HeadFactory,
    RunInputs,
    fingerprint,
    open_model,
    prepare_inputs,
    read_data,
    recommended_learning_rate,
)
from cleantune.pipeline.model_selection import deliver
from cleantune.pipeline.plan import MIN_SAMPLES_FOR_ESTIMATE, estimate_run
from cleantune.pipeline.ray_train import launch_workers
from cleantune.pipeline.summary import summary, versions
from cleantune.storage.files import read_json, write_json, write_text
from cleantune.storage.run_dir import RunDir
from cleantune.training.checkpoint import Cost
from cleantune.training.epochs import phases, train
from cleantune.training.evaluator import Evaluator
from cleantune.training.lora import merge as merge_adapters
from cleantune.training.models import Net
from cleantune.training.trainer import Trainer
from cleantune.utils.console import Console
from cleantune.utils.device import pick_device

if TYPE_CHECKING:
    import pandas as pd

    from cleantune.pipeline.predict import Model

LORA_RANK = 8
"""Of scope `lora`, as in the authors' code of arXiv:2403.06869."""
RECORDS: dict[str, type] = {"data": DataConfig, "model": ModelConfig, "run": RunConfig}
"""The records whose fields are options of `fit` by name."""


@dataclass(frozen=True)
class Result:
    """A finished run."""

    path: Path
    """Its folder."""
    summary: dict[str, Any]
    """What summary.json holds."""

    @property
    def labels(self) -> pd.DataFrame:
        """One row per labeled sample of train and validation, worst first."""
        import pandas as pd

        return pd.read_parquet(self.path / "labels.parquet")

    @property
    def model(self) -> Model:
        """The delivered model."""
        from cleantune.pipeline.predict import load

        return load(self.path)

    @property
    def report(self) -> Path:
        """The page to look at."""
        return self.path / "report.html"


def fit(
    data: Any = None,
    model: Any = None,
    *,
    out: str | Path,
    method: str | None = None,
    scope: str | None = None,
    preset: str | None = None,
    seed: int | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | list[str] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **options: Any,
) -> Result:
    """Train on noisy labels; write the model, the list of probably wrong labels and the report.

    Args:
        data: Image folder, table, embeddings (.npz), Hugging Face folder or `hf:NAME`, a `datasets.Dataset`, a
            pandas frame, a mapping of arrays or `(features, labels)`.
        model: Checkpoint folder or hub id of transformers, or a backbone from `cleantune.backbones.open_backbone`.
        out: Folder of the run. One that is not empty is refused unless resume or overwrite is set.
        method: `turn` (default) or another name that `cleantune methods` lists.
        scope: What learns: `head`, `all`, or `lora`, which is `all` by adapters of rank 8; left out, the method's own.
        preset: Named settings of the method, such as `paper`.
        seed: Of split, noise and training together; each has an option of its own too.
        config: A TOML file (such as another run's config.toml) or a table; what is given beside it wins.
        settings: Fields by path, `{"method.tau": 0.7}` or `["method.tau=0.7"]`.
        resume: Go on with an interrupted run; the result is that of an uninterrupted one, bit for bit.
        overwrite: Remove an earlier run in `out` first.
        silent: Say nothing.
        **options: Fields of the data, the model and the run by name: `label`, `test`, `image_size`, `noise`, …

    Returns:
        The finished run.

    Raises:
        UserError: Something the user can put right; the sentence says what, where and how.
    """
    table = tabulate(data, model, method, scope, preset, seed, config, settings, options)
    folder = Path(out)
    if resume and (folder / "config.toml").is_file():
        table = resumed(folder, table)
    if "data" not in table or "data" not in table["data"]:
        raise UserError("there are no data: name a folder, a table, embeddings or a Hugging Face dataset")
    known, ranks = configure(table), init_distributed()
    console, workers = Console(quiet or not ranks.main), known.run.workers
    if ranks.count == workers == 1:
        return run(table, RunDir(folder, resume=resume, overwrite=overwrite), console)
    # Every process opens the folder for itself, so what is overwritten goes before they do.
    ranks.first(lambda: RunDir(folder, resume=resume, overwrite=overwrite).clear())
    opened = RunDir(folder, resume=True)
    if ranks.count == workers or workers == 1:
        return run(table, opened, console, ranks)
    if ranks.count > 1:
        raise UserError(f"--workers {workers}: this launcher has started {ranks.count} ranks; leave --workers out")
    if not opened.is_finished:
        gpus = pick_device(known.model.device) == "cuda"
        launch_workers(partial(work, table, opened.path.resolve()), workers, opened, console, gpus)
    return Result(opened.path, read_json(opened.path / "summary.json"))


def work(table: dict[str, Any], path: Path, console: Console) -> None:
    """The part of one worker."""
    run(table, RunDir(path, resume=True), console, init_distributed())


def tabulate(
    data: Any,
    model: Any,
    method: str | None,
    scope: str | None,
    preset: str | None,
    seed: int | None,
    config: str | Path | Mapping[str, Any] | None,
    settings: Mapping[str, Any] | list[str] | None,
    options: Mapping[str, Any],
) -> dict[str, Any]:
    """One table from everything that was said: the file first, then names, then settings by path."""
    table = dict(config) if isinstance(config, Mapping) else read_config(Path(config)) if config is not None else {}
    if scope == "lora":
        scope, table = "all", merge({"model": {"lora_rank": LORA_RANK}}, table)
    homes = {field.name: name for name, record in RECORDS.items() for field in describe_fields(record)}
    said = {
        "method.name": method,
        "method.scope": scope,
        "method.preset": preset,
        "data.data": data,
        "model.model": model,
    }
    if seed is not None:
        said |= {"data.split_seed": seed, "run.noise_seed": seed, "run.train_seed": seed}
    for name, value in options.items():
        if name not in homes:
            raise UserError(f'unknown option "{name}"{did_you_mean(name, homes)}')
        said[f"{homes[name]}.{name}"] = value
    for path, value in said.items():
        if value is not None:
            table = merge(table, nest(path.split("."), value))
    pairs = (
        [(k.split("."), v) for k, v in settings.items()]
        if isinstance(settings, Mapping)
        else map(parse_assignment, settings or [])
    )
    for keys, value in pairs:
        table = merge(table, nest(keys, value))
    return table


def resumed(folder: Path, table: dict[str, Any]) -> dict[str, Any]:
    """The table of the run in the folder; what is said again must be what was said then.

    Raises:
        UserError: Something differs; the sentence names the first key.
    """
    stored = read_config(folder / "config.toml")
    if "data" not in table.get("data", {}):
        table = merge({"data": {"data": stored["data"]["data"]}}, table)
    now, then = config_to_dict(configure(merge(stored, table))), config_to_dict(configure(stored))
    for part in now:
        for key in now[part]:
            if now[part][key] != then[part].get(key):
                raise UserError(
                    f"--resume: {part}.{key} is {now[part][key]!r} now and was {then[part].get(key)!r};"
                    " resume with the same settings, or start anew with --overwrite"
                )
    return merge(stored, table)


def run(table: dict[str, Any], folder: RunDir, console: Console, ranks: ProcessGroup = SINGLE_PROCESS) -> Result:
    """A run from its table to its last file; where several ranks share it, the first one writes."""
    if folder.is_finished:
        console.info(f"{folder.path} is finished already")
        return Result(folder.path, read_json(folder.path / "summary.json"))
    start = time.perf_counter()
    config = configure(table)
    data, noise = read_data(config, console)
    backbone = open_model(config.model, data.kind == "features")
    kind = backbone.architecture.model_type if backbone is not None else None
    config = configure(table, kind, data.kind == "features")
    if backbone is not None:
        console.print(f"backbone {backbone.source} ({kind}): {backbone.feature}, {backbone.width} numbers a sample")
    todo = phases(config.method, recommended_learning_rate(backbone, config.model))
    trains = any(phase.scope == "all" for phase in todo)
    if not console.quiet and folder.load() is None and sum(map(len, data.rows.values())) >= MIN_SAMPLES_FOR_ESTIMATE:
        console.info("\n".join(estimate_run(config, data, backbone, todo).lines()))
    material = prepare_inputs(config, data, backbone, console, stored_precisions(folder), trains, ranks)
    folder.clear()
    ranks.first(lambda: write_config(folder, config, todo, material))
    ended = train_and_select(config, material, todo, folder, console, noise, start)
    return write_results(ended, folder, console)


def stored_precisions(folder: RunDir) -> tuple[Precision, Precision] | None:
    """What an interrupted run computed in: of extraction and of training."""
    recorded = folder.precision()
    return (Precision(**recorded[0]), Precision(**recorded[1])) if recorded is not None else None


def write_config(folder: RunDir, config: Config, todo: tuple[Phase, ...], material: RunInputs) -> None:
    """config.toml with every rate as a number, and a record of what the run was made of.

    Raises:
        UserError: The folder holds a run on other data or another model.
    """
    table = config_to_dict(config)
    for phase in todo:
        rate = phase.stage.backbone_learning_rate
        if rate is not None and phase.name in table["method"]:
            table["method"][phase.name]["backbone_learning_rate"] = rate
    mark = fingerprint(material)
    path = folder.path / "config.toml"
    if path.is_file():
        before = load_toml(path).get("record", {}).get("fingerprint", mark)
        if before != mark:
            raise UserError(
                f"{path}: data, model or precision are not those of the interrupted run; start anew with --overwrite"
            )
    record = {"fingerprint": mark, "data_fingerprint": material.data.fingerprint, "versions": versions()}
    folder.write_precision(asdict(material.precision), asdict(material.training))
    write_text(path, tomli_w.dumps(table | {"record": record}))


def train_and_select(
    config: Config,
    material: RunInputs,
    todo: tuple[Phase, ...],
    folder: RunDir,
    console: Console,
    noise: dict[str, Any] | None,
    start: float,
    baseline: Baseline | None = None,
) -> FinishedRun:
    """Baseline, where none is given, training epoch by epoch, and the choice of what is delivered."""
    seed, judge = config.run.train_seed, Evaluator(material.data, config.run.test_every_epoch)
    heads = HeadFactory(material.classes, config.model.head_init, seed)
    baseline = baseline or train_baseline_probe(material, heads)
    count = todo[0].nets
    if count > 1 and todo[0].scope == "head":
        heads = HeadFactory(material.classes, "normal", seed)
    splits = material.splits(cached_views(material, todo, config, console))
    loop = Trainer(
        material.nets(count, heads),
        splits,
        material.classes,
        seed,
        heads,
        material.device,
        material.ranks,
        config.run.sharding == "fsdp",
    )
    loop.started, loop.cost = start, extraction_cost(material, todo, len(views_to_cache(todo, config.run.cached_augmentations)))
    before = material.ranks.first(folder.truncate_metrics)
    judge.recall(before)
    for row in before:
        console.row(row)
    for row in train(todo, loop, judge, folder, config.run.model_selection):
        console.row(row)
        for words in row.get("warnings", ()):
            console.print(words)
    fresh = partial(material.nets, count, heads)
    selected_model = deliver(loop, material, fresh, config.run, last_phase(todo))
    loop.gather_models(fresh)
    console.info(f"delivered: {selected_model.why}")
    return FinishedRun(config, material, loop, folder.read_metrics(), selected_model, baseline, noise)


def last_phase(todo: tuple[Phase, ...]) -> str:
    """The phase that makes the last model: `tune` where there is one, whose backbone a last probe only reads."""
    names = [phase.name for phase in todo]
    return "tune" if "tune" in names else names[-1]


def extraction_cost(material: RunInputs, todo: tuple[Phase, ...], views: int = 0) -> Cost:
    """One look at every sample through the backbone, whether or not the cache had it, and one a cached view.

    The training split's is the method's where the method has a phase on cached features, else evaluation's.
    """
    if material.backbone is None:
        return Cost()
    looks = {split: len(rows) for split, rows in material.data.rows.items()}
    own = looks["train"] if any(phase.scope == "head" for phase in todo) else 0
    return Cost(forward_passes=own + views * looks["train"], evaluation_forward_passes=sum(looks.values()) - own)


def train_baseline_probe(material: RunInputs, heads: HeadFactory) -> Baseline:
    """A plain CE linear probe on the same features: what an honest result has to beat. It costs seconds."""
    start = time.perf_counter()
    method: Method = METHODS["ce"]()
    net = Net(None, heads(material.features["train"], 0))
    loop = Trainer([net], material.splits(), material.classes, heads.seed, heads, material.device)
    for _ in train(phases(method, 0.0), loop, judge=lambda run, looks: {}, look=lambda run: {}):
        pass  # nobody asks for the numbers of its earlier epochs
    row = Evaluator(material.data)(loop, {})
    accuracy = {"test": row["accuracy_test"], "validation": row["accuracy_validation"]}
    return Baseline(accuracy, round(time.perf_counter() - start, 3))


def write_results(ended: FinishedRun, folder: RunDir, console: Console) -> Result:
    """Every file of the finished run; the summary comes last and says that it is finished."""
    looks = artifacts.look(ended)
    ended.material.ranks.first(lambda: write_result(ended, looks, folder, console))
    return Result(folder.path, read_json(folder.path / "summary.json"))


def write_result(ended: FinishedRun, looks: dict[str, Tensor], folder: RunDir, console: Console) -> None:
    """Labels, evidence, model, summary and report."""
    from cleantune.report import build

    data: Data = ended.material.data
    said = artifacts.verdict(ended, looks)
    frame = artifacts.write_labels(folder, data, said)
    artifacts.write_artifacts(folder, ended, looks, frame)
    if "unlabeled" in data.rows:
        artifacts.write_unlabeled(folder, data, looks["unlabeled"])
    nets = [net.cpu() for net in ended.run.whole]
    for net in nets:
        if net.backbone is not None:
            merge_adapters(net.backbone)
    save_models(folder.path / "model", nets, classes=data.classes, class_values=data.class_values)
    messages = summary(ended, said, looks)
    write_json(folder.path / "summary.json", messages)
    report = build(folder.path)
    console.info(f"{messages['issues']['count']:,} of {len(frame):,} labels look wrong: {folder.path / 'labels.csv'}")
    console.info(f"report: {report}")
