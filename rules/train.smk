rule train:
    input:
        cases=lambda wildcards: f"{settings.source_of_fit(wildcards.fit)}/cases.csv",
        volumes=lambda wildcards: f"{settings.source_of_fit(wildcards.fit)}/volumes",
        start=lambda wildcards: [settings.weights_of(start)] if (start := settings.warm_start_of(wildcards.fit)) else [],
    output:
        weights=f"{OUT}/weights/{{fit}}.safetensors",
        card=f"{OUT}/weights/{{fit}}.json",
        curve=f"{OUT}/weights/{{fit}}.csv",
        figure=report(
            f"{OUT}/weights/{{fit}}.png",
            caption="../workflow/report/curve.rst",
            category="fits",
            labels={"what": "{fit}"},
        ),
    log:
        f"{OUT}/logs/train/{{fit}}.log",
    benchmark:
        f"{OUT}/benchmarks/train/{{fit}}.tsv"
    # the metric's registrations and landscapes are the longest jobs that wait for a fit
    priority: lambda wildcards: int(settings.fits[wildcards.fit].learner == "patch-metric")
    threads: settings.threads
    resources:
        gpu=GPUS,
        mem_mb=4000,
    params:
        learner=lambda wildcards: settings.fits[wildcards.fit].learner,
        settings=lambda wildcards: as_json(settings.fit(wildcards.fit)),
        seed=settings.seed,
    shell:
        "python -m pipeline stage train --learner {params.learner} --settings {params.settings:q} --cases {input.cases:q}"
        " --seed {params.seed} --threads {threads} --weights {output.weights:q} --figure {output.figure:q} >{log:q} 2>&1"
