rule cases:
    input:
        source_files,
    output:
        cases=f"{OUT}/datasets/{{dataset}}/cases.csv",
        excluded=f"{OUT}/datasets/{{dataset}}/excluded.csv",
        volumes=directory(f"{OUT}/datasets/{{dataset}}/volumes"),
    log:
        f"{OUT}/logs/cases/{{dataset}}.log",
    benchmark:
        f"{OUT}/benchmarks/cases/{{dataset}}.tsv"
    # before all else: the longest registrations wait for these
    priority: 2
    params:
        settings=lambda wildcards: as_json(settings.dataset(wildcards.dataset)),
        seed=settings.seed,
    shell:
        "python -m pipeline stage cases --settings {params.settings:q} --seed {params.seed} --volumes {output.volumes:q}"
        " --cases {output.cases:q} --excluded {output.excluded:q} >{log:q} 2>&1"
