"""Save, load and read Megatron's distributed checkpoints.

During a run: ``saving`` follows each save, ``loading`` lets all ranks load the same checkpoint.
Without a job: ``model`` reads a checkpoint's arguments and builds its model, ``weights`` reads and
``writing`` writes its weights one at a time. Both: ``reading`` checks every byte before it is used.
"""
