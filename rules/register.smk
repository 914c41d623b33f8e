rule register:
    input:
        cases=f"{STUDY}/prepared/cases.csv",
        volumes=f"{STUDY}/prepared/volumes",
        weights=weights_of,
    output:
        f"{STUDY}/transforms/{{method}}/batch-{{batch}}.csv",
    log:
        f"{OUT}/logs/register/{{study}}/{{method}}-{{batch}}.log",
    benchmark:
        f"{OUT}/benchmarks/register/{{study}}/{{method}}-{{batch}}.tsv"
    # the longest jobs are classical registrations: they start first, so that none of them is left for the end
    priority: 1
    # a case that takes the process down is left out at the third attempt; the finished ones are not run again
    retries: 2
    threads: settings.threads
    resources:
        mem_mb=4000,
    params:
        settings=lambda wildcards: as_json(settings.method(wildcards.method)),
        batches=lambda wildcards: study_of(wildcards).batches,
        seed=settings.seed,
        weights=weights_option,
    shell:
        "python -m pipeline stage register --settings {params.settings:q} --cases {input.cases:q} --batch {wildcards.batch}"
        " --batches {params.batches} --seed {params.seed} --threads {threads} {params.weights} --manifest {output:q} >{log:q} 2>&1"
