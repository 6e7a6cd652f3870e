"""Check a recipe rule by rule; none of the rules needs Megatron or torch.

A function that ends in ``_problems`` returns a sentence for each problem, and one that ends in
``_warnings`` a sentence for each warning. Their arguments mean the same everywhere:

    recipe    the recipe as ``load_recipe`` read it
    tst       its ``tst:`` block
    values    Megatron's attributes that its keys came to, the profile's and defaults included
    given     the attributes whose keys the recipe or its profile has
    schedule  the phases in steps
    known     Megatron's parser
"""
