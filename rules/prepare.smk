rule prepare:
    input:
        unpack(dataset_files),
    output:
        cases=f"{STUDY}/prepared/cases.csv",
        excluded=f"{STUDY}/prepared/excluded.csv",
        volumes=directory(f"{STUDY}/prepared/volumes"),
    log:
        f"{OUT}/logs/prepare/{{study}}.log",
    benchmark:
        f"{OUT}/benchmarks/prepare/{{study}}.tsv"
    priority: 2
    params:
        settings=lambda wildcards: as_json(study_of(wildcards).prepare),
    shell:
        "python -m pipeline stage prepare --settings {params.settings:q} --cases {input.cases:q} --volumes {output.volumes:q}"
        " --prepared {output.cases:q} --excluded {output.excluded:q} >{log:q} 2>&1"
