def dataset_files(wildcards):
    """The table of cases of the study's dataset, and the volumes made with it."""
    folder = f"{OUT}/datasets/{study_of(wildcards).dataset}"
    return {"cases": f"{folder}/cases.csv", "volumes": f"{folder}/volumes"}


rule prepare:
    input:
        unpack(dataset_files),
    output:
        cases=f"{STUDY}/prepared/cases.csv",
        excluded=f"{STUDY}/prepared/excluded.csv",
        volumes=directory(f"{STUDY}/prepared/volumes"),
    params:
        settings=lambda wildcards: as_json(study_of(wildcards).prepare),
    log:
        f"{OUT}/logs/prepare/{{study}}.log",
    benchmark:
        f"{OUT}/benchmarks/prepare/{{study}}.tsv"
    shell:
        "python -m pipeline stage prepare --settings {params.settings:q} --cases {input.cases:q} --volumes {output.volumes:q}"
        " --prepared {output.cases:q} --excluded {output.excluded:q} >{log:q} 2>&1"
