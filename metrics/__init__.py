"""Pure measures: what is optimised (`similarity`) and what is reported (`accuracy`). No I/O, no ITK."""
