"""Tell the memory that each rank of a job needs, without a GPU.

job          the answer: ``memory_of_job``, by part, for a rank of each pipeline stage
dry_rank     builds any rank of a job without values
states       counts the bytes of its model and its optimizer, tensor by tensor
layers       measures what one layer of each kind keeps and works on
layers_alone builds these layers on the CPU, with stand-ins for Transformer Engine's kernels
living       follows the memory that tensors take while something runs
activations  adds up layers, by the rules of recompute, experts and pipelines
pipeline     tells which micro-batches are in flight
"""
