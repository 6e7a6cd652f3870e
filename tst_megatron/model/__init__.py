"""Train on bags of tokens: how they are cut, embedded and predicted, and the model that does it.

``bags.py`` cuts raw tokens into bags and their targets. ``embedding.py`` averages a bag.
``loss.py`` has the loss of a bag, ``loss_steps.py`` its three steps, ``linear_loss.py`` the same
together with the output layer. ``gpt.py`` puts them into Megatron's GPT model.
"""
