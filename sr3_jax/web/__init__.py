"""Pages for a browser: the demonstration of a network, and the study of what people see."""
