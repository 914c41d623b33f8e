"""File names of every stage, and the settings that a job gets on its command line."""

import json
import shutil

OUT = settings.folder
STUDY = f"{OUT}/{{study}}"
# fits take turns on a GPU; where there is none they are jobs like all others, as many at a time as there are cores
GPUS = int(shutil.which("nvidia-smi") is not None)


def names(items):
    """A wildcard's constraint: exactly these names."""
    return "|".join(items) or "none"


wildcard_constraints:
    dataset=names(settings.datasets),
    study=names(settings.studies),
    method=names(settings.methods),
    fit=names(settings.fits),
    batch=r"\d+",
    landscape=names(name for study in settings.studies.values() for name in study.landscapes),
    attention=names(name for study in settings.studies.values() for name in study.attention),
    deformation=names(name for study in settings.studies.values() for name in study.deformations),
    translated=names(name for study in settings.studies.values() for name in study.translated),
    parts=names(name for study in settings.studies.values() for name in study.parts),
    clinical=names(name for study in settings.studies.values() for name in study.clinical),
    table=names(name for study in settings.studies.values() for name in study.tables),
    figure=names(name for study in settings.studies.values() for name in study.figures),


def as_json(model):
    """Settings as one line of JSON, for a command line."""
    return json.dumps(model if isinstance(model, dict) else model.model_dump(mode="json"))


def study_of(wildcards):
    """The settings of the job's study."""
    return settings.studies[wildcards.study]


def results_of(study, kind, files):
    """Files of one kind (tables, figures, …) of a study."""
    return [f"{OUT}/{study}/{kind}/{file}" for file in files]


def all_results():
    """Everything that the main job makes."""
    wanted = []
    for name, study in settings.studies.items():
        tables = [f"{table}.{ending}" for table in study.tables for ending in ("csv", "md", "tex", "html")]
        wanted += results_of(name, "tables", tables)
        wanted += results_of(name, "figures", [f"{figure}.png" for figure in study.figures])
        wanted += results_of(name, "landscapes", [f"{landscape}.png" for landscape in study.landscapes])
        wanted += results_of(name, "attention", [f"{shown}.png" for shown in study.attention])
        wanted += results_of(name, "deformations", [f"{shown}.png" for shown in study.deformations])
        wanted += results_of(name, "translated", [f"{shown}.png" for shown in study.translated])
        wanted += results_of(name, "parts", [f"{shown}.png" for shown in study.parts])
        wanted += results_of(name, "clinical", [f"{shown}.html" for shown in study.clinical])
        wanted += results_of(name, "pictures", study.pictures.methods)
        wanted += [f"{OUT}/{name}/left_out.html"]
        wanted += [f"{OUT}/{name}/comparisons.html"] if study.comparison else []
    return wanted


def dataset_files(wildcards):
    """The table of cases of the study's dataset, and the volumes made with it."""
    folder = f"{OUT}/datasets/{study_of(wildcards).dataset}"
    return {"cases": f"{folder}/cases.csv", "volumes": f"{folder}/volumes"}


def source_files(wildcards):
    """The cases and volumes of the dataset from which another one is made."""
    source = settings.source_of(wildcards.dataset)
    return [settings.cases_of(source), f"{OUT}/datasets/{source}/volumes"] if source else []


def landscape_of(wildcards):
    """The settings of the job's landscape."""
    return study_of(wildcards).landscapes[wildcards.landscape]


def attention_of(wildcards):
    """The settings of the job's figure of attention."""
    return study_of(wildcards).attention[wildcards.attention]


def attention_weights(wildcards):
    """The weights of its network and, where asked for, of the one without attention beside it: first stages."""
    shown = attention_of(wildcards)
    used = {"weights": shown.method} | ({"without": shown.without} if shown.without else {})
    return {key: weights_files(method)[0] for key, method in used.items()}


def weights_files(method):
    """The weights that a method takes, in order."""
    return [settings.weights_of(fit) for fit in settings.fits_of(method)]


def weights_of(wildcards):
    """The weights that the job's method takes, where it is a learned one."""
    return weights_files(wildcards.method)


def weights_option(wildcards, input):
    """The weights as an option of a command line, for methods that take them."""
    files = [input.weights] if isinstance(input.weights, str) else input.weights
    return " ".join(f"--weights {file}" for file in files)


def manifests_of(study, method):
    """The tables of results of all batches of a method in a study."""
    return [f"{OUT}/{study}/transforms/{method}/batch-{batch}.csv" for batch in range(settings.studies[study].batches)]


def manifests(wildcards):
    """The tables of results of all batches of the job's method."""
    return manifests_of(wildcards.study, wildcards.method)


def deformation_of(wildcards):
    """The settings of the job's figure of deformations."""
    return study_of(wildcards).deformations[wildcards.deformation]


def translated_of(wildcards):
    """The settings of the job's figure of translated images."""
    return study_of(wildcards).translated[wildcards.translated]


def parts_of(wildcards):
    """The settings of the job's figure of a network's parts."""
    return study_of(wildcards).parts[wildcards.parts]


def manifests_by_method(figure_of):
    """The tables of results of a figure's methods, by method; `figure_of` gives its settings."""
    return lambda wildcards: {method: manifests_of(wildcards.study, method) for method in figure_of(wildcards).methods}


def of_methods(pattern):
    """One file a method of the job's study."""
    return lambda wildcards: expand(pattern, study=wildcards.study, method=study_of(wildcards).methods)


def table_sources(wildcards):
    """The scores of a study, its prepared cases, and its tests where it has any."""
    folder = f"{OUT}/{wildcards.study}"
    used = {"scores": f"{folder}/scores.csv", "cases": f"{folder}/prepared/cases.csv"}
    return used if study_of(wildcards).comparison is None else used | {"comparisons": f"{folder}/comparisons.csv"}


def context(wildcards):
    """What a caption says of the run."""
    study = study_of(wildcards)
    methods = json.dumps(study.methods)
    return f"--study {wildcards.study} --dataset {study.dataset} --scale {settings.scale} --methods '{methods}'"
