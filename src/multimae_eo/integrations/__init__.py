"""Where else the model is at home; each file imports its library, and is imported only by whoever uses that."""
