rule score:
    input:
        manifests=manifests,
        cases=f"{STUDY}/prepared/cases.csv",
        volumes=f"{STUDY}/prepared/volumes",
    output:
        scores=f"{STUDY}/scores/{{method}}.csv",
        excluded=f"{STUDY}/scores/{{method}}-excluded.csv",
    log:
        f"{OUT}/logs/score/{{study}}/{{method}}.log",
    benchmark:
        f"{OUT}/benchmarks/score/{{study}}/{{method}}.tsv"
    params:
        measures=lambda wildcards: json.dumps(study_of(wildcards).measures),
    shell:
        "python -m pipeline stage score {input.manifests:q} --study {wildcards.study} --method {wildcards.method}"
        " --measures {params.measures:q} --cases {input.cases:q} --scores {output.scores:q} --excluded {output.excluded:q} >{log:q} 2>&1"


rule gather:
    input:
        of_methods(f"{STUDY}/scores/{{method}}.csv"),
    output:
        f"{STUDY}/scores.csv",
    log:
        f"{OUT}/logs/gather/{{study}}.log",
    benchmark:
        f"{OUT}/benchmarks/gather/{{study}}.tsv"
    shell:
        "python -m pipeline stage gather {input:q} --out {output:q} >{log:q} 2>&1"
