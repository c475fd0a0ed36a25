"""The steps of one run, from inputs to the exported model, and what needs all of them."""
