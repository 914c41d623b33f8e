rule compare:
    input:
        f"{STUDY}/scores.csv",
    output:
        csv=f"{STUDY}/comparisons.csv",
        markdown=f"{STUDY}/comparisons.md",
        html=report(
            f"{STUDY}/comparisons.html",
            caption="../workflow/report/comparisons.rst",
            category="{study}",
            subcategory="Tests",
            labels={"what": "comparisons"},
        ),
    log:
        f"{OUT}/logs/compare/{{study}}.log",
    benchmark:
        f"{OUT}/benchmarks/compare/{{study}}.tsv"
    params:
        settings=lambda wildcards: as_json(study_of(wildcards).comparison),
        seed=settings.seed,
        stem=lambda wildcards, output: output.csv.removesuffix(".csv"),
    shell:
        "python -m pipeline stage compare --scores {input:q} --settings {params.settings:q} --seed {params.seed}"
        " --out {params.stem:q} >{log:q} 2>&1"
