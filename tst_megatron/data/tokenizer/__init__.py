"""Load tokenizers of two libraries as one kind of thing, judge them and train them."""
