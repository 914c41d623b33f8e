rule table:
    input:
        unpack(table_sources),
    output:
        csv=f"{STUDY}/tables/{{table}}.csv",
        markdown=f"{STUDY}/tables/{{table}}.md",
        latex=f"{STUDY}/tables/{{table}}.tex",
        html=report(
            f"{STUDY}/tables/{{table}}.html",
            caption="../workflow/report/table.rst",
            category="{study}",
            subcategory="Tables",
            labels={"what": "{table}"},
        ),
    log:
        f"{OUT}/logs/table/{{study}}/{{table}}.log",
    benchmark:
        f"{OUT}/benchmarks/table/{{study}}/{{table}}.tsv"
    params:
        settings=lambda wildcards: as_json(study_of(wildcards).tables[wildcards.table]),
        context=context,
        comparisons=lambda wildcards, input: (f"--comparisons {input.comparisons}" if "comparisons" in input.keys() else ""),
        stem=lambda wildcards, output: output.csv.removesuffix(".csv"),
    shell:
        "python -m pipeline stage table --settings {params.settings:q} {params.context} --scores {input.scores:q}"
        " --cases {input.cases:q} {params.comparisons} --out {params.stem:q} >{log:q} 2>&1"


rule figure:
    input:
        f"{STUDY}/scores.csv",
    output:
        png=report(
            f"{STUDY}/figures/{{figure}}.png",
            caption="../workflow/report/figure.rst",
            category="{study}",
            subcategory="Figures",
            labels={"what": "{figure}"},
        ),
        svg=f"{STUDY}/figures/{{figure}}.svg",
    log:
        f"{OUT}/logs/figure/{{study}}/{{figure}}.log",
    benchmark:
        f"{OUT}/benchmarks/figure/{{study}}/{{figure}}.tsv"
    params:
        settings=lambda wildcards: as_json(study_of(wildcards).figures[wildcards.figure]),
        context=context,
        text=lambda wildcards: study_of(wildcards).figures[wildcards.figure].caption,
    shell:
        "python -m pipeline stage figure --settings {params.settings:q} {params.context} --scores {input:q}"
        " --png {output.png:q} --svg {output.svg:q} >{log:q} 2>&1"


rule landscape:
    input:
        cases=lambda wildcards: settings.cases_of(landscape_of(wildcards).dataset),
        volumes=lambda wildcards: f"{OUT}/datasets/{landscape_of(wildcards).dataset}/volumes",
        weights=weights_of,
    output:
        f"{STUDY}/landscapes/{{landscape}}/{{method}}.csv",
    log:
        f"{OUT}/logs/landscape/{{study}}/{{landscape}}-{{method}}.log",
    benchmark:
        f"{OUT}/benchmarks/landscape/{{study}}/{{landscape}}-{{method}}.tsv"
    priority: 1  # as long as a registration
    threads: settings.threads
    params:
        settings=lambda wildcards: as_json(settings.method(wildcards.method)),
        probe=lambda wildcards: as_json(landscape_of(wildcards).probe),
        weights=weights_option,
        seed=settings.seed,
    shell:
        "python -m pipeline stage landscape --method {wildcards.method} --settings {params.settings:q} --probe {params.probe:q}"
        " --cases {input.cases:q} {params.weights} --seed {params.seed} --threads {threads} --out {output:q} >{log:q} 2>&1"


rule landscape_figure:
    input:
        lambda wildcards: [f"{OUT}/{wildcards.study}/landscapes/{wildcards.landscape}/{method}.csv" for method in landscape_of(wildcards).methods],
    output:
        numbers=f"{STUDY}/landscapes/{{landscape}}.csv",
        png=report(
            f"{STUDY}/landscapes/{{landscape}}.png",
            caption="../workflow/report/landscape.rst",
            category="{study}",
            subcategory="Figures",
            labels={"what": "{landscape}"},
        ),
        svg=f"{STUDY}/landscapes/{{landscape}}.svg",
    log:
        f"{OUT}/logs/landscape_figure/{{study}}/{{landscape}}.log",
    benchmark:
        f"{OUT}/benchmarks/landscape_figure/{{study}}/{{landscape}}.tsv"
    params:
        methods=lambda wildcards: json.dumps(landscape_of(wildcards).methods),
        title=lambda wildcards: landscape_of(wildcards).title,
        text=lambda wildcards: landscape_of(wildcards).caption,
    shell:
        "python -m pipeline stage landscape-figure {input:q} --methods {params.methods:q} --title {params.title:q}"
        " --numbers {output.numbers:q} --png {output.png:q} --svg {output.svg:q} >{log:q} 2>&1"


rule attention_figure:
    input:
        unpack(attention_weights),
        cases=f"{STUDY}/prepared/cases.csv",
        volumes=f"{STUDY}/prepared/volumes",
    output:
        png=report(
            f"{STUDY}/attention/{{attention}}.png",
            caption="../workflow/report/attention.rst",
            category="{study}",
            subcategory="Figures",
            labels={"what": "{attention}"},
        ),
        svg=f"{STUDY}/attention/{{attention}}.svg",
    log:
        f"{OUT}/logs/attention_figure/{{study}}/{{attention}}.log",
    benchmark:
        f"{OUT}/benchmarks/attention_figure/{{study}}/{{attention}}.tsv"
    threads: settings.threads
    params:
        settings=lambda wildcards: as_json(attention_of(wildcards)),
        method=lambda wildcards: as_json(settings.method(attention_of(wildcards).method)),
        source=lambda wildcards: f"{study_of(wildcards).dataset}, scale {settings.scale}",
        without=lambda wildcards, input: (f"--without {input.without}" if "without" in input.keys() else ""),
        text=lambda wildcards: attention_of(wildcards).caption,
    shell:
        "python -m pipeline stage attention --settings {params.settings:q} --method {params.method:q} --source {params.source:q}"
        " --cases {input.cases:q} --weights {input.weights:q} {params.without} --threads {threads}"
        " --png {output.png:q} --svg {output.svg:q} >{log:q} 2>&1"


rule deformation_figure:
    input:
        manifests=lambda wildcards: sum(manifests_by_method(deformation_of)(wildcards).values(), []),
        scores=f"{STUDY}/scores.csv",
        cases=f"{STUDY}/prepared/cases.csv",
        volumes=f"{STUDY}/prepared/volumes",
    output:
        png=report(
            f"{STUDY}/deformations/{{deformation}}.png",
            caption="../workflow/report/deformation.rst",
            category="{study}",
            subcategory="Figures",
            labels={"what": "{deformation}"},
        ),
        svg=f"{STUDY}/deformations/{{deformation}}.svg",
    log:
        f"{OUT}/logs/deformation_figure/{{study}}/{{deformation}}.log",
    benchmark:
        f"{OUT}/benchmarks/deformation_figure/{{study}}/{{deformation}}.tsv"
    params:
        settings=lambda wildcards: as_json(deformation_of(wildcards)),
        manifests=lambda wildcards: as_json(manifests_by_method(deformation_of)(wildcards)),
        measures=lambda wildcards: json.dumps(study_of(wildcards).measures),
        source=lambda wildcards: f"{study_of(wildcards).dataset}, scale {settings.scale}",
        text=lambda wildcards: deformation_of(wildcards).caption,
    shell:
        "python -m pipeline stage deformation --settings {params.settings:q} --manifests {params.manifests:q} --measures {params.measures:q}"
        " --source {params.source:q} --cases {input.cases:q} --scores {input.scores:q} --png {output.png:q} --svg {output.svg:q} >{log:q} 2>&1"


rule translated_figure:
    input:
        manifests=lambda wildcards: sum(manifests_by_method(translated_of)(wildcards).values(), []),
        scores=f"{STUDY}/scores.csv",
        cases=f"{STUDY}/prepared/cases.csv",
        volumes=f"{STUDY}/prepared/volumes",
    output:
        png=report(
            f"{STUDY}/translated/{{translated}}.png",
            caption="../workflow/report/translated.rst",
            category="{study}",
            subcategory="Figures",
            labels={"what": "{translated}"},
        ),
        svg=f"{STUDY}/translated/{{translated}}.svg",
    log:
        f"{OUT}/logs/translated_figure/{{study}}/{{translated}}.log",
    benchmark:
        f"{OUT}/benchmarks/translated_figure/{{study}}/{{translated}}.tsv"
    params:
        settings=lambda wildcards: as_json(translated_of(wildcards)),
        manifests=lambda wildcards: as_json(manifests_by_method(translated_of)(wildcards)),
        source=lambda wildcards: f"{study_of(wildcards).dataset}, scale {settings.scale}",
        text=lambda wildcards: translated_of(wildcards).caption,
    shell:
        "python -m pipeline stage translated --settings {params.settings:q} --manifests {params.manifests:q} --source {params.source:q}"
        " --cases {input.cases:q} --scores {input.scores:q} --png {output.png:q} --svg {output.svg:q} >{log:q} 2>&1"


rule parts_figure:
    input:
        weights=lambda wildcards: weights_files(parts_of(wildcards).method)[0],
        scores=f"{STUDY}/scores.csv",
        cases=f"{STUDY}/prepared/cases.csv",
        volumes=f"{STUDY}/prepared/volumes",
    output:
        png=report(
            f"{STUDY}/parts/{{parts}}.png",
            caption="../workflow/report/parts.rst",
            category="{study}",
            subcategory="Figures",
            labels={"what": "{parts}"},
        ),
        svg=f"{STUDY}/parts/{{parts}}.svg",
    log:
        f"{OUT}/logs/parts_figure/{{study}}/{{parts}}.log",
    benchmark:
        f"{OUT}/benchmarks/parts_figure/{{study}}/{{parts}}.tsv"
    threads: settings.threads
    params:
        settings=lambda wildcards: as_json(parts_of(wildcards)),
        method=lambda wildcards: as_json(settings.method(parts_of(wildcards).method)),
        measures=lambda wildcards: json.dumps(study_of(wildcards).measures),
        source=lambda wildcards: f"{study_of(wildcards).dataset}, scale {settings.scale}",
        text=lambda wildcards: parts_of(wildcards).caption,
    shell:
        "python -m pipeline stage parts --settings {params.settings:q} --method {params.method:q} --measures {params.measures:q}"
        " --source {params.source:q} --cases {input.cases:q} --scores {input.scores:q} --weights {input.weights:q} --threads {threads}"
        " --png {output.png:q} --svg {output.svg:q} >{log:q} 2>&1"


rule clinical:
    input:
        scores=f"{STUDY}/scores.csv",
        cases=f"{STUDY}/prepared/cases.csv",
    output:
        csv=f"{STUDY}/clinical/{{clinical}}.csv",
        subjects=f"{STUDY}/clinical/{{clinical}}-subjects.csv",
        markdown=f"{STUDY}/clinical/{{clinical}}.md",
        latex=f"{STUDY}/clinical/{{clinical}}.tex",
        html=report(
            f"{STUDY}/clinical/{{clinical}}.html",
            caption="../workflow/report/clinical.rst",
            category="{study}",
            subcategory="Tables",
            labels={"what": "{clinical}"},
        ),
        png=report(
            f"{STUDY}/clinical/{{clinical}}.png",
            caption="../workflow/report/clinical.rst",
            category="{study}",
            subcategory="Figures",
            labels={"what": "{clinical}"},
        ),
        svg=f"{STUDY}/clinical/{{clinical}}.svg",
    log:
        f"{OUT}/logs/clinical/{{study}}/{{clinical}}.log",
    benchmark:
        f"{OUT}/benchmarks/clinical/{{study}}/{{clinical}}.tsv"
    params:
        settings=lambda wildcards: as_json(study_of(wildcards).clinical[wildcards.clinical]),
        context=context,
        stem=lambda wildcards, output: output.csv.removesuffix(".csv"),
        text=lambda wildcards: study_of(wildcards).clinical[wildcards.clinical].caption,
    shell:
        "python -m pipeline stage clinical --settings {params.settings:q} {params.context} --scores {input.scores:q}"
        " --cases {input.cases:q} --out {params.stem:q} >{log:q} 2>&1"


rule pictures:
    input:
        manifests=manifests,
        scores=f"{STUDY}/scores.csv",
        cases=f"{STUDY}/prepared/cases.csv",
        volumes=f"{STUDY}/prepared/volumes",
    output:
        report(
            directory(f"{STUDY}/pictures/{{method}}"),
            patterns=["{case}.png"],
            caption="../workflow/report/picture.rst",
            category="{study}",
            subcategory="Cases, {method}",
            labels={"what": "{case}"},
        ),
    log:
        f"{OUT}/logs/pictures/{{study}}/{{method}}.log",
    benchmark:
        f"{OUT}/benchmarks/pictures/{{study}}/{{method}}.tsv"
    params:
        cases=lambda wildcards: study_of(wildcards).pictures.cases,
        measures=lambda wildcards: json.dumps(study_of(wildcards).measures),
    shell:
        "python -m pipeline stage pictures {input.manifests:q} --method {wildcards.method} --measures {params.measures:q}"
        " --cases {input.cases:q} --scores {input.scores:q} --most {params.cases} --out {output:q} >{log:q} 2>&1"


rule left_out:
    input:
        dataset=lambda wildcards: f"{OUT}/datasets/{study_of(wildcards).dataset}/excluded.csv",
        prepared=f"{STUDY}/prepared/excluded.csv",
        methods=of_methods(f"{STUDY}/scores/{{method}}-excluded.csv"),
    output:
        csv=f"{STUDY}/left_out.csv",
        html=report(
            f"{STUDY}/left_out.html",
            caption="../workflow/report/failures.rst",
            category="{study}",
            subcategory="Tests",
            labels={"what": "left out"},
        ),
    log:
        f"{OUT}/logs/left_out/{{study}}.log",
    benchmark:
        f"{OUT}/benchmarks/left_out/{{study}}.tsv"
    params:
        title=lambda wildcards: study_of(wildcards).title,
        stem=lambda wildcards, output: output.csv.removesuffix(".csv"),
    shell:
        "python -m pipeline stage left-out {input:q} --title {params.title:q} --out {params.stem:q} >{log:q} 2>&1"
