"""Tell the memory that each rank of a job needs, without a GPU.

states       counts the bytes of a model and its optimizer, tensor by tensor
dry_rank     builds any rank of a job without values, and counts them
"""
