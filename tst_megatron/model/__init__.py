"""The four ideas in tensors: bags, their embedding, their loss, and the model that uses them."""
