process SCMEDLEY_RUN {
    tag "$meta.id"
    label 'process_high'

    conda "${moduleDir}/environment.yml"

    input:
    tuple val(meta), path(h5ad)
    val batch_key
    val label_key

    output:
    tuple val(meta), path("${prefix}")                      , emit: run
    tuple val(meta), path("${prefix}/integrated.h5ad")      , emit: h5ad
    tuple val(meta), path("${prefix}_embeddings/*.parquet") , emit: embeddings
    tuple val(meta), path("${prefix}/scores.csv")           , emit: scores
    tuple val(meta), path("${prefix}/report.html")          , emit: report
    tuple val(meta), path("${prefix}_multiqc/*_mqc.json")   , emit: multiqc
    path "versions.yml"                                     , emit: versions, topic: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    def label = label_key ? "--label '${label_key}'" : ''
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    scmedley run ${h5ad} --batch '${batch_key}' ${label} --out '${prefix}' --threads ${task.cpus} --quiet ${args}
    scmedley export '${prefix}' --to parquet --out '${prefix}_embeddings'
    scmedley export '${prefix}' --to multiqc --out '${prefix}_multiqc'

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        python: \$(python --version | sed 's/Python //')
        scmedley: \$(scmedley --version)
        torch: \$(python -c "from importlib.metadata import version; print(version('torch'))")
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir -p '${prefix}' '${prefix}_embeddings' '${prefix}_multiqc'
    touch '${prefix}/integrated.h5ad' '${prefix}/scores.csv' '${prefix}/report.html'
    touch '${prefix}_embeddings/obs.parquet' '${prefix}_multiqc/scmedley_scores_mqc.json'

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        python: \$(python --version | sed 's/Python //')
        scmedley: \$(scmedley --version)
        torch: \$(python -c "from importlib.metadata import version; print(version('torch'))")
    END_VERSIONS
    """
}
